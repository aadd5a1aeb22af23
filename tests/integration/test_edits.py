"""Edits: a client resends a shortened conversation, and the turn replaces what it left out."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from agents import (
    Agent,
    FunctionTool,
    GuardrailFunctionOutput,
    InputGuardrailTripwireTriggered,
    ModelResponse,
    Usage,
    function_tool,
    input_guardrail,
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
from lakebase_sessions.conversation.edits import Edit
from lakebase_sessions.local import LocalLakebase
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


class Replaying(OfflineModel):
    """Says what it is to say, or something that was never said; refuses what an API refuses."""

    def __init__(self) -> None:
        self.given: list[Any] = []
        """The input of the latest run."""
        self.script: deque[Any] = deque()
        self.fails = False
        self.together: asyncio.Barrier | None = None
        """Those that answer at once."""
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

    async def _wait(self) -> None:
        if self.together:
            await self.together.wait()

    async def get_response(
        self,
        system_instructions: str | None,
        input: Any,  # noqa: A002 - the interface's name
        *_settings: object,
        **_options: object,
    ) -> ModelResponse:
        await self._wait()
        return ModelResponse(output=[self._respond(input)], usage=Usage(), response_id=None)

    async def stream_response(
        self,
        system_instructions: str | None,
        input: Any,  # noqa: A002 - the interface's name
        *_settings: object,
        **_options: object,
    ) -> AsyncIterator[Any]:
        await self._wait()
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
            self.outputs = response.custom_outputs or {}
            return [item.model_dump() for item in response.output]
        last: Any = None
        async for last in stream_turn(self._agent, request, **self._options):
            if last.type == "error":
                raise Told(last.code)
        self.outputs = last.custom_outputs
        assert last.response["id"] == self.outputs["response_id"]
        return list(last.response["output"])

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


# --- real conversations ------------------------------------------------------------------------


def recorded(number: int) -> list[Any]:
    """The items of a real conversation."""
    if not CONVERSATIONS.exists():
        pytest.skip(f"{CONVERSATIONS.name} is not there: it is not in the repository.")
    lines = CONVERSATIONS.read_text().splitlines()
    items: list[Any] = json.loads(lines[number])["items"]
    return items


def turns_of(items: list[Any]) -> list[tuple[str, list[Any]]]:
    """What the user says, and what the model answers, calls first."""
    turns: list[tuple[str, list[Any]]] = []
    for item in items:
        if item.get("role") == "user":
            turns.append((item["content"], []))
        elif item.get("type") == "function_call":
            # In what was recorded ids come twice.
            own_id = f"{item['call_id']}_{len(turns)}_{len(turns[-1][1])}"
            turns[-1][1].append(ResponseFunctionToolCall(**item | {"id": "fc", "call_id": own_id}))
        elif item.get("role") == "assistant":
            turns[-1][1].append(offline_model._message(text_of(item)))
    for _, answers in turns:
        if not answers or answers[-1].type != "message":
            answers.append(offline_model._message("Goodbye."))
        # Words between calls would end the turn.
        answers[:] = [it for it in answers[:-1] if it.type != "message"] + answers[-1:]
    return turns


def tools_of(items: list[Any]) -> list[Any]:
    """The tools that the conversation calls, with their outputs."""
    outputs = {
        item["call_id"]: item["output"]
        for item in items
        if item.get("type") == "function_call_output"
    }

    async def replayed(context: Any, _arguments: str) -> Any:
        return outputs[context.tool_call_id.rsplit("_", 2)[0]]

    names = {item["name"] for item in items if item.get("type") == "function_call"}
    schema: dict[str, Any] = {"type": "object", "properties": {}}
    return [
        get_weather,
        *(
            FunctionTool(name, "", schema, replayed, strict_json_schema=False)
            for name in sorted(names)
        ),
    ]


async def drive(page: Page, conversation: list[Any]) -> None:
    for text, answers in turns_of(conversation):
        page.model.script.extend(answers)
        await page.ask(text)
        await page.check()


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=[LONG] if number > 2 else []) for number in range(50)]
)
async def test_every_turn_of_a_real_conversation(
    mlflow_types: Any, lakebase: Lakebase, number: int
) -> None:
    """Edited, edited again, and answered again; the first one by its number."""
    conversation = recorded(number)
    page = Page(
        mlflow_types,
        lakebase,
        stream=bool(number % 2),
        atomic=bool(number // 2 % 2),
        tools=tools_of(conversation),
        max_turns=50,
    )
    await drive(page, conversation)
    for turn in range(len(turns_of(conversation)), 0, -1):
        # Nothing that the assistant has said stands before the first turn.
        by_number = {"turn": 1} if turn == 1 else {}
        for text in (f"Edited {turn}", f"Edited {turn} twice", None):
            asked = page.forget(turn)
            page.model.script.append(calls_get_weather())
            await page.ask(text or asked, **by_number)
            await page.check()
            assert page.outputs["turn"] == turn
    assert len(await page.session.turns()) == 1
    assert len(await page.session.branches()) == min(3 * len(turns_of(conversation)), 50)


# --- several tabs ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 10])
@pytest.mark.parametrize("says_turn", [False, True], ids=["by content", "by number"])
async def test_tabs_that_edit_a_turn_at_once(page: Page, number: int, says_turn: bool) -> None:
    """One wins, the others are told, and nothing is mixed."""
    for question in range(3):
        page.model.script.append(calls_get_weather())
        await page.ask(f"Question {question}")
    before = await page.session.get_items()
    together = asyncio.Barrier(number)
    tabs = [page.another_tab() for _ in range(number)]

    async def edit(place: int, tab: Page) -> bool:
        tab.model.together = together
        tab.forget(2)
        try:
            await tab.ask(f"Edited in tab {place}", **({"turn": 2} if says_turn else {}))
        except (ConversationConflict, Told) as told:
            return str(getattr(told, "code", told)) != "conversation_conflict"
        return True

    won = await asyncio.gather(*(edit(*tab) for tab in enumerate(tabs)))
    assert won.count(True) == 1
    await tabs[won.index(True)].check()
    (branch,) = await page.session.branches()
    assert await page.session.branch_items(branch) == before[4:]


@pytest.mark.parametrize("number", [2, 10])
async def test_tabs_that_send_the_same_turn_at_once(page: Page, number: int) -> None:
    """Its number makes a double click, or a request that is sent again, one turn."""
    await page.ask("Question")
    together = asyncio.Barrier(number)
    tabs = [page.another_tab() for _ in range(number)]
    for tab in tabs:
        tab.model.together = together
    answers = await asyncio.gather(
        *(tab.ask("And now?", turn=2) for tab in tabs), return_exceptions=True
    )
    assert answers.count(None) == 1
    await tabs[answers.index(None)].check()
    for tab in tabs:
        tab.model.together = None
    await tabs[0].session.get_items()
    tabs[0].view = list(page.view)
    await tabs[0].ask("And now?", turn=2)
    await tabs[0].check()


async def test_what_a_tab_that_is_behind_replaces_can_be_restored(page: Page) -> None:
    """A tab that is three turns behind looks like an edit; nothing is lost, item by item."""
    await page.ask("Question")
    tab = page.another_tab()
    for question in range(3):
        page.model.script.append(calls_get_weather())
        await page.ask(f"Question {question}")
    before = await page.session.get_items()
    await tab.ask("Something else")
    await tab.check()
    behind = await page.session.get_items()
    (branch,) = await page.session.branches()
    assert (branch.turn, branch.turns, branch.items) == (2, 3, 12)
    assert await page.session.branch_items(branch) == before[2:]
    swapped_out = await page.session.restore(branch)
    assert await page.session.get_items() == before
    assert swapped_out
    assert await page.session.branch_items(swapped_out) == behind[2:]
    assert [turn.number for turn in await page.session.turns()] == [1, 2, 3, 4]


# --- clients -----------------------------------------------------------------------------------


async def test_a_client_that_resends_tool_items(page: Page) -> None:
    for question in range(3):
        page.model.script.append(calls_get_weather())
        await page.ask(f"Question {question}")
    stored: list[Any] = [*await page.session.get_items()]
    page.forget(2)
    output = await page.send([*stored[:4], said("user", "Edited")])
    page.view += [("user", "Edited"), *messages(output)]
    await page.check()


@pytest.mark.parametrize("resent", [1, 2, 4])
async def test_clients_that_send_a_window_or_repeat_themselves(page: Page, resent: int) -> None:
    """They are never taken for an edit."""
    for _ in range(5):
        shown = [page._rendered(*message) for message in [*page.view, ("user", "Yes.")][-resent:]]
        output = await page.send(shown)
        page.view += [("user", "Yes."), *messages(output)]
        await page.check()
    assert await page.session.branches() == []


async def test_system_messages_go_with_their_turn(page: Page) -> None:
    await page.ask("Question")
    first = [page._rendered(*message) for message in page.view]
    await page.send([*first, said("system", "Be brief."), said("user", "And now?")])
    output = await page.send([*first, said("system", "Be kind."), said("user", "And then?")])
    page.view += [("system", "Be kind."), ("user", "And then?"), *messages(output)]
    await page.check()


async def test_several_messages_are_asked_again_together(page: Page) -> None:
    await page.ask("Question")
    asked = [*(page._rendered(*message) for message in page.view)]
    asked += [said("user", "One."), said("user", "Two.")]
    await page.send(asked)
    output = await page.send(asked)
    page.view += [("user", "One."), ("user", "Two."), *messages(output)]
    await page.check()


@pytest.mark.parametrize("limit", [0, 1, 4, 100])
async def test_a_window_of_the_history(
    mlflow_types: Any, lakebase: Lakebase, stream: bool, atomic: bool, limit: int
) -> None:
    """What is behind it is edited too; the model is given the end of what is kept."""
    page = Page(mlflow_types, lakebase, stream=stream, atomic=atomic, history_limit=limit)
    for question in range(6):
        await page.ask(f"Question {question}")
    for turn, by_number in ((5, {}), (4, {"turn": 4}), (2, {}), (1, {"turn": 1})):
        page.forget(turn)
        shown = [page._rendered(*message) for message in page.view] if not by_number else []
        output = await page.send([*shown, said("user", f"Edited {turn}")], **by_number)
        page.view += [("user", f"Edited {turn}"), *messages(output)]
        assert messages(await page.session.get_items()) == page.view
        kept = page.view[:-2]
        assert messages(page.model.given)[:-1] == kept[len(kept) - min(limit, len(kept)) :]
        assert page.outputs["turn"] == turn


# --- the number of a turn ----------------------------------------------------------------------


async def test_a_number_that_is_too_high(page: Page) -> None:
    await page.ask("Question", turn=1)
    await page.ask("And now?", turn=2)
    before = await page.session.get_items()
    for turn in (4, 5, 2**31, 2**80):
        with pytest.raises((TurnNotFound, Told)) as raised:
            await page.send([said("user", "And then?")], turn=turn)
        assert isinstance(raised.value, TurnNotFound) or str(raised.value) == "turn_not_found"
    assert await page.session.get_items() == before
    await page.ask("And then?", turn=3)
    await page.check()


async def test_a_client_that_sends_back_what_it_was_told(page: Page) -> None:
    """All of custom_outputs: that is no wish to replace the turn that is over."""
    for question in range(3):
        await page.ask(f"Question {question}", **page.outputs)
        await page.check()
        assert page.outputs["turn"] == question + 1


@pytest.mark.parametrize("turn", [0, "1", True, 1.5, [1]])
async def test_what_is_no_number_is_refused_before_anything_is_sent(
    mlflow_types: Any, stream: bool, turn: object
) -> None:
    page = Page(mlflow_types, Lakebase("nowhere.example.com"), stream=stream)
    with pytest.raises((InvalidTurn, Told)) as raised:
        await page.send([said("user", "Hi")], turn=turn)
    assert isinstance(raised.value, InvalidTurn) or str(raised.value) == "invalid_turn"


# --- runs that fail, and tables that are missing -----------------------------------------------


@pytest.mark.parametrize("says_turn", [False, True], ids=["by content", "by number"])
async def test_a_run_that_fails_leaves_everything_as_it_was(page: Page, says_turn: bool) -> None:
    for question in range(3):
        await page.ask(f"Question {question}")
    before = await page.session.get_items(), await page.session.turns()
    view = list(page.view)
    page.forget(2)
    page.model.script.append(calls_get_weather())
    page.model.fails = True
    with pytest.raises(RuntimeError, match="The model fails"):
        await page.ask("Edited", **({"turn": 2} if says_turn else {}))
    assert (await page.session.get_items(), await page.session.turns()) == before
    assert await page.session.branches() == []
    page.model.fails = False
    page.view = view
    page.forget(2)
    await page.ask("Edited")
    await page.check()


async def test_a_guardrail_that_trips_leaves_everything_as_it_was(page: Page) -> None:
    for question in range(3):
        await page.ask(f"Question {question}")
    before = await page.session.get_items()

    @input_guardrail
    async def trips(*_: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)

    page._agent.input_guardrails = [trips]
    page.forget(2)
    with pytest.raises(InputGuardrailTripwireTriggered):
        await page.ask("Edited")
    assert await page.session.get_items() == before


async def test_retries_of_the_run_take_back_only_what_it_added(
    page: Page, lakebase: Lakebase, atomic: bool
) -> None:
    for question in range(3):
        await page.ask(f"Question {question}")
    kept: list[Any] = (await page.session.get_items())[:2]
    new = [said("user", "Edited"), said("assistant", "Fine.")]
    async with page.session.turn() if atomic else page.session.stepped_turn() as turn:
        turn.edit = Edit.of([*kept, new[0]], None, "rewind")
        assert await turn.get_items() == kept
        await turn.add_items([new[0]])
        assert await turn.get_items(limit=1) == [new[0]]
        assert await turn.pop_item() == new[0]
        assert await turn.get_items(limit=3) == kept
        await turn.add_items(new)
    assert await page.session.get_items() == [*kept, *new]


async def test_without_the_tables_of_turns(
    mlflow_types: Any, lakebase: Lakebase, local: LocalLakebase, database: str, stream: bool
) -> None:
    """An edit is appended, as ever; a number cannot be heeded."""
    await lakebase.open()
    with admin(local, database) as connection:
        connection.execute("DROP TABLE agent_turns, agent_branch_items, agent_branches")
    async with Lakebase(
        "local", workspace_client=local.workspace_client(), database=database, create_tables=False
    ) as without:
        page = Page(mlflow_types, without, stream=stream)
        for question in range(2):
            await page.ask(f"Question {question}")
        before = await page.session.get_items()
        page.forget(2)
        await page.ask("Edited")
        assert (await page.session.get_items())[:4] == before
        assert messages(await page.session.get_items())[4:] == page.view[2:]
        with pytest.raises((TablesMissing, Told)):
            await page.ask("Edited again", turn=1)
        assert len(await page.session.get_items()) == 6


# --- beside upstream's class, and on the wire ---------------------------------------------------


@pytest.mark.upstream_logs
async def test_rows_are_upstreams(page: Page, upstream: AsyncDatabricksSession) -> None:
    """What it has stored is edited, and it reads and writes what an edit has stored."""
    for question in range(3):
        page.view += [("user", f"Question {question}"), ("assistant", f"Answer of {question}")]
        await upstream.add_items([said(*message) for message in page.view[-2:]])
    page.forget(2)
    await page.ask("Edited")
    await page.check()
    assert await upstream.get_items() == await page.session.get_items()
    page.view += [("user", "From elsewhere"), ("assistant", "Yes?")]
    await upstream.add_items([said(*message) for message in page.view[-2:]])
    page.forget(3)
    await page.ask("Edited too")
    await page.check()
    await upstream.pop_item()
    assert messages(await page.session.get_items()) == page.view[:-1]
    await upstream.clear_session()
    assert await page.session.branches() == []


@pytest.mark.parametrize("limit", [None, 4])
async def test_an_edited_turn_is_two_round_trips(
    mlflow_types: Any,
    local: LocalLakebase,
    database: str,
    proxy: Proxy,
    stream: bool,
    atomic: bool,
    limit: int | None,
) -> None:
    async with Lakebase(
        "proxied", workspace_client=local.workspace_client(), database=database
    ) as lakebase:
        page = Page(mlflow_types, lakebase, stream=stream, atomic=atomic, history_limit=limit)
        costs = []
        for turn, by_number in ((1, {}), (2, {}), (3, {}), (4, {}), (5, {"turn": 5})):
            await page.ask(f"Question {turn}", **by_number)
        for turn, by_number in ((3, {}), (2, {"turn": 2}), (2, {}), (1, {"turn": 1}), (2, {})):
            if turn <= len(page.view) // 2:
                page.forget(turn)
            page.model.script.append(calls_get_weather())
            before = proxy.round_trips
            await page.ask(f"Edited {turn}", **by_number)
            costs.append(proxy.round_trips - before)
            assert messages(await page.session.get_items()) == page.view
        assert costs == [2, 2, 2, 2, 2 if atomic else 4]  # the last one is none
        page._options["on_edit"] = "fork"
        page.forget(2)
        before = proxy.round_trips
        await page.ask("Edited")
        assert proxy.round_trips - before == 3


async def test_append_leaves_everything_before_it(page: Page) -> None:
    page._options["on_edit"] = "append"
    for question in range(2):
        await page.ask(f"Question {question}")
    before = await page.session.get_items()
    page.forget(2)
    await page.ask("Edited", turn=2)
    assert (await page.session.get_items())[:4] == before
    assert page.outputs["turn"] == 3


@pytest.mark.parametrize("says_turn", [False, True], ids=["by content", "by number"])
async def test_fork_puts_the_edit_into_a_conversation_of_its_own(
    page: Page, says_turn: bool
) -> None:
    page._options["on_edit"] = "fork"
    for question in range(3):
        page.model.script.append(calls_get_weather())
        await page.ask(f"Question {question}")
    assert page.outputs["session_id"] == "s"
    before: list[Any] = [*await page.session.get_items()]
    page.forget(2)
    await page.ask("Edited", **({"turn": 2} if says_turn else {}))
    assert page.outputs["session_id"] not in ("s", "")
    assert page.outputs["turn"] == 2
    assert await page.session.get_items() == before
    assert await page.session.branches() == []
    page.session = page.session._sibling(page.outputs["session_id"])
    await page.check()
    _, edited = await page.session.turns()
    assert edited.response_id == page.outputs["response_id"]
    await page.ask("And now?")
    await page.check()
    assert page.outputs["session_id"] == page.session.session_id


async def test_a_run_that_fails_leaves_no_fork(page: Page, lakebase: Lakebase) -> None:
    page._options["on_edit"] = "fork"
    for question in range(2):
        await page.ask(f"Question {question}")
    page.forget(2)
    page.model.fails = True
    with pytest.raises(RuntimeError, match="The model fails"):
        await page.ask("Edited")
    await page.session.get_items()
    async with page.session.engine.connect() as connection:
        found = await connection.exec_driver_sql("SELECT count(*) FROM agent_sessions")
        assert found.scalar() == 1


async def test_a_fork_holds_what_the_model_saw(lakebase: Lakebase) -> None:
    """Another tab has put other turns in the place of those that it begins with."""
    session = lakebase.session("s")
    await session.add_items([said("user", "1"), said("assistant", "1")])
    await session.add_items([said("user", "2"), said("assistant", "2")])
    resent = [said("user", "1"), said("assistant", "1"), said("user", "2, edited")]
    with pytest.raises(ConversationConflict):
        async with session.turn() as turn:
            turn.edit = Edit.of(resent, None, "fork")
            assert len(await turn.get_items()) == 2
            await session.rewind(before_turn=1)
            for text in ("A", "B"):
                await session.add_items([said("user", text), said("assistant", text)])
            await turn.add_items([said("user", "2, edited"), said("assistant", "3")])
    assert [each.session_id async for each in lakebase.store.list()] == ["s"]


async def test_a_fork_is_there_with_its_turn_or_not_at_all(lakebase: Lakebase) -> None:
    """Cancelled at whichever moment."""
    resent = [said("user", "1"), said("assistant", "1"), said("user", "2, edited")]
    for rounds in range(24):
        session = lakebase.session("s", user=f"{rounds}")
        for text in "12":
            await session.add_items([said("user", text), said("assistant", text)])

        ready = asyncio.Event()

        async def edit(session: Any = session, ready: asyncio.Event = ready) -> None:
            async with session.turn() as turn:
                turn.edit = Edit.of(resent, None, "fork")
                await turn.get_items()
                ready.set()
                await turn.add_items([said("user", "2, edited"), said("assistant", "3")])

        editing = asyncio.ensure_future(edit())
        await ready.wait()
        for _ in range(rounds):
            await asyncio.sleep(0)
        editing.cancel()
        with suppress(asyncio.CancelledError):
            await editing
        lengths = [each.items async for each in lakebase.store.list(user=f"{rounds}")]
        assert lengths in ([4], [4, 4]), rounds
