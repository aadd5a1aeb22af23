"""The store on 200,000 conversations with 1,000,000 items.

Run it with `uv run python tests/benchmarks/store.py`.

Real conversations, cut into pieces of five items that begin with what the user says, and repeated;
on the embedded server, through `lakebase.store`, a page of 50. Each line: the first time and the
median of twenty, in milliseconds. Then an export, a load of it into an empty database, and its
export, by the command line. Takes fifteen minutes and 4 GB of disk; `listing_peers.py` wants uv.
"""

from __future__ import annotations

import asyncio
import filecmp
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.testbed import CONVERSATIONS, processor

from lakebase_sessions import Lakebase
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.postgres import indexes
from lakebase_sessions.postgres.listing import Order

SESSIONS = 200_000
USERS = 2000
ITEMS = 5
ORDERS: tuple[Order, ...] = ("updated", "created")

_ID = "'user-' || (n % %(users)s) || ':' || md5(n::text)"
_MOMENT = "localtimestamp - interval '1 hour' - n * interval '60 s'"
FILL = (
    (
        f"INSERT INTO agent_sessions SELECT {_ID}, {_MOMENT} - interval '1 day', {_MOMENT} "
        "FROM generate_series(1, %(sessions)s) n"
    ),
    (
        f"INSERT INTO agent_messages (session_id, message_data, created_at) "
        f"SELECT {_ID}, message_data, {_MOMENT} + position * interval '1 us' "
        "FROM generate_series(1, %(sessions)s) n JOIN piece ON piece.number = n % %(pieces)s "
        "ORDER BY n, position"
    ),
    (
        "INSERT INTO agent_conversations (session_id, title, metadata) "
        f"SELECT {_ID}, 'Title ' || n, jsonb_build_object('topic', 't' || n % 500, 'env', "
        "CASE WHEN n % 10 = 0 THEN 'dev' ELSE 'prod' END) FROM generate_series(1, %(sessions)s) n"
    ),
)


def pieces() -> list[list[Any]]:
    found = []
    for line in CONVERSATIONS.read_text().splitlines():
        items = json.loads(line)["items"]
        for begin, item in enumerate(items[: -ITEMS + 1]):
            if item.get("role") == "user":
                found.append(items[begin : begin + ITEMS])
    return found


def fill(connection: psycopg.Connection[Any]) -> None:
    cut = pieces()
    connection.execute("CREATE TEMP TABLE piece (number int, position int, message_data text)")
    with connection.cursor() as cursor, cursor.copy("COPY piece FROM STDIN") as copy:
        for number, items in enumerate(cut):
            for position, item in enumerate(items):
                copy.write_row((number, position, json.dumps(item, separators=(",", ":"))))
    values = {"users": str(USERS), "sessions": str(SESSIONS), "pieces": str(len(cut))}
    for statement in FILL:
        for name, value in values.items():
            statement = statement.replace(f"%({name})s", value)  # noqa: PLW2901
        connection.execute(statement.encode())
    connection.execute("VACUUM ANALYZE")


async def measured(name: str, operation: Callable[[], Awaitable[Any]], times: int = 20) -> Any:
    spent = []
    for _ in range(times):
        begun = time.perf_counter()
        result = await operation()
        spent.append((time.perf_counter() - begun) * 1000)
    print(f"{name:52} {spent[0]:8.1f} {statistics.median(spent):8.1f}", flush=True)
    return result


async def listings(lakebase: Lakebase) -> None:
    store = lakebase.store
    for user in (None, "user-7"):
        whose = user or "all"
        for order in ORDERS:
            await measured(
                f"list, {whose}, by {order}: first page",
                partial(store.page, user=user, order=order, limit=50),
            )
    late = (await store.page(limit=1, updated_before=await moment(store))).next
    await measured("list, all, by updated: page 2,000", lambda: store.page(limit=50, after=late))
    await measured("count, all", store.count)
    for metadata in ({"topic": "t7"}, {"env": "dev"}, {"env": "prod"}, {"env": "none"}):
        await measured(
            f"metadata {metadata}",
            partial(store.page, metadata=metadata, limit=50),
        )


