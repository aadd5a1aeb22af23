"""An endpoint that scales to zero, wakes at a connection, and can be disabled."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from databricks.sdk.service.postgres import EndpointStatusState
from logins import DATABASE, mint
from psycopg import errors

from lakebase_sessions import (
    Lakebase,
    LakebaseTimeout,
    LakebaseUnavailable,
    PermissionDenied,
)
from lakebase_sessions.errors import LocalLakebaseError
from lakebase_sessions.local import DEFAULT_USER, Compute, LocalLakebase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from databricks.sdk.service.postgres import EndpointStatus

ENDPOINT = "projects/app/branches/main/endpoints/primary"

pytestmark = [pytest.mark.upstream_logs, pytest.mark.long]


@pytest.fixture(scope="module")
def local() -> Iterator[LocalLakebase]:
    with LocalLakebase() as local:
        yield local


@pytest.fixture
def compute(local: LocalLakebase) -> Iterator[Compute]:
    yield local.add_compute(ENDPOINT, wake_seconds=0.05)
    local.remove_endpoint(ENDPOINT)


def connect(local: LocalLakebase, compute: Compute) -> psycopg.Connection[tuple[Any, ...]]:
    return psycopg.connect(
        host=compute.host,
        user=DEFAULT_USER,
        password=mint(local),
        dbname=DATABASE,
        sslmode="require",
        autocommit=True,
    )


def status(local: LocalLakebase) -> EndpointStatus:
    found = local.workspace_client().postgres.get_endpoint(ENDPOINT).status
    assert found
    return found


def test_it_is_an_endpoint_like_any_other(local: LocalLakebase, compute: Compute) -> None:
    found = status(local)
    assert found.current_state is EndpointStatusState.ACTIVE
    assert found.hosts
    assert found.hosts.host == compute.host != local.host
    with connect(local, compute) as conn:
        assert conn.execute("SELECT current_user").fetchone() == (DEFAULT_USER,)
        big = conn.execute("SELECT repeat('x', 10000000)").fetchone()
        assert big == ("x" * 10_000_000,)
        with conn.cursor().copy("COPY (SELECT generate_series(1, 1000)) TO STDOUT") as copy:
            assert len(list(copy.rows())) == 1000
    assert compute.wakes == 0


def test_a_refused_login(local: LocalLakebase, compute: Compute) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(host=compute.host, user=DEFAULT_USER, password="x", dbname=DATABASE)


def test_a_statement_can_be_cancelled(local: LocalLakebase, compute: Compute) -> None:
    """A cancellation comes on a connection of its own, before any login."""
    with connect(local, compute) as conn:
        canceller = threading.Timer(0.2, conn.cancel_safe)
        canceller.start()
        with pytest.raises(errors.QueryCanceled):
            conn.execute("SELECT pg_sleep(60)")
        canceller.join()


class Attempt(threading.Thread):
    """Something that waits in a thread, and what it fails with."""

    def __init__(self, do: Callable[[], object]) -> None:
        super().__init__()
        self.error: Exception | None = None
        self._do = do
        self.start()

    def run(self) -> None:
        try:
            self._do()
        except psycopg.Error as error:
            self.error = error


class TestSuspend:
    def test_the_next_connection_wakes_it(self, local: LocalLakebase, compute: Compute) -> None:
        compute.suspend()
        assert status(local).current_state is EndpointStatusState.IDLE
        assert compute.wakes == 0
        started = time.monotonic()
        compute.wake_seconds = 0.5
        connect(local, compute).close()
        assert time.monotonic() - started >= 0.5
        assert status(local).current_state is EndpointStatusState.ACTIVE
        assert compute.wakes == 1
        connect(local, compute).close()
        assert compute.wakes == 1

    def test_while_it_wakes(self, local: LocalLakebase, compute: Compute) -> None:
        """All who come meanwhile wait for the same waking."""
        compute.suspend()
        compute.wake_seconds = 1.0
        attempts = [Attempt(lambda: connect(local, compute).close()) for _ in range(8)]
        while compute.wakes == 0:
            time.sleep(0.01)
        assert status(local).current_state is EndpointStatusState.INIT
        for attempt in attempts:
            attempt.join()
            assert attempt.error is None
        assert compute.wakes == 1

    def test_sessions_are_ended_in_postgres_own_words(
        self, local: LocalLakebase, compute: Compute
    ) -> None:
        """Those of this compute, idle and at work, and no others."""
        sleeper = connect(local, compute)
        attempt = Attempt(lambda: sleeper.execute("SELECT pg_sleep(60)"))
        with (
            connect(local, compute) as idle,
            psycopg.connect(local.admin_dsn, autocommit=True) as other,
        ):
            pids = [idle.info.backend_pid, sleeper.info.backend_pid]
            busy = "SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            while not other.execute(busy).fetchall():
                time.sleep(0.01)
            compute.suspend()
            with pytest.raises(errors.AdminShutdown):
                idle.execute("SELECT 1")
            left = "SELECT FROM pg_stat_activity WHERE pid = ANY(%s)"
            assert other.execute(left, [pids]).fetchall() == []
        attempt.join()
        assert isinstance(attempt.error, errors.AdminShutdown)
        sleeper.close()

    def test_what_a_session_had_is_gone(self, local: LocalLakebase, compute: Compute) -> None:
        """Advisory locks, prepared statements, settings."""
        first = connect(local, compute)
        first.execute("SELECT pg_advisory_lock(42)")
        first.execute("PREPARE p AS SELECT 1")
        first.execute("SET search_path = elsewhere")
        compute.suspend()
        first.close()
        with connect(local, compute) as conn:
            assert conn.execute("SELECT pg_try_advisory_lock(42)").fetchone() == (True,)
            assert conn.execute("SHOW search_path").fetchone() == ('"$user", public',)
            with pytest.raises(errors.InvalidSqlStatementName):
                conn.execute("EXECUTE p")

    def test_suspended_while_it_wakes(self, local: LocalLakebase, compute: Compute) -> None:
        """Who waits wakes it once more."""
        compute.suspend()
        compute.wake_seconds = 60.0
        attempt = Attempt(lambda: connect(local, compute).close())
        while compute.wakes == 0:
            time.sleep(0.01)
        compute.wake_seconds = 0.0
        compute.suspend()
        attempt.join()
        assert attempt.error is None
        assert compute.wakes == 2

    async def test_a_lakebase_under_load(self, local: LocalLakebase, compute: Compute) -> None:
        """Suspended again and again, while sessions write: nothing that was stored is lost."""
        client = local.workspace_client()
        stored: list[str] = []
        over = False

        async def write(lakebase: Lakebase, number: int) -> None:
            count = 0
            while not over:
                count += 1
                text = f"{number}-{count}"
                try:
                    await lakebase.session(f"s{number}").add_items(
                        [{"role": "user", "content": text}]
                    )
                except LakebaseUnavailable:
                    continue
                stored.append(text)

        async with Lakebase(ENDPOINT, workspace_client=client) as lakebase:
            writers = [asyncio.create_task(write(lakebase, number)) for number in range(4)]
            for _ in range(5):
                before = len(stored)
                while len(stored) < before + 20:
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(compute.suspend)
            over = True
            await asyncio.gather(*writers)
            sessions = [lakebase.session(f"s{number}") for number in range(4)]
            found = [dict(item) for each in sessions for item in await each.get_items()]
        assert set(stored) <= {item["content"] for item in found}
        assert compute.wakes >= 5

    async def test_the_first_operation_waits_and_says_so_once(
        self, local: LocalLakebase, compute: Compute, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Everybody who comes while it wakes waits within the bound; none sees an empty history."""
        client = local.workspace_client()
        async with Lakebase(ENDPOINT, workspace_client=client) as lakebase:
            item: Any = {"role": "user", "content": "hello"}
            await lakebase.session("slept").add_items([item])
            await asyncio.to_thread(compute.suspend)
            compute.wake_seconds = 2.0
            found = await asyncio.gather(
                *(lakebase.session("slept").get_items() for _ in range(12))
            )
            assert found == [[item]] * 12
            assert caplog.text.count("may be waking from zero") == 1
            await asyncio.to_thread(compute.suspend)
            assert await lakebase.session("slept").get_items() == [item]
            assert caplog.text.count("may be waking from zero") == 2
            await lakebase.session("slept").clear_session()

    async def test_longer_than_the_bound(self, local: LocalLakebase, compute: Compute) -> None:
        """An error that says so, and never an empty history; when it is awake, all is there."""
        client = local.workspace_client()
        async with Lakebase(
            ENDPOINT, workspace_client=client, call_timeout_seconds=1.5
        ) as lakebase:
            item: Any = {"role": "user", "content": "hello"}
            await lakebase.session("late").add_items([item])
            await asyncio.to_thread(compute.suspend)
            compute.wake_seconds = 60.0
            with pytest.raises(LakebaseTimeout, match="databricks postgres get-endpoint"):
                await lakebase.session("late").get_items()
            compute.wake_seconds = 0.0
            await asyncio.to_thread(compute.suspend)
            assert await lakebase.session("late").get_items() == [item]
            await lakebase.session("late").clear_session()

    async def test_a_refused_login_does_not_wait(
        self, local: LocalLakebase, compute: Compute
    ) -> None:
        """One new token, one more try; not again and again until the bound."""
        local.add_user("nobody@example.com", role=False)
        client = local.workspace_client("nobody@example.com")
        before = len(local.requests)
        lakebase = Lakebase(ENDPOINT, workspace_client=client, call_timeout_seconds=60)
        with pytest.raises(PermissionDenied):
            await lakebase.session("s").get_items()
        await lakebase.close()
        asked = [each.path for each in local.requests[before:] if "credentials" in each.path]
        assert len(asked) == 2


