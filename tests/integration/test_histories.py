"""Conversations that diverge, and windows on them, through invoke_turn and stream_turn."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from agents import (
    Agent,
    ModelResponse,
    RunConfig,
    SessionSettings,
    Usage,
    function_tool,
    set_tracing_disabled,
)
from refusing_model import refuse

from lakebase_sessions import Lakebase, invoke_turn, stream_turn
from lakebase_sessions.testing import OfflineModel
from lakebase_sessions.testing import model as offline_model

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def mlflow_types() -> Any:
    """MLflow's request and response classes."""
    import mlflow.types.responses

    set_tracing_disabled(True)
    mlflow.tracing.disable()
    return mlflow.types.responses


@function_tool
def get_weather(city: str) -> str:
    return f"It is sunny in {city}."


class StrictModel(OfflineModel):
    """Refuses what the Responses API refuses, and never repeats itself.

    With `fails` it ends with an error instead of an answer, after its tool calls.
    """

    def __init__(self) -> None:
        self.fails = False
        self.seen: list[Any] = []
        self._numbers = itertools.count()

    def _respond(self, items: Any, tools: Any) -> Any:
        self.seen = items
        refuse(items)
        response = offline_model._respond(items, tools)
        if response.type == "message":
            if self.fails:
                raise RuntimeError("The model fails.")
            response = offline_model._message(f"answer {next(self._numbers)}")
        return response

    async def get_response(
        self,
        system_instructions: str | None,
        input: Any,  # noqa: A002 - the interface's name
        model_settings: object,
        tools: list[Any],
        *_settings: object,
        **_options: object,
    ) -> ModelResponse:
        output = [self._respond(input, tools)]
        return ModelResponse(output=output, usage=Usage(), response_id=None)

    async def stream_response(
        self,
        system_instructions: str | None,
        input: Any,  # noqa: A002 - the interface's name
        model_settings: object,
        tools: list[Any],
        *_settings: object,
        **_options: object,
    ) -> AsyncIterator[Any]:
        for number, event in enumerate(offline_model._events(self._respond(input, tools))):
            event.sequence_number = number
            yield event


class Handler:
    """A handler of one line, plain or atomic, called or streamed."""

    def __init__(self, types: Any, lakebase: Lakebase, stream: bool, **options: Any) -> None:
        self.model = StrictModel()
        self._agent = Agent[Any](name="A", model=self.model, tools=[get_weather])
        self._types = types
        self._stream = stream
        self._options: dict[str, Any] = {"lakebase": lakebase, **options}

    async def __call__(self, items: list[Any], session_id: str = "s", **options: Any) -> None:
        request = self._types.ResponsesAgentRequest(
            input=items, custom_inputs={"session_id": session_id}
        )
        if self._stream:
            async for _ in stream_turn(self._agent, request, **self._options, **options):
                pass
        else:
            await invoke_turn(self._agent, request, **self._options, **options)


def user(text: str) -> Any:
    return {"role": "user", "content": text}


