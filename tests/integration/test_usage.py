"""What a run has used is stored with its turn, however the run ends."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from agents import (
    Agent,
    ModelProvider,
    RunConfig,
    RunContextWrapper,
    RunHooks,
    Runner,
    Usage,
    function_tool,
    set_tracing_disabled,
)
from conftest import admin
from mlflow.types.responses import ResponsesAgentRequest
from openai.types.responses import ResponseUsage
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails
from scripted_model import ScriptedModel, call, message

from lakebase_sessions import ConversationConflict, Lakebase, invoke_turn, stream_turn
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.testing import OfflineModel

pytestmark = pytest.mark.long

PAGE = (Path(__file__).parents[2] / "docs" / "usage.md").read_text()


@pytest.fixture(autouse=True)
def _no_tracing() -> None:
    set_tracing_disabled(True)


class Metered(ScriptedModel):
    """Says what each answer took: so many tokens of input, and one of output."""

    def __init__(self, model: str, tokens: int, *script: Any, fails: bool = False) -> None:
        super().__init__(*script)
        self.model, self._tokens, self._fails, self._left = model, tokens, fails, len(script)

    def reported(self) -> ResponseUsage:
        return ResponseUsage(
            input_tokens=self._tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=2, cache_write_tokens=0),
            output_tokens=1,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=1),
            total_tokens=self._tokens + 1,
        )

    def _check(self) -> None:
        self._left -= 1
        if self._fails and self._left < 0:
            raise RuntimeError("The model is gone.")

    async def get_response(self, *arguments: Any, **options: Any) -> Any:
        self._check()
        response = await super().get_response(*arguments, **options)
        took = self.reported()
        usage = Usage(
            requests=1,
            input_tokens=took.input_tokens,
            input_tokens_details=took.input_tokens_details,
            output_tokens=took.output_tokens,
            output_tokens_details=took.output_tokens_details,
            total_tokens=took.total_tokens,
        )
        return dataclasses.replace(response, usage=usage)

    async def stream_response(self, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        self._check()
        async for event in super().stream_response(*arguments, **options):
            if event.type == "response.completed":
                event.response.usage = self.reported()
            yield event


def used(tokens: int, requests: int = 1) -> dict[str, int]:
    return {
        "requests": requests,
        "input_tokens": tokens * requests,
        "output_tokens": requests,
        "total_tokens": (tokens + 1) * requests,
        "cached_tokens": 2 * requests,
        "reasoning_tokens": requests,
    }


@function_tool
def look_up() -> str:
    return "found"


def request(text: str = "Hi", session_id: str = "s") -> ResponsesAgentRequest:
    return ResponsesAgentRequest(
        input=[{"role": "user", "content": text}],  # type: ignore[list-item]
        custom_inputs={"session_id": session_id},
    )


@pytest.fixture(params=["invoke", "stream"])
def run(request: pytest.FixtureRequest, lakebase: Lakebase) -> Any:
    """A turn of either kind, to its end."""

    async def invoke(agent: Agent[Any], asked: Any, **options: Any) -> None:
        await invoke_turn(agent, asked, lakebase=lakebase, **options)

    async def stream(agent: Agent[Any], asked: Any, **options: Any) -> None:
        async for _ in stream_turn(agent, asked, lakebase=lakebase, **options):
            pass

    return invoke if request.param == "invoke" else stream


atomic_and_plain = pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "plain"])


def turns(local: LocalLakebase, database: str) -> list[dict[str, Any]]:
    with admin(local, database) as connection:
        cursor = connection.execute(
            "SELECT session_id, number, first_item, last_item, status, model, usage, trace_id, "
            "state IS NOT NULL AS is_kept FROM agent_turns ORDER BY created_at, first_item"
        )
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor]


def only(local: LocalLakebase, database: str) -> dict[str, Any]:
    (turn,) = turns(local, database)
    return turn


@atomic_and_plain
async def test_by_model_across_a_handoff(
    run: Any, local: LocalLakebase, database: str, atomic: bool
) -> None:
    other = Agent(name="B", model=Metered("large", 100, [message("Hello.")]))
    first = Metered("small", 10, [call("look_up")], [call("transfer_to_b")])
    await run(
        Agent(name="A", model=first, tools=[look_up], handoffs=[other]), request(), atomic=atomic
    )
    turn = only(local, database)
    assert turn["usage"] == {"small": used(10, requests=2), "large": used(100)}
    assert (turn["model"], turn["status"], turn["number"]) == ("large", "completed", 1)


@atomic_and_plain
async def test_agents_that_are_tools_of_another(
    run: Any, local: LocalLakebase, database: str, atomic: bool
) -> None:
    """They answer at the same time, on models of their own."""
    tools = [
        Agent(name=name, model=Metered(name, tokens, [call("look_up")]), tools=[look_up]).as_tool(
            name, "Asks another."
        )
        for name, tokens in (("one", 100), ("two", 1000))
    ]
    asked = '{"input": "Hi"}'
    model = Metered("small", 10, [call("one", asked), call("two", asked)])
    await run(Agent(name="A", model=model, tools=[*tools]), request(), atomic=atomic)
    turn = only(local, database)
    assert turn["usage"] == {
        "small": used(10, requests=2),
        "one": used(100, requests=2),
        "two": used(1000, requests=2),
    }
    assert turn["model"] == "small"


async def test_a_tool_with_a_configuration_of_its_own(
    run: Any, local: LocalLakebase, database: str
) -> None:
    """Nobody says which model it asks, so it is nobody else's."""
    nested = Agent(name="B", model=Metered("large", 100)).as_tool(
        "ask", "Asks another.", run_config=RunConfig()
    )
    model = Metered("small", 10, [call("ask", '{"input": "Hi"}')])
    await run(Agent(name="A", model=model, tools=[nested]), request())
    usage = only(local, database)["usage"]
    assert usage == {"small": used(10, requests=2), "unknown": used(100)}