async def moment(store: Any) -> Any:
    newest = (await store.page(limit=1)).conversations[0].updated_at
    return newest - timedelta(seconds=60 * SESSIONS // 2)


WORDS = (
    "flight",
    "Thank you, Mia",
    "certificate of my",
    "refund to the original",
    "baggage allow",
    "crème brûlée",
)


async def searches(lakebase: Lakebase, how: str) -> None:
    store = lakebase.store
    for words in WORDS:
        for user in (None, "user-7"):

            async def all_pages(words: str = words, user: str | None = user) -> int:
                pages, after = 0, None
                while True:
                    page = await store.page(search=words, user=user, limit=50, after=after)
                    pages, after = pages + 1, page.next
                    if page.conversations or after is None:
                        return pages

            trips = await measured(
                f"search {words!r}, {user or 'all'}, {how}", all_pages, 5 if how == "walk" else 20
            )
            if trips > 1:
                print(f"{'':52} in {trips} round trips")


async def pruning(lakebase: Lakebase) -> None:
    cutoff = await moment(lakebase.store)
    pruning, waits = True, []

    async def write(number: int) -> None:
        count = 0
        while pruning:
            count += 1
            session = lakebase.session(f"writer-{number}-{count % 50}")
            begun = time.perf_counter()
            await session.add_items([{"role": "user", "content": "Hi"}])
            waits.append((time.perf_counter() - begun) * 1000)
            await asyncio.sleep(0.005)

    writers = [asyncio.ensure_future(write(number)) for number in range(4)]
    begun = time.perf_counter()
    pruned = None
    async for each in lakebase.store.prune(older_than=cutoff):
        pruned = each
    spent = time.perf_counter() - begun
    pruning = False
    await asyncio.gather(*writers)
    waits.sort()
    print(f"prune: {pruned} in {spent:.1f} s")
    print(
        f"{len(waits)} writes beside it: median {statistics.median(waits):.1f} ms, 99% "
        f"{waits[len(waits) * 99 // 100]:.1f} ms, longest {waits[-1]:.1f} ms"
    )


def transferring(local: LocalLakebase) -> None:
    """Export, load, export: the same bytes, and no more memory than for one user's."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("first.jsonl", "second.jsonl", "user.jsonl")]
        command(local, "export", files[2], "--user", "user-7")
        command(local, "export", files[0])
        local.create_database("loaded")
        command(local, "load", files[0], "--database", "loaded")
        command(local, "export", files[1], "--database", "loaded")
        sizes = [file.stat().st_size / 1e6 for file in files]
        print(f"{sizes[0]:.0f} MB, one user's {sizes[2]:.1f} MB")
        print(f"the same bytes: {filecmp.cmp(files[0], files[1], shallow=False)}")


def command(local: LocalLakebase, *arguments: str | Path) -> None:
    begun = time.perf_counter()
    running = subprocess.Popen(
        [sys.executable, "-m", "lakebase_sessions", *arguments],
        env=os.environ | local.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    peak = 0
    while running.poll() is None:
        time.sleep(0.02)
        # What `wait4` reports counts this process, of which it was a fork.
        with suppress(ProcessLookupError, IndexError):
            status = Path(f"/proc/{running.pid}/status").read_text()
            peak = int(status.split("VmHWM:")[1].split()[0])
    spent = time.perf_counter() - begun
    shown = " ".join(a.name if isinstance(a, Path) else a for a in arguments)
    print(f"{shown}: status {running.returncode}, {spent:.0f} s, {peak / 1000:.0f} MB", flush=True)


def peers(dsn: str) -> None:
    """On the same server; its classes are not ours to import."""
    made = psycopg.conninfo.conninfo_to_dict(dsn)
    url = sqlalchemy.URL.create(
        "postgresql+psycopg",
        username=str(made["user"]),
        password=str(made["password"]) if made.get("password") else None,
        database="databricks_postgres",
        query={name: str(made[name]) for name in ("host", "port") if made.get(name)},
    )
    subprocess.run(
        ["uv", "run", "--script", Path(__file__).with_name("listing_peers.py")],
        env=os.environ | {"LISTING_PEERS_URL": url.render_as_string(hide_password=False)},
        check=False,
    )


async def main() -> None:
    """Fill, measure, print."""
    with LocalLakebase() as local:
        options: Any = {"workspace_client": local.workspace_client()}
        async with Lakebase("local", **options):
            pass
        with psycopg.connect(
            local.admin_dsn, dbname="databricks_postgres", autocommit=True
        ) as connection:
            begun = time.perf_counter()
            fill(connection)
            print(f"{processor()}; filled in {time.perf_counter() - begun:.0f} s")
            print(f"{'':52} {'first':>8} {'median':>8}")
            async with Lakebase("local", **options) as lakebase:
                await listings(lakebase)
                await searches(lakebase, "walk")
            begun = time.perf_counter()
            connection.execute(indexes.create_function("pg_unicode_fast").encode())
            connection.execute(indexes.SEARCH.create().encode())
            connection.execute("ANALYZE agent_messages")
            size = connection.execute(
                "SELECT pg_size_pretty(pg_relation_size(%s::regclass)), "
                "pg_size_pretty(pg_relation_size('agent_messages'))",
                [indexes.SEARCH.name],
            ).fetchone()
            assert size is not None
            spent = time.perf_counter() - begun
            print(f"index for searches: {spent:.0f} s, {size[0]}, beside items of {size[1]}")
            async with Lakebase("local", **options) as lakebase:
                await searches(lakebase, "index")
            transferring(local)
            peers(local.admin_dsn)
            async with Lakebase("local", **options) as lakebase:
                await pruning(lakebase)


if __name__ == "__main__":
    asyncio.run(main())