@pytest.fixture(params=[False, True], ids=["invoke", "stream"])
def stream(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=[False, True], ids=["plain", "atomic"])
def atomic(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("of_the_run", [False, True], ids=["history_limit", "session_settings"])
async def test_a_window_that_begins_at_an_output(
    mlflow_types: Any, lakebase: Lakebase, stream: bool, atomic: bool, of_the_run: bool
) -> None:
    """The model is given no output whose call was cut off, wherever the window begins."""
    handler = Handler(mlflow_types, lakebase, stream, atomic=atomic)
    for city in ("Rome", "Oslo"):
        await handler([user(f"What is the weather in {city}?")])
    stored = await lakebase.session("s").get_items()
    assert len(stored) == 8
    for limit in range(9):
        session = lakebase.session(f"s{limit}")
        await session.add_items(stored)
        options: dict[str, Any] = {"history_limit": limit}
        if of_the_run:
            settings = SessionSettings(limit=limit)
            options = {"run_config": RunConfig(session_settings=settings)}
        await handler([user("Hello.")], session.session_id, **options)
        cut_off = limit in (2, 6)
        assert len(handler.model.seen) == limit - cut_off + 1
        assert (await session.get_items())[:8] == stored


class Chat:
    """What somebody's client shows, and what is stored: each item with a number of its own."""

    def __init__(self, seed: int) -> None:
        self.view: list[tuple[int, Any]] = []
        self.stored: list[tuple[int, Any]] = []
        self.starts: set[int] = set()
        """Of turns: the numbers of their first items."""
        self.random = random.Random(seed)
        self._numbers = itertools.count()

    def numbered(self, item: Any) -> tuple[int, Any]:
        return next(self._numbers), item

    def change(self, resends: int, limit: int | None) -> None:
        """Edit, regenerate, or leave something out, if answers that are seen are left to go by."""
        view = list(self.view)
        asked = [at for at, (_, item) in enumerate(view) if item.get("role") == "user"]
        if not asked:
            return
        match self.random.choice(["edit", "regenerate", "leave out", "", "", ""]):
            case "edit":
                del view[self.random.choice(asked) :]
            case "regenerate":
                del view[asked[-1] + 1 :]
            case "leave out":
                del view[self.random.choice(asked)]
        seen = {number for number, _ in self.stored[-limit if limit else 0 :]}
        if any(
            number in seen and item.get("role") == "assistant" for number, item in view[-resends:]
        ):
            self.view = view

    def ask(self) -> None:
        """Something that was never said, unless the last question is to be answered again."""
        if not self.view or self.view[-1][1].get("role") != "user":
            number = next(self._numbers)
            text = self.random.choice(["Hello {}.", "What is the weather in City{}?"])
            self.view.append((number, user(text.format(number))))

    def kept(self, resends: int) -> list[tuple[int, Any]]:
        """Without the turns behind all that is shown; what is asked again is answered again."""
        sent = self.view[-resends:]
        shown = {number for number, _ in sent[:-1]}
        said = [(number, item["role"]) for number, item in self.stored if "role" in item]
        answers = [number for number, role in said if role == "assistant"]
        if not shown & {*answers}:
            return self.stored
        before_answers = [number for number, _ in said][: said.index((answers[0], "assistant"))]
        if sent[0][0] not in before_answers:
            return self.stored
        last = max(at for at, (number, _) in enumerate(self.stored) if number in shown)
        asked = [at for at, (_, item) in enumerate(self.stored) if item.get("role") == "user"]
        behind = [at for at in asked if at > last]
        if not behind:
            return self.stored
        starts = [at for at, (number, _) in enumerate(self.stored) if number in self.starts]
        return self.stored[: max(start for start in starts if start <= behind[0])]

    def new(self, kept: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
        known = {number for number, _ in kept}
        return [said for said in self.view[:-1] if said[0] not in known] + self.view[-1:]


def look(item: Any) -> Any:
    """What an item is, whatever its form."""
    content = item.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    return item.get("role") or item["type"], content or item.get("call_id")


@pytest.mark.parametrize(
    ("resends", "limit"), [(0, None), (8, None), (0, 20)], ids=["all", "its end", "under a window"]
)
@pytest.mark.parametrize("shows_tools", [False, True], ids=["messages", "with tools"])
@pytest.mark.parametrize("on_edit", ["rewind", "append"])
async def test_clients_that_edit_retry_and_stop(
    mlflow_types: Any,
    lakebase: Lakebase,
    stream: bool,
    atomic: bool,
    shows_tools: bool,
    resends: int,
    limit: int | None,
    on_edit: str,
) -> None:
    """After every turn exactly that is stored that was said, each item once and in order.

    Without what an edit has left, if all is resent.
    """
    handler = Handler(
        mlflow_types, lakebase, stream, atomic=atomic, history_limit=limit, on_edit=on_edit
    )
    for seed in range(4):
        chat = Chat(seed)
        session = lakebase.session(f"chat {seed}")
        for _ in range(14):
            chat.change(resends, limit)
            chat.ask()
            ending = chat.random.choice(["ok", "ok", "ok", "lost", "stopped", "failed", "cut off"])
            handler.model.fails = ending in ("failed", "cut off")
            with contextlib.suppress(RuntimeError):
                await handler([item for _, item in chat.view[-resends:]], session.session_id)
            kept = chat.stored if on_edit == "append" else chat.kept(resends)
            expected = chat.stored
            is_held_back = atomic or len(kept) < len(expected)
            if not (is_held_back and handler.model.fails):
                new = chat.new(kept)
                if new[-1][0] in {number for number, _ in kept}:
                    new[-1] = chat.view[-1] = chat.numbered(new[-1][1])  # stored again
                expected = kept + new
                chat.starts.add(new[0][0])
            stored = await session.get_items()
            assert [look(item) for item in stored[: len(expected)]] == [
                look(item) for _, item in expected
            ]
            added = [chat.numbered(dict(item)) for item in stored[len(expected) :]]
            kinds = [look(item)[0] for _, item in added]
            assert kinds in (
                [[], ["function_call", "function_call_output"]]
                if handler.model.fails
                else [["assistant"], ["function_call", "function_call_output", "assistant"]]
            )
            chat.stored = expected + added
            if ending == "ok":
                chat.view += [said for said in added if shows_tools or "role" in said[1]]
            elif ending in ("stopped", "cut off"):
                number, part = chat.numbered({"role": "assistant"})
                chat.view.append((number, part | {"content": f"a part {number}"}))


async def test_an_edit_of_what_a_window_does_not_show(
    mlflow_types: Any, lakebase: Lakebase, stream: bool, atomic: bool
) -> None:
    """Appended, it cannot be told from something new, and is stored again: all of it, and once."""
    handler = Handler(
        mlflow_types, lakebase, stream, atomic=atomic, history_limit=4, on_edit="append"
    )
    for number in range(4):
        await handler([user(f"Hello {number}.")])
    session = lakebase.session("s")
    told: list[Any] = [*await session.get_items()]
    view = told[:2]
    for number in (4, 5, 6):
        view = [*view, user(f"Hello {number}.")]
        await handler(view)
        told += view if number == 4 else view[-1:]
        stored: list[Any] = [*await session.get_items()]
        assert [look(item) for item in stored[:-1]] == [look(item) for item in told]
        told, view = stored, [*view, stored[-1]]