class TestDisable:
    def test_connections_are_refused_until_it_is_enabled(
        self, local: LocalLakebase, compute: Compute
    ) -> None:
        conn = connect(local, compute)
        compute.disable()
        assert status(local).disabled
        assert status(local).current_state is EndpointStatusState.IDLE
        with pytest.raises(errors.AdminShutdown):
            conn.execute("SELECT 1")
        conn.close()
        with pytest.raises(psycopg.OperationalError, match="endpoint is disabled"):
            connect(local, compute)
        compute.suspend()
        assert status(local).disabled
        compute.enable()
        assert not status(local).disabled
        connect(local, compute).close()
        assert compute.wakes == 1

    def test_disabled_while_it_wakes(self, local: LocalLakebase, compute: Compute) -> None:
        compute.suspend()
        compute.wake_seconds = 60.0
        attempt = Attempt(lambda: connect(local, compute))
        while compute.wakes == 0:
            time.sleep(0.01)
        compute.disable()
        attempt.join()
        assert "endpoint is disabled" in str(attempt.error)

    async def test_our_error(self, local: LocalLakebase, compute: Compute) -> None:
        compute.disable()
        lakebase = Lakebase(
            ENDPOINT, workspace_client=local.workspace_client(), call_timeout_seconds=1
        )
        with pytest.raises(LakebaseUnavailable, match="endpoint is disabled"):
            await lakebase.open()
        await lakebase.close()


