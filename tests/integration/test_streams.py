"""Whatever a model sends and however: a stream ends with what invoke_turn answers."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import pytest
from agents import (
    Agent,
    HostedMCPTool,
    MCPToolApprovalFunctionResult,
    MCPToolApprovalRequest,
    Model,
    RunConfig,
    RunErrorHandlerResult,
    function_tool,
    handoff,
    set_tracing_disabled,
)
from agents.extensions import handoff_filters
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_http import chat_model, responses_model
from scripted_model import (
    CITED,
    CITED_FILE,
    ScriptedModel,
    Style,
    call,
    code_interpreter,
    file_search,
    image,
    mcp_approval,
    mcp_call,
    message,
    reasoning,
    refusal,
    web_search,
)

from lakebase_sessions import Lakebase, invoke_turn, stream_turn
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.testing.plugin import TEMPLATE

Script = Sequence[Sequence[Any]]
"""Responses of a model, each a list of items."""
MakesAgent = Callable[[Model], Agent[Any]]


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    import mlflow

    set_tracing_disabled(True)
    mlflow.tracing.disable()


@pytest.fixture(scope="module")
def database_for_module(local_for_run: LocalLakebase) -> Iterator[str]:
    name = f"lakebase_sessions_streams_{os.getpid()}"
    local_for_run.create_database(name, template=TEMPLATE)
    yield name
    local_for_run.drop_database(name)


@pytest.fixture
async def lakebase(local: LocalLakebase, database_for_module: str) -> AsyncIterator[Lakebase]:
    """For all of them: their conversations have different ids."""
    async with Lakebase(
        "local", workspace_client=local.workspace_client(), database=database_for_module
    ) as lakebase:
        yield lakebase


@function_tool
def get_weather() -> str:
    return "It is sunny."


@function_tool
def get_time() -> list[str]:
    return ["12", "00"]


def two_agents(model: Model) -> Agent[Any]:
    """They hand over to each other."""
    first, second = (
        Agent[Any](name=name, model=model, tools=[get_weather, get_time]) for name in "AB"
    )
    for agent, other in ((first, second), (second, first)):
        agent.handoffs = [handoff(other, tool_name_override="hand_over")]
    return first


def request(session_id: str) -> Any:
    from mlflow.types.responses import ResponsesAgentRequest

    said: Any = {"role": "user", "content": "Hi"}
    return ResponsesAgentRequest(input=[said], custom_inputs={"session_id": session_id})


def sent(result: Any) -> dict[str, Any]:
    """As MLflow's server puts it on the wire."""
    from mlflow.genai.agent_server.validator import ResponsesAgentValidator

    stream = hasattr(result, "type")
    wire: dict[str, Any] = ResponsesAgentValidator().validate_and_convert_result(result, stream)
    return wire


def comparable(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the ids that are random in each run."""
    made_up = ("item_", "made_up_", "approval_")
    return [
        item | {"id": None} if str(item.get("id")).startswith(made_up) else item for item in items
    ]


async def both(
    lakebase: Lakebase,
    agents: tuple[Agent[Any], Agent[Any]],
    **options: Any,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The output of invoke_turn with the first, the events of stream_turn with the second."""
    ids = [uuid.uuid4().hex for _ in agents]
    answer = await invoke_turn(agents[0], request(ids[0]), lakebase=lakebase, **options)
    events = [
        sent(event)
        async for event in stream_turn(agents[1], request(ids[1]), lakebase=lakebase, **options)
    ]
    if options.get("max_turns") != 0:  # the SDK stores what was said in the first of its turns
        stored: list[Any] = [await lakebase.session(one).get_items() for one in ids]
        assert comparable(stored[0]) == comparable(stored[1])
    return sent(answer)["output"], events


def scripted(
    script: Script, style: Style, agent: MakesAgent = two_agents
) -> tuple[Agent[Any], Agent[Any]]:
    return agent(ScriptedModel(*script, style=style)), agent(ScriptedModel(*script, style=style))


def check(output: list[dict[str, Any]], events: list[dict[str, Any]]) -> None:
    """What holds for every stream."""
    kinds = [event["type"] for event in events]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.created") == kinds.count("response.completed") == 1
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    final = events[-1]["response"]["output"]
    assert comparable(final) == comparable(output)

    indices: dict[str, int] = {}
    steps: dict[str, list[str]] = {}
    for event in events[1:-1]:
        item_id = event["item_id"] if "item_id" in event else event["item"]["id"]
        assert indices.setdefault(item_id, event["output_index"]) == event["output_index"]
        steps.setdefault(item_id, []).append(event["type"].removeprefix("response.output_item."))
    assert list(indices.values()) == list(range(len(indices))), "one index and one id an item"
    for of_it in steps.values():
        assert (of_it[0], of_it[-1]) == ("added", "done")
        assert of_it.count("added") == of_it.count("done") == 1
    assert set(indices) >= {item["id"] for item in final}


def check_in_order(events: list[dict[str, Any]]) -> None:
    """What holds where the model tells of its items in their order."""
    final = events[-1]["response"]["output"]
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["output_index"] for event in done] == list(range(len(done)))
    kept = {item["id"] for item in final}
    assert [event["item"] for event in done if event["item"]["id"] in kept] == final