@atomic_and_plain
async def test_a_run_that_fails(
    run: Any, local: LocalLakebase, database: str, lakebase: Lakebase, atomic: bool
) -> None:
    await lakebase.session("s").add_items([{"role": "user", "content": "Before"}])
    model = Metered("small", 10, [call("look_up")], fails=True)
    with pytest.raises(RuntimeError, match="gone"):
        await run(Agent(name="A", model=model, tools=[look_up]), request(), atomic=atomic)
    turn = only(local, database)
    assert turn["usage"] == {"small": used(10)}
    assert (turn["model"], turn["status"]) == ("small", "failed")
    assert (turn["first_item"] is None, turn["number"]) == ((True, None) if atomic else (False, 2))
    # The next one has the number that a turn without items leaves free.
    await run(Agent(name="A", model=Metered("small", 10)), request(), atomic=atomic)
    assert turns(local, database)[-1]["number"] == (2 if atomic else 3)


async def test_a_conversation_that_was_never_stored_has_no_rows(
    run: Any, local: LocalLakebase, database: str
) -> None:
    model = Metered("small", 10, [call("look_up")], fails=True)
    with pytest.raises(RuntimeError, match="gone"):
        await run(Agent(name="A", model=model, tools=[look_up]), request(), atomic=True)
    assert turns(local, database) == []


async def test_the_loser_of_a_conflict(
    run: Any, local: LocalLakebase, database: str, lakebase: Lakebase
) -> None:
    await lakebase.session("s").add_items([{"role": "user", "content": "Before"}])

    @function_tool
    async def look_up() -> str:
        await lakebase.session("s").add_items([{"role": "user", "content": "Me first"}])
        return "found"

    agent = Agent(name="A", model=Metered("small", 10, [call("look_up")]), tools=[look_up])
    with suppress(ConversationConflict):  # a stream tells it in its last event
        await run(agent, request(), atomic=True)
    turn = only(local, database)
    assert (turn["status"], turn["first_item"]) == ("failed", None)
    assert turn["usage"] == {"small": used(10, requests=2)}


@atomic_and_plain
async def test_a_run_that_is_cancelled(
    run: Any, local: LocalLakebase, database: str, lakebase: Lakebase, atomic: bool
) -> None:
    await lakebase.session("s").add_items([{"role": "user", "content": "Before"}])
    begun = asyncio.Event()

    @function_tool
    async def look_up() -> str:
        begun.set()
        await asyncio.Event().wait()
        return "never"

    agent = Agent(name="A", model=Metered("small", 10, [call("look_up")]), tools=[look_up])
    running = asyncio.create_task(run(agent, request(), atomic=atomic))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    turn = only(local, database)
    assert turn["usage"] == {"small": used(10)}
    assert (turn["status"], turn["first_item"] is None) == ("cancelled", atomic)


@atomic_and_plain
async def test_a_client_that_leaves_a_stream(
    local: LocalLakebase, database: str, lakebase: Lakebase, atomic: bool
) -> None:
    await lakebase.session("s").add_items([{"role": "user", "content": "Before"}])
    model = Metered("small", 10, [call("look_up")], [message("A long answer.")])
    agent = Agent(name="A", model=model, tools=[look_up])
    stream = stream_turn(agent, request(), lakebase=lakebase, atomic=atomic)
    async for event in stream:
        if event.type == "response.output_text.delta":
            break
    await stream.aclose()
    turn = only(local, database)
    assert turn["usage"]["small"]["requests"] >= 1
    assert (turn["status"], turn["first_item"] is None) == ("cancelled", atomic)


