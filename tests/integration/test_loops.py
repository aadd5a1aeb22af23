"""One Lakebase under every way of running a loop, and of ending one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from agents import Agent, Runner, set_tracing_disabled
from conftest import admin
from databricks.sdk import WorkspaceClient
from databricks.sdk.config import Config
from databricks.sdk.credentials_provider import CredentialsStrategy

from lakebase_sessions import Lakebase, LakebaseNotOpen
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.testing import OfflineModel

HELLO: Any = {"role": "user", "content": "hello"}


@pytest.fixture
def made(local: LocalLakebase, database: str) -> Lakebase:
    return Lakebase("local", workspace_client=local.workspace_client(), database=database)


def sees_connections(local: LocalLakebase, database: str, expected: int) -> bool:
    """Whether the server has so many to `database`; one that was closed ends a moment later."""
    give_up_at = time.monotonic() + 10
    with admin(local, "postgres") as connection:
        while time.monotonic() < give_up_at:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = %s", [database]
            ).fetchone()
            if row == (expected,):
                return True
            time.sleep(0.005)
    return False


def minted(local: LocalLakebase) -> int:
    return sum(call.path.endswith("/credentials") for call in local.requests)


def test_asyncio_run_again_and_again(made: Lakebase, local: LocalLakebase, database: str) -> None:
    """Each run has its own loop, and takes its connections with it."""

    async def turn() -> int:
        session = made.session("s")
        await session.add_items([HELLO])
        return len(await session.get_items())

    before = minted(local)
    assert [asyncio.run(turn()) for _ in range(4)] == [1, 2, 3, 4]
    assert minted(local) == before + 1, "found and logged in once for the process"
    assert sees_connections(local, database, 0)
    asyncio.run(made.close())


def test_one_session_object_in_two_loops(made: Lakebase) -> None:
    session = made.session("s")
    asyncio.run(session.add_items([HELLO]))
    assert asyncio.run(session.get_items()) == [HELLO]
    asyncio.run(made.close())


def test_run_sync(made: Lakebase) -> None:
    set_tracing_disabled(True)
    agent = Agent(name="Assistant", model=OfflineModel())
    Runner.run_sync(agent, "Hello, I live in SF!", session=made.session("s"))
    result = Runner.run_sync(agent, "What city did I say I live in?", session=made.session("s"))
    assert result.final_output == "You said that you live in SF."
    loop = asyncio.get_event_loop_policy().get_event_loop()  # the one that run_sync leaves open
    loop.run_until_complete(made.close())
    loop.close()


def test_several_threads_each_with_a_loop(
    made: Lakebase, local: LocalLakebase, database: str
) -> None:
    """They share one login, and no connection."""
    before = minted(local)
    start = threading.Barrier(6)
    failures = []

    def worker(number: int) -> None:
        async def turns() -> None:
            for _ in range(5):
                await made.session(number).add_items([HELLO])
            assert len(await made.session(number).get_items()) == 5

        start.wait()
        try:
            asyncio.run(turns())
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=worker, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert minted(local) == before + 1
    asyncio.run(made.close())
    assert sees_connections(local, database, 0)


async def test_a_notebook_has_a_running_loop(made: Lakebase) -> None:
    """Top-level await in a notebook: cells are tasks of one loop that never ends."""
    for cell in range(3):
        await asyncio.create_task(made.session("s").add_items([HELLO]))
        assert len(await asyncio.create_task(made.session("s").get_items())) == cell + 1
    await made.close()


async def test_many_first_requests_open_once(
    made: Lakebase, local: LocalLakebase, database: str
) -> None:
    before = len(local.requests)
    await asyncio.gather(*(made.session(number).get_items() for number in range(20)))
    calls = [call.path for call in local.requests[before:]]
    assert sum(path.endswith("/credentials") for path in calls) == 1
    assert sum(path.endswith("/Me") for path in calls) == 1
    assert sum("/instances/" in path for path in calls) == 1
    await made.close()


async def test_opened_twice(made: Lakebase, local: LocalLakebase, database: str) -> None:
    """One after the other and both at once: it is one opening, with one connection."""
    before = minted(local)
    await asyncio.gather(made.open(), made.open())
    async with made:
        assert await made.session("s").get_items() == []
        assert minted(local) == before + 1
        assert sees_connections(local, database, 1)


async def test_closed_twice(made: Lakebase, local: LocalLakebase, database: str) -> None:
    """Closing what is closed, or was never open, is nothing to complain of; opening it is."""
    await made.open()
    await asyncio.gather(made.close(), made.close())
    await made.close()
    assert sees_connections(local, database, 0)
    with pytest.raises(LakebaseNotOpen, match="was closed"):
        await made.open()


async def test_one_who_gives_up_does_not_take_it_from_the_others(
    made: Lakebase, local: LocalLakebase
) -> None:
    with local.fault("/credentials", delay_seconds=0.3):
        waiting = [asyncio.create_task(made.session(n).get_items()) for n in range(3)]
        await asyncio.sleep(0.1)
        waiting[0].cancel()
        assert await asyncio.gather(*waiting[1:]) == [[], []]
    assert waiting[0].cancelled()
    await made.close()


async def test_a_failed_opening_is_tried_again(made: Lakebase, local: LocalLakebase) -> None:
    with local.fault("/instances/local", status=500), pytest.raises(ConnectionError):
        await made.session("s").get_items()
    assert await made.session("s").get_items() == []
    await made.close()


async def test_after_close_there_is_a_word_for_it(made: Lakebase) -> None:
    session = made.session("s")
    with pytest.raises(LakebaseNotOpen, match="not open yet"):
        _ = made.name
    await session.add_items([HELLO])
    await made.close()
    with pytest.raises(LakebaseNotOpen, match="was closed"):
        await session.get_items()
    await made.close()


async def test_no_call_to_the_workspace_from_the_loops_thread(
    local: LocalLakebase, database: str
) -> None:
    """Neither to open, nor to renew a token: every call is signed in some other thread."""
    signed_in = []

    class Login(CredentialsStrategy):
        def auth_type(self) -> str:
            return "test"

        def __call__(self, _config: Config) -> Callable[[], dict[str, str]]:
            def headers() -> dict[str, str]:
                signed_in.append(threading.get_ident())
                return {"Authorization": f"Bearer {local.environ['DATABRICKS_TOKEN']}"}

            return headers

    client = WorkspaceClient(config=Config(host=local.url, credentials_strategy=Login()))
    async with Lakebase("local", workspace_client=client, database=database) as lakebase:
        await asyncio.gather(*(lakebase.session(n).get_items() for n in range(20)))
        credentials = lakebase._place.credentials  # type: ignore[union-attr]
        await credentials.ready(rejected=credentials.token)
    assert len(signed_in) >= 4
    assert threading.get_ident() not in signed_in


async def test_close_lets_what_is_under_way_finish(
    made: Lakebase, local: LocalLakebase, database: str
) -> None:
    """A write that has begun is stored, one that comes later is refused, nothing stays open."""
    await made.open()
    with admin(local, database) as other:
        other.autocommit = False
        other.execute("LOCK TABLE agent_messages")
        writing = [asyncio.create_task(made.session(n).add_items([HELLO])) for n in range(4)]
        await asyncio.sleep(0.2)
        closing = asyncio.create_task(made.close())
        await asyncio.sleep(0.1)
        with pytest.raises(LakebaseNotOpen):
            await made.session("late").add_items([HELLO])
        other.rollback()
    await asyncio.gather(closing, *writing)
    assert sees_connections(local, database, 0)
    with admin(local, database) as connection:
        assert connection.execute("SELECT count(*) FROM agent_messages").fetchone() == (4,)


def test_close_from_another_loop(made: Lakebase, local: LocalLakebase, database: str) -> None:
    opened, closed = threading.Event(), threading.Event()

    async def use() -> None:
        await made.session("s").add_items([HELLO])
        opened.set()
        while not closed.is_set():
            await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(use()))
    thread.start()
    opened.wait()
    asyncio.run(made.close())
    assert sees_connections(local, database, 0)
    closed.set()
    thread.join()