SCRIPTS: dict[str, Script] = {
    "a message": [[message("Hello you")]],
    "two parts": [[message("Hello", "you")]],
    "a refusal": [[refusal("I will not"), call("get_weather")], [message("But this")]],
    "reasoning": [[reasoning("Hm", "so"), message("Hello")]],
    "empty reasoning": [[reasoning(), message("Hello")]],
    "a tool": [[call("get_weather")], [message("Sunny")]],
    "parallel tools": [[call("get_weather"), call("get_time")], [message("Sunny")]],
    "a message and a tool": [[message("I look"), call("get_weather")], [message("Sunny")]],
    "an empty message": [[message(), call("get_weather")], [message("Sunny")]],
    "a handoff": [[call("hand_over")], [message("I am B")]],
    "there and back": [[call("hand_over")], [call("hand_over")], [message("I am A")]],
    "two handoffs at once": [[call("hand_over"), call("hand_over")], [message("B")]],
    "a handoff and a tool": [[call("get_time"), call("hand_over")], [message("B")]],
    "code": [[code_interpreter(), message("2")]],
    "code in the middle": [[reasoning("Hm"), code_interpreter(), message("2")]],
    "nothing but code": [[code_interpreter()], [message("2")]],
    "hosted tools": [[web_search(), file_search(), mcp_call(), image(), message("Sunny")]],
    "citations": [[message("a b", annotations=[CITED])]],
    "a cited file": [[code_interpreter(), message("a b", annotations=[CITED, CITED_FILE])]],
}
STYLES = {
    "responses": Style(),
    "no created": Style(created=False),
    "no added": Style(added=False),
    "no content": Style(content=False),
    "no done": Style(done=False),
    "no output": Style(output=False),
    "only completed": Style(created=False, added=False, content=False, done=False),
    "only done": Style(created=False, added=False, content=False, output=False),
    "only words": Style(created=False, added=False, done=False),
    "placeholders": Style(ids="placeholder"),
    "placeholders, no created": Style(ids="placeholder", created=False),
    "repeated ids": Style(ids="repeated", created=False),
    "made up ids": Style(ids="made up"),
    "no indices": Style(indices=False),
    "together": Style(together=True),
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("script", SCRIPTS)
async def test_a_stream_ends_as_invoke_turn_answers(
    lakebase: Lakebase, script: str, style: str
) -> None:
    output, events = await both(lakebase, scripted(SCRIPTS[script], STYLES[style]))
    check(output, events)
    if style not in ("together", "only words"):
        check_in_order(events)


async def test_a_call_that_is_repeated(lakebase: Lakebase) -> None:
    """The Runner keeps one of them, and so does the response in the end."""
    once = call("get_weather")
    output, events = await both(lakebase, scripted([[once, once], [message("Sunny")]], Style()))
    check(output, events)
    assert [item["type"] for item in output] == ["function_call", "function_call_output", "message"]


def responses(final: bool) -> st.SearchStrategy[list[Any]]:
    """One response; the last has words and no calls."""
    asides = st.sampled_from(
        [reasoning("Hm", "so"), reasoning(), message(), code_interpreter(), web_search(), image()]
    )
    calls = st.sampled_from(["get_weather", "get_time", "hand_over"])
    says = st.builds(
        lambda texts, cited: message(*texts, annotations=cited),
        st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=3),
        st.lists(st.sampled_from([CITED, CITED_FILE]), max_size=2),
    )
    acts = says if final else st.builds(call, calls)
    return st.builds(
        lambda before, act, after: [*before, act, *after],
        st.lists(asides | (st.nothing() if final else says), max_size=3),
        acts,
        st.lists(asides if final else asides | acts | says, max_size=3),
    )