def compute_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.endswith("compute")]


class TestLife:
    def test_nothing_is_left(self, local: LocalLakebase) -> None:
        """Neither with connections that are open nor with one that waits."""
        compute = local.add_compute(ENDPOINT, wake_seconds=60.0)
        conn = connect(local, compute)
        compute.suspend()
        attempt = Attempt(lambda: connect(local, compute))
        while compute.wakes == 0:
            time.sleep(0.01)
        local.remove_endpoint(ENDPOINT)
        attempt.join()
        assert attempt.error is not None
        conn.close()
        assert not Path(compute.host).exists()
        assert compute_threads() == []

    def test_the_end_of_the_lakebase_is_its_end(self) -> None:
        with LocalLakebase() as local:
            compute = local.add_compute(ENDPOINT)
            conn = connect(local, compute)
        assert not Path(compute.host).exists()
        conn.close()

    def test_replaced(self, local: LocalLakebase, compute: Compute) -> None:
        """By another compute, or by an endpoint without one of its own."""
        second = local.add_compute(ENDPOINT)
        assert not Path(compute.host).exists()
        connect(local, second).close()
        local.add_endpoint(ENDPOINT)
        assert not Path(second.host).exists()
        found = status(local)
        assert found.hosts
        assert found.hosts.host == local.host

    def test_not_an_endpoint(self, local: LocalLakebase) -> None:
        with pytest.raises(LocalLakebaseError, match="is not an endpoint"):
            local.add_compute("primary")
        assert compute_threads() == []
