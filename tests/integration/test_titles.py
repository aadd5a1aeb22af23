"""title_with: a title that a function makes, once, when the first answer is stored."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from agents import Agent
from mlflow.types.responses import ResponsesAgentRequest

from lakebase_sessions import Lakebase, invoke_turn, stream_turn
from lakebase_sessions.server import titles
from lakebase_sessions.testing import OfflineModel

pytestmark = pytest.mark.long

agent = Agent(name="A", model=OfflineModel())


def request(words: str, session_id: str = "s", **inputs: Any) -> ResponsesAgentRequest:
    return ResponsesAgentRequest(
        input=[{"role": "user", "content": words}],  # type: ignore[list-item]
        custom_inputs={"session_id": session_id, **inputs},
    )


async def settled() -> None:
    await asyncio.gather(*titles._under_way)


class Titler:
    def __init__(self) -> None:
        self.seen: list[list[Any]] = []

    def plain(self, items: list[Any]) -> str:
        self.seen.append(items)
        return "  A\ntrip " + "far " * 100

    async def awaited(self, items: list[Any]) -> str:
        return self.plain(items)

    def lazy(self, items: list[Any]) -> Any:
        return self.awaited(items)


@pytest.mark.parametrize("kind", ["plain", "awaited", "lazy"])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("atomic", [False, True])
async def test_once_for_a_conversation(
    lakebase: Lakebase, kind: str, streamed: bool, atomic: bool
) -> None:
    titler = Titler()

    async def turn(words: str, **inputs: Any) -> None:
        options: Any = {
            "lakebase": lakebase,
            "atomic": atomic,
            "title_with": getattr(titler, kind),
        }
        if streamed:
            async for _ in stream_turn(agent, request(words, **inputs), **options):
                pass
        else:
            await invoke_turn(agent, request(words, **inputs), **options)
        await settled()

    await turn("Hi")
    await turn("How is the weather in Rome?")
    await turn("Hello", turn=1)
    assert [items[0]["content"] for items in titler.seen] == ["Hi"]
    assert len(titler.seen[0]) == 2
    found = await lakebase.store.get("s")
    assert found.titled
    assert found.title.startswith("A trip far")
    assert len(found.title) <= 200


async def test_a_title_that_was_set_meanwhile_stays(lakebase: Lakebase) -> None:
    async def slow(items: list[Any]) -> str:
        await lakebase.store.update("s", title="Mine")
        return "Theirs"

    await invoke_turn(agent, request("Hi"), lakebase=lakebase, title_with=slow)
    await settled()
    assert (await lakebase.store.get("s")).title == "Mine"


async def test_a_function_that_fails_costs_nobody_an_answer(
    lakebase: Lakebase, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(items: list[Any]) -> str:
        raise RuntimeError("what the user said")

    with caplog.at_level(logging.WARNING):
        answer = await invoke_turn(agent, request("Hi"), lakebase=lakebase, title_with=fails)
        await settled()
    assert answer.output
    assert "RuntimeError" in caplog.text
    assert "what the user said" not in caplog.text
    assert (await lakebase.store.get("s")).title == "Hi"