scripts = st.builds(
    lambda before, last: [*before, last], st.lists(responses(False), max_size=3), responses(True)
)
styles = st.builds(
    Style,
    created=st.booleans(),
    added=st.booleans(),
    content=st.booleans(),
    done=st.booleans(),
    output=st.booleans(),
    together=st.booleans(),
    ids=st.sampled_from(["own", "placeholder", "repeated", "made up"]),
).filter(lambda style: style.output or (style.done and not style.together))


@pytest.mark.long
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(script=scripts, style=styles)
async def test_any_script_in_any_style(lakebase: Lakebase, script: Script, style: Style) -> None:
    output, events = await both(lakebase, scripted(script, style))
    check(output, events)


# --- what agents do beside talking and calling ---------------------------------------------------


@function_tool(needs_approval=True)
def delete_all() -> str:
    return "gone"


def approve(_request: MCPToolApprovalRequest) -> MCPToolApprovalFunctionResult:
    return {"approve": True}


def mcp_tool() -> HostedMCPTool:
    return HostedMCPTool(
        tool_config={"type": "mcp", "server_label": "s", "server_url": "https://s.example"},
        on_approval_request=approve,
    )


def without_tools(data: Any) -> Any:
    return handoff_filters.remove_all_tools(data)


def filtering(model: Model) -> Agent[Any]:
    second = Agent[Any](name="B", model=model)
    passed = handoff(second, tool_name_override="hand_over", input_filter=without_tools)
    return Agent(name="A", model=model, tools=[get_weather], handoffs=[passed])


def built(**options: Any) -> MakesAgent:
    return lambda model: Agent(name="A", model=model, **options)


TURNS: dict[str, tuple[Script, MakesAgent, dict[str, Any]]] = {
    "an approval is asked for": (
        [[message("I clean up"), call("delete_all"), call("get_weather")]],
        built(tools=[delete_all, get_weather]),
        {},
    ),
    "an approval is given": (
        [[mcp_approval()], [message("Done")]],
        built(tools=[mcp_tool()]),
        {},
    ),
    "a filter on a handoff": (
        [[call("get_weather")], [call("hand_over")], [message("B")]],
        filtering,
        {},
    ),
    "a handoff with a nested history": (
        [[call("get_weather"), call("hand_over")], [message("B")]],
        two_agents,
        {"run_config": RunConfig(nest_handoff_history=True)},
    ),
    "a tool has the last word": (
        [[call("get_weather")]],
        built(tools=[get_weather], tool_use_behavior="stop_on_first_tool"),
        {},
    ),
    "an agent is a tool": (
        [[call("ask")], [message("It said so")]],
        lambda model: Agent(
            name="A",
            model=model,
            tools=[
                Agent[Any](name="B", model=ScriptedModel()).as_tool(
                    tool_name="ask", tool_description="Ask B."
                )
            ],
        ),
        {},
    ),
    "too many turns": (
        [[call("get_weather")]] * 3,
        built(tools=[get_weather]),
        {"max_turns": 2, "error_handlers": {"max_turns": lambda _error: "Enough"}},
    ),
    "no turn at all": (
        [],
        built(),
        {"max_turns": 0, "error_handlers": {"max_turns": lambda _error: "Not today"}},
    ),
    "no word of it": (
        [],
        built(),
        {
            "max_turns": 0,
            "error_handlers": {
                "max_turns": lambda _error: RunErrorHandlerResult("No", include_in_history=False)
            },
        },
    ),
}


@pytest.mark.parametrize("style", ["responses", "only completed", "placeholders"])
@pytest.mark.parametrize("turn", TURNS)
async def test_whatever_the_agent_does(lakebase: Lakebase, turn: str, style: str) -> None:
    script, agent, options = TURNS[turn]
    output, events = await both(lakebase, scripted(script, STYLES[style], agent), **options)
    check(output, events)
    check_in_order(events)


# --- the SDK's own models, over HTTP --------------------------------------------------------------


@pytest.mark.parametrize("model", [chat_model, responses_model])
@pytest.mark.parametrize(
    "script",
    ["a message", "a tool", "parallel tools", "a message and a tool", "a handoff and a tool"],
)
async def test_the_models_of_the_sdk(lakebase: Lakebase, script: str, model: Any) -> None:
    agents = two_agents(model(*SCRIPTS[script])), two_agents(model(*SCRIPTS[script]))
    output, events = await both(lakebase, agents)
    check(output, events)  # a call of the Chat Completions API is done before the words before it
