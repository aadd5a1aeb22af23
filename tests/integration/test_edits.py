"""Edits: a client resends a shortened conversation, and the turn takes the place of what is left."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import pytest
from agents import (
    Agent,
    FunctionTool,
    ModelResponse,
    Usage,
    function_tool,
    set_tracing_disabled,
)
from conftest import CONVERSATIONS, admin
from databricks_openai.agents import AsyncDatabricksSession
from openai.types.responses import ResponseFunctionToolCall
from proxy import Proxy
from refusing_model import refuse

from lakebase_sessions import (
    ConversationConflict,
    InvalidTurn,
    Lakebase,
    TablesMissing,
    TurnNotFound,
    invoke_turn,
    stream_turn,
)
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.testing import OfflineModel
from lakebase_sessions.testing import model as offline_model


@pytest.fixture(scope="module")
def mlflow_types() -> Any:
    """MLflow's request and response classes."""
    import mlflow.types.responses

    set_tracing_disabled(True)
    mlflow.tracing.disable()
    return mlflow.types.responses


class Replaying(OfflineModel):
    """Says what it is to say, or something that was never said; refuses what an API refuses."""

    def __init__(self) -> None:
        self.given: list[Any] = []
        """The input of the latest run."""
        self.script: deque[Any] = deque()
        self.fails = False
        self._numbers = itertools.count()
        self._begins = True

    def _respond(self, items: Any) -> Any:
        refuse(items)
        if self._begins:
            self.given = items
        if self.script:
            response = self.script.popleft()
        elif self.fails:
            self._begins = True
            raise RuntimeError("The model fails.")
        else:
            response = offline_model._message(f"Answer {next(self._numbers)}.")
        self._begins = response.type == "message"
        return response

    async def get_response(
        self,
        system_instructions: str | None,
        input: Any,  # noqa: A002 - the interface's name
        *_settings: object,
        **_options: object,
    ) -> ModelResponse:
        return ModelResponse(output=[self._respond(input)], usage=Usage(), response_id=None)

    async def stream_response(
        self,
        system_instructions: str | None,
        input: Any,  # noqa: A002 - the interface's name
        *_settings: object,
        **_options: object,
    ) -> AsyncIterator[Any]:
        for number, event in enumerate(offline_model._events(self._respond(input))):
            event.sequence_number = number
            yield event


@function_tool
async def get_weather(city: str) -> str:
    return f"It is sunny in {city}."


def calls_get_weather(city: str = "Rome") -> ResponseFunctionToolCall:
    response = offline_model._respond(f"What is the weather in {city}?", [get_weather])
    assert isinstance(response, ResponseFunctionToolCall)
    return response


def said(role: str, content: str) -> Any:
    return {"role": role, "content": content}


def text_of(item: Any) -> str:
    content = item["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def messages(items: Any) -> list[tuple[str, str]]:
    """What a chat page shows of items."""
    return [(item["role"], text_of(item)) for item in items if item.get("role")]


class Page:
    """A chat page as Databricks' is: it shows messages, and resends all that it shows.

    On an edit and when an answer is asked for again it forgets that message and all behind it.
    """

    def __init__(
        self,
        types: Any,
        lakebase: Lakebase,
        session_id: str = "s",
        *,
        stream: bool = False,
        tools: list[Any] | None = None,
        **options: Any,
    ) -> None:
        self.model = Replaying()
        self.session = lakebase.session(session_id)
        self.view: list[tuple[str, str]] = []
        self.outputs: dict[str, Any] = {}
        """The latest custom_outputs."""
        self._agent = Agent[Any](name="A", model=self.model, tools=tools or [get_weather])
        self._types = types
        self._stream = stream
        self._options: dict[str, Any] = {"lakebase": lakebase, **options}

    def another_tab(self) -> Page:
        tab = Page(self._types, self._options["lakebase"], stream=self._stream)
        tab._options = self._options
        tab.session = self.session
        tab.view = list(self.view)
        return tab

    async def ask(self, text: str, **custom_inputs: Any) -> None:
        """Send what is shown and a message, and show the answer."""
        shown = [*self.view, ("user", text)]
        output = await self.send([self._rendered(*message) for message in shown], **custom_inputs)
        self.view = shown + messages(output)

    async def send(self, items: list[Any], **custom_inputs: Any) -> list[Any]:
        request = self._types.ResponsesAgentRequest(
            input=items,
            context={"conversation_id": self.session.session_id, "user_id": "mia"},
            custom_inputs=custom_inputs,
        )
        if not self._stream:
            response = await invoke_turn(self._agent, request, **self._options)
            self.outputs = response.custom_outputs
            return [item.model_dump() for item in response.output]
        async for event in stream_turn(self._agent, request, **self._options):
            if event.type == "error":
                raise Told(event.code)
        self.outputs = event.custom_outputs
        assert event.response["id"] == self.outputs["response_id"]
        return list(event.response["output"])

    def forget(self, turn: int) -> str:
        """The user's message of a turn, which is shown no more, nor is what is behind it."""
        asked = [at for at, (role, _) in enumerate(self.view) if role == "user"]
        text = self.view[asked[turn - 1]][1]
        del self.view[asked[turn - 1] :]
        return text

    def _rendered(self, role: str, text: str) -> Any:
        kind = "output_text" if role == "assistant" else "input_text"
        parts = [{"type": kind, "text": text}]
        return {"type": "message", "id": "msg_1", "role": role, "content": parts}

    async def check(self) -> None:
        """What is stored is what is shown, and what the model was given too, with its tools."""
        stored: list[Any] = [*await self.session.get_items()]
        assert messages(stored) == self.view
        assert messages(self.model.given) == self.view[:-1]
        given = len(self.model.given)
        assert [look(item) for item in stored[:given]] == [look(it) for it in self.model.given]


class Told(Exception):
    """The code of an error event."""


def look(item: Any) -> Any:
    if item.get("role"):
        return item["role"], text_of(item)
    return item["type"], item["call_id"], item.get("output", item.get("arguments"))


@pytest.fixture(params=[False, True], ids=["invoke", "stream"])
def stream(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=[False, True], ids=["plain", "atomic"])
def atomic(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def page(mlflow_types: Any, lakebase: Lakebase, stream: bool, atomic: bool) -> Page:
    return Page(mlflow_types, lakebase, stream=stream, atomic=atomic)


async def test_edit_and_regenerate(page: Page) -> None:
    for number in range(1, 4):
        page.model.script.append(calls_get_weather())
        await page.ask(f"Question {number}")
        await page.check()
        assert page.outputs["turn"] == number
    for text in ("Edited", "Edited twice"):
        page.forget(2)
        await page.ask(text)
        await page.check()
        assert page.outputs["turn"] == 2
    await page.ask("Question 3'")
    await page.check()
    await page.ask(page.forget(3))
    await page.check()
    await page.ask(page.forget(1), turn=1)
    await page.check()
    assert page.outputs["turn"] == 1
    assert [turn.number for turn in await page.session.turns()] == [1]
    turns = await page.session.turns()
    assert turns[0].response_id == page.outputs["response_id"]
