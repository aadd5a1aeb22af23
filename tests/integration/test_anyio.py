"""Cancelled by anyio, as Starlette does it: again in every round of the loop, until it is over."""

from __future__ import annotations

import asyncio
import json
import selectors
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import psycopg
import pytest
from agents import Agent, set_tracing_disabled
from conftest import admin

from lakebase_sessions import Lakebase, stream_turn
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.server import turns
from lakebase_sessions.testing import OfflineModel

ROUNDS = 500
"""Of an event loop, for a second of waiting. Whoever spins takes 80,000."""

HI: Any = {"role": "user", "content": "Hi"}


@pytest.fixture(autouse=True)
def quiet() -> None:
    import mlflow

    set_tracing_disabled(True)
    mlflow.tracing.disable()


class Rounds(selectors.DefaultSelector):
    """Counts those of the event loop it is made for."""

    count = 0

    def select(self, timeout: float | None = None) -> Any:
        self.count += 1
        return super().select(timeout)


class Locked:
    """A conversation whose row somebody else has locked, for a second from `lock()` on."""

    def __init__(
        self,
        lakebase: Lakebase,
        locking: psycopg.Connection[Any],
        looking: psycopg.Connection[Any],
    ) -> None:
        self.lakebase = lakebase
        self.session = lakebase.session("s")
        self._locking = locking
        self._looking = looking
        self._tasks = asyncio.all_tasks()

    def lock(self) -> None:
        self._locking.execute("BEGIN")
        self._locking.execute("SELECT * FROM agent_sessions FOR UPDATE")
        asyncio.get_running_loop().call_later(1, self._locking.rollback)

    async def somebody_waits(self) -> None:
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        while not self._looking.execute(waiting).fetchall():
            await asyncio.sleep(0.01)

    @property
    def tasks(self) -> set[str]:
        """What has been begun since and has not ended."""
        return {repr(task.get_coro()) for task in asyncio.all_tasks() - self._tasks}

    def turn(self) -> Any:
        from mlflow.types.responses import ResponsesAgentRequest

        request = ResponsesAgentRequest(input=[HI], custom_inputs={"session_id": "s"})
        return stream_turn(Agent(name="A", model=OfflineModel()), request, lakebase=self.lakebase)


Test = Callable[[Locked], Awaitable[None]]


@pytest.fixture
def run(local: LocalLakebase, database: str) -> Callable[[Test], int]:
    """Runs a function on a loop of its own; how often that has turned."""

    async def main(test: Test) -> None:
        client = local.workspace_client()
        async with Lakebase("local", workspace_client=client, database=database) as lakebase:
            await lakebase.session("s").add_items([HI])
            with admin(local, database) as locking, admin(local, database) as looking:
                await test(Locked(lakebase, locking, looking))

    def run(test: Test) -> int:
        rounds = Rounds()
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(rounds)) as runner:
            runner.run(main(test))
        return rounds.count

    return run


def test_a_write_that_waits_for_a_lock(run: Any) -> None:
    """It is waited for, in peace, and the cancellation comes after it."""

    async def write(locked: Locked) -> None:
        locked.lock()
        async with anyio.create_task_group() as group:
            group.start_soon(locked.session.add_items, [HI])
            await locked.somebody_waits()
            group.cancel_scope.cancel()
        assert locked.tasks == set()
        assert len(await locked.session.get_items()) == 2

    assert run(write) < ROUNDS


def test_a_stream_whose_run_waits_for_a_lock(run: Any) -> None:
    """Its run has settled before it ends."""

    async def consume(locked: Locked) -> None:
        async def all_events() -> None:
            async for _ in locked.turn():
                pass

        locked.lock()
        async with anyio.create_task_group() as group:
            group.start_soon(all_events)
            await locked.somebody_waits()
            group.cancel_scope.cancel()
        assert locked.tasks == set()

    assert run(consume) < ROUNDS


def test_a_stream_that_is_closed(run: Any) -> None:
    """Somebody has stopped to listen, and closes it, while its run waits for a lock."""

    async def close(locked: Locked) -> None:
        events = locked.turn()
        async for event in events:
            if event.type == "response.output_text.done":
                break
        locked.lock()
        await locked.somebody_waits()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await events.aclose()
        assert locked.tasks == set()

    assert run(close) < ROUNDS


def test_a_run_that_does_not_settle_in_time(
    run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream does not wait for ever; what was begun comes to its end by itself."""
    monkeypatch.setattr(turns, "CANCEL_TIMEOUT_SECONDS", 0.1)

    async def close(locked: Locked) -> None:
        events = locked.turn()
        async for event in events:
            if event.type == "response.output_text.done":
                break
        locked.lock()
        await locked.somebody_waits()
        await events.aclose()
        assert locked.tasks
        assert "A run goes on 0.1 s after it was cancelled." in caplog.text
        while locked.tasks:
            await asyncio.sleep(0.01)

    run(close)


def test_a_client_of_mlflows_server_that_goes_away(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request ends when its run has settled."""
    from mlflow.genai.agent_server import AgentServer, server

    async def serve(locked: Locked) -> None:
        async def handle(_request: Any) -> Any:
            async for event in locked.turn():
                yield event

        body = json.dumps({"input": [HI], "stream": True}).encode()

        async def messages() -> Any:
            yield {"type": "http.request", "body": body, "more_body": False}
            await locked.somebody_waits()
            yield {"type": "http.disconnect"}

        async def send(_message: Any) -> None:
            pass

        monkeypatch.setattr(server, "_stream_function", handle)
        app = AgentServer("ResponsesAgent").app
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},  # as uvicorn says
            "method": "POST",
            "path": "/invocations",
            "query_string": b"",
            "headers": [],
        }
        locked.lock()
        await app(scope, messages().__anext__, send)
        assert locked.tasks == set()

    assert run(serve) < ROUNDS