@atomic_and_plain
async def test_a_tool_has_the_last_word(
    run: Any, local: LocalLakebase, database: str, atomic: bool
) -> None:
    model = Metered("small", 10, [call("look_up")])
    agent = Agent(name="A", model=model, tools=[look_up], tool_use_behavior="stop_on_first_tool")
    await run(agent, request(), atomic=atomic)
    turn = only(local, database)
    assert (turn["status"], turn["usage"]) == ("completed", {"small": used(10)})


async def test_what_is_known_in_the_middle_of_a_plain_turn(
    run: Any, local: LocalLakebase, database: str
) -> None:
    """A process that dies leaves this."""
    seen = []

    class Looking(Metered):
        def _check(self) -> None:
            seen.extend(turns(local, database))

    agent = Agent(name="A", model=Looking("small", 10, [call("look_up")]), tools=[look_up])
    await run(agent, request())
    assert [turn["usage"] for turn in seen] == [{}, {"small": used(10)}]
    assert {turn["status"] for turn in seen} == {"in_progress"}
    assert only(local, database)["status"] == "completed"


async def test_a_row_that_cannot_be_written_hides_nothing(
    run: Any,
    local: LocalLakebase,
    database: str,
    lakebase: Lakebase,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await lakebase.session("s").add_items([{"role": "user", "content": "Before"}])

    class Last(Metered):
        def _check(self) -> None:
            with admin(local, database) as connection:
                connection.execute("DROP TABLE agent_turns")
            raise RuntimeError("The model is gone.")

    with caplog.at_level(logging.DEBUG), pytest.raises(RuntimeError, match="gone"):
        await run(Agent(name="A", model=Last("small", 10)), request(), atomic=True)
    assert "A turn's record was not written" in caplog.text


async def test_hooks_and_a_filter_of_ones_own_are_called(run: Any) -> None:
    seen = []

    class Hooks(RunHooks[Any]):
        async def on_llm_end(self, *_: Any) -> None:
            seen.append("hooks")

    async def filtered(data: Any) -> Any:
        seen.append(data.agent.name)
        return data.model_data

    agent = Agent(name="A", model=OfflineModel())
    config: Any
    for config in (
        RunConfig(call_model_input_filter=filtered),
        {"call_model_input_filter": filtered},
    ):
        await run(agent, request(), hooks=Hooks(), run_config=config)
    assert seen == ["A", "hooks"] * 2


class Provider(ModelProvider):
    def get_model(self, model_name: str | None) -> Any:
        return Metered(model_name or "the default", 10)


async def test_what_models_are_called(run: Any, local: LocalLakebase, database: str) -> None:
    """By the agent, by the run's configuration, by the provider, by the class."""

    class Nameless(OfflineModel):
        model = ""

    configured = [
        (Agent(name="A", model="by-name"), RunConfig(model_provider=Provider())),
        (Agent(name="A"), RunConfig(model_provider=Provider())),
        (Agent(name="A", model="x"), RunConfig(model="the-run's", model_provider=Provider())),
        (Agent(name="A", model="x"), RunConfig(model=Metered("an object", 10))),
        (Agent(name="A", model=Nameless(usage=Usage(requests=1))), None),
    ]
    for agent, config in configured:
        await run(agent, request(), run_config=config)
    assert [turn["model"] for turn in turns(local, database)] == [
        "by-name",
        "the default",
        "the-run's",
        "an object",
        "Nameless",
    ]


async def test_a_model_that_reports_nothing(run: Any, local: LocalLakebase, database: str) -> None:
    await run(Agent(name="A", model=OfflineModel()), request())
    turn = only(local, database)
    assert (turn["model"], turn["usage"]) == ("offline", {})


# --- runs without invoke_turn ---------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True], ids=["run", "run_streamed"])
async def test_a_plain_run_is_a_turn(
    lakebase: Lakebase, local: LocalLakebase, database: str, streamed: bool
) -> None:
    """Numbered, with its usage; nobody says whose it is."""

    async def run() -> None:
        model = Metered("small", 10, [call("look_up")])
        agent = Agent(name="A", model=model, tools=[look_up])
        if streamed:
            async for _ in Runner.run_streamed(agent, "Hi", session=session).stream_events():
                pass
        else:
            await Runner.run(agent, "Hi", session=session)

    session = lakebase.session("s")
    await session.add_items([{"role": "user", "content": "1"}])
    for _ in range(2):
        await run()
    found = turns(local, database)
    assert [(turn["number"], turn["status"]) for turn in found] == [
        (2, "completed"),
        (3, "completed"),
    ]
    assert [turn["usage"] for turn in found] == [{"unknown": used(10, requests=2)}] * 2
    assert found[0]["last_item"] + 1 == found[1]["first_item"]
    assert len(await session.get_items()) == 9


async def test_one_session_object_for_runs_at_the_same_time(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    session = lakebase.session("s")
    models = [Metered("small", 10 ** (n + 1), [call("look_up")]) for n in range(5)]
    await asyncio.gather(
        *(
            Runner.run(Agent(name="A", model=model, tools=[look_up]), "Hi", session=session)
            for model in models
        )
    )
    found = sorted(turn["usage"]["unknown"]["input_tokens"] for turn in turns(local, database))
    assert found == [2 * 10 ** (n + 1) for n in range(5)]


async def test_a_context_that_is_used_again(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """Two runs are two turns, each with what it used itself."""
    session, wrapper = lakebase.session("s"), RunContextWrapper[Any](None)
    for text in "12":
        agent = Agent(name="A", model=Metered("small", 10))
        await Runner.run(agent, text, session=session, context=wrapper)
    assert [turn["number"] for turn in turns(local, database)] == [1, 2]
    assert [turn["usage"] for turn in turns(local, database)] == [{"unknown": used(10)}] * 2
    assert wrapper.usage.requests == 2


async def test_an_atomic_turn_around_a_run(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    async with lakebase.session("s").turn() as turn:
        result = await Runner.run(Agent(name="A", model=Metered("small", 10)), "Hi", session=turn)
    assert result.context_wrapper.usage.input_tokens == 10
    assert only(local, database)["usage"] == {"unknown": used(10)}


async def test_two_runs_in_one_turn(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    async with lakebase.session("s").turn() as turn:
        for tokens in (10, 100):
            agent = Agent(name="A", model=Metered("small", tokens))
            await Runner.run(agent, "Hi", session=turn)
    assert only(local, database)["usage"]["unknown"]["input_tokens"] == 110


# --- what the docs say ----------------------------------------------------------------------------


async def test_the_sums_of_a_conversation(run: Any, lakebase: Lakebase) -> None:
    other = Agent(name="B", model=Metered("large", 100, [message("Hello.")]))
    model = Metered("small", 10, [call("transfer_to_b")])
    await run(Agent(name="A", model=model, handoffs=[other]), request())
    sums = await lakebase.session("s").usage()
    assert (sums.requests, sums.total_tokens, sums.cached_tokens) == (2, 112, 4)
    assert sums.by_model["large"].input_tokens == 100
    (turn,) = await lakebase.session("s").turns()
    assert (turn.model, turn.status, turn.usage) == ("large", "completed", sums)


async def test_the_statements_of_the_page(
    run: Any, lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """As they are written there; a fork's copies count once."""
    agent = Agent(name="A", model=Metered("small", 10))
    for _ in range(2):
        await run(agent, request(), user="mia")
    await run(agent, request(), user="noah")
    await lakebase.session("s", user="mia").fork()
    failing = Metered("small", 10, [call("look_up")], fails=True)
    with pytest.raises(RuntimeError, match="gone"):
        await run(Agent(name="A", model=failing, tools=[look_up]), request(), user="noah")
    by_day, by_user, for_nothing = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    with admin(local, database) as connection:
        day = connection.execute("SELECT LOCALTIMESTAMP::date").fetchall()[0][0]
        assert connection.execute(by_day).fetchall() == [(day, "small", 4, 40, 8, 4)]
        assert connection.execute(by_user).fetchall() == [("mia", 2, 22), ("noah", 2, 22)]
        assert connection.execute(for_nothing).fetchall() == [("failed", 1, 11)]


@atomic_and_plain
async def test_a_turn_that_goes_into_a_fork(
    run: Any, local: LocalLakebase, database: str, lakebase: Lakebase, atomic: bool
) -> None:
    await run(Agent(name="A", model=Metered("small", 10)), request())
    edited = ResponsesAgentRequest(
        input=[{"role": "user", "content": "Edited"}],  # type: ignore[list-item]
        custom_inputs={"session_id": "s", "turn": 1},
    )
    await run(Agent(name="A", model=Metered("large", 100)), edited, atomic=atomic, on_edit="fork")
    [fork] = [turn for turn in turns(local, database) if turn["session_id"] != "s"]
    assert fork["usage"] == {"large": used(100)}
    assert (fork["model"], fork["status"], fork["number"]) == ("large", "completed", 1)


@function_tool(needs_approval=True)
def pay() -> str:
    return "Paid."


async def asked_to_pay(lakebase: Lakebase, tools: list[Any], tool: str, **options: Any) -> Any:
    """The answer to a turn that waits, on a model of its own."""
    model = Metered("small", 10, [call(tool)])
    agent = Agent(name="A", model=model, tools=tools)
    answer = await invoke_turn(agent, request(), lakebase=lakebase, **options)
    assert answer.custom_outputs is not None
    [waits] = answer.custom_outputs["approvals"]
    return ResponsesAgentRequest(
        input=[], custom_inputs={"session_id": "s", "approvals": {waits["id"]: True}}
    )


@atomic_and_plain
async def test_a_turn_that_waits_counts_what_it_uses_before_and_after(
    run: Any, local: LocalLakebase, database: str, lakebase: Lakebase, atomic: bool
) -> None:
    """With a tool that asks a model itself, before the run has said anything to the session."""

    def tools() -> list[Any]:
        inner = Agent(name="B", model=Metered("inner", 1000))
        return [inner.as_tool("ask", "Asks another.", needs_approval=True)]

    model = Metered("small", 10, [call("ask", '{"input": "Hi"}')])
    answer = await invoke_turn(
        Agent(name="A", model=model, tools=tools()), request(), lakebase=lakebase, atomic=atomic
    )
    assert answer.custom_outputs is not None
    [waits] = answer.custom_outputs["approvals"]
    turn = only(local, database)
    assert (turn["usage"], turn["status"], turn["is_kept"]) == (
        {"small": used(10)},
        "waiting",
        True,
    )
    yes = ResponsesAgentRequest(
        input=[], custom_inputs={"session_id": "s", "approvals": {waits["id"]: True}}
    )
    await run(Agent(name="A", model=Metered("large", 100), tools=tools()), yes, atomic=atomic)
    turn = only(local, database)
    assert turn["usage"] == {"small": used(10), "inner": used(1000), "large": used(100)}
    assert (turn["model"], turn["status"], turn["number"]) == ("large", "completed", 1)
    assert not turn["is_kept"]


@atomic_and_plain
async def test_a_turn_that_was_approved_and_fails(
    run: Any, local: LocalLakebase, database: str, lakebase: Lakebase, atomic: bool
) -> None:
    yes = await asked_to_pay(lakebase, [pay], "pay", atomic=atomic)
    model = Metered("large", 100, [call("look_up")], fails=True)
    with pytest.raises(RuntimeError, match="gone"):
        await run(Agent(name="A", model=model, tools=[pay, look_up]), yes, atomic=atomic)
    turn = only(local, database)
    assert (turn["status"], turn["usage"]) == ("failed", {"small": used(10), "large": used(100)})
    assert turn["number"] == 1
    assert not turn["is_kept"]


@atomic_and_plain
async def test_an_approved_call_that_fails(
    run: Any, local: LocalLakebase, database: str, lakebase: Lakebase, atomic: bool
) -> None:
    """Before the run has said anything to the session."""
    yes = await asked_to_pay(lakebase, [pay], "pay", atomic=atomic)

    @function_tool(name_override="pay", needs_approval=True, failure_error_function=None)
    def fails() -> str:
        raise RuntimeError("The till is gone.")

    with pytest.raises(Exception, match="till is gone"):
        await run(Agent(name="A", model=Metered("large", 100), tools=[fails]), yes, atomic=atomic)
    turn = only(local, database)
    assert (turn["status"], turn["usage"]) == ("failed", {"small": used(10)})
    assert not turn["is_kept"]


async def test_a_turn_that_would_wait_and_meets_a_conflict(
    local: LocalLakebase, database: str, lakebase: Lakebase
) -> None:
    session = lakebase.session("s")
    await session.add_items([{"role": "user", "content": "Before"}])

    @function_tool
    async def look_up() -> str:
        await lakebase.session("s").add_items([{"role": "user", "content": "Me first"}])
        return "found"

    model = Metered("small", 10, [call("look_up")], [call("pay")])
    agent = Agent(name="A", model=model, tools=[look_up, pay])
    with pytest.raises(ConversationConflict):
        await invoke_turn(agent, request(), lakebase=lakebase, atomic=True)
    turn = only(local, database)
    assert (turn["status"], turn["usage"]) == ("failed", {"small": used(10, requests=2)})
    assert not turn["is_kept"]
