"""Calls that wait for somebody's yes or no: asked, answered, declined, once and never unasked."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from agents import set_tracing_disabled
from proxy import Proxy
from refusing_model import RefusingModel
from scripted_model import ScriptedModel, call
from till import DONE, PAY, Chat, Till, asked, kinds, response, stored, text, turns

from lakebase_sessions import (
    ApprovalNotFound,
    ConversationConflict,
    InvalidApproval,
    Lakebase,
)
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.testing import OfflineModel

pytestmark = pytest.mark.long


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    import mlflow

    set_tracing_disabled(True)
    mlflow.tracing.disable()


@pytest.fixture(params=[False, True], ids=["invoke", "stream"])
def streamed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=[False, True], ids=["plain", "atomic"])
def atomic(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def chat(lakebase: Lakebase, streamed: bool, atomic: bool) -> Chat:
    return Chat(lakebase, streamed, atomic)


async def test_a_turn_waits_and_goes_on(
    chat: Chat, lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """One turn with one record, whose items are stored as if nobody had been asked."""
    till = Till()
    first = await chat(till.agent(), PAY)
    assert till.paid == []
    assert kinds(first) == ["function_call", "mcp_approval_request"]
    [waits] = asked(first)
    assert waits == {
        "id": first["output"][1]["id"],
        "name": "make_payment",
        "arguments": '{"to": "Mia"}',
    }
    assert first["output"][1]["server_label"] == "Till"
    assert turns(local, database) == [(1, "waiting", True)]
    assert await stored(lakebase) == ["user", "function_call"]

    second = await chat(till.agent(), [response(waits["id"], True)])
    assert till.paid == ["Mia"]
    assert kinds(second) == ["function_call_output", "message"]
    assert text(second) == DONE
    assert "approvals" not in second["custom_outputs"]
    assert turns(local, database) == [(1, "completed", False)]
    assert await stored(lakebase) == ["user", "function_call", "function_call_output", "assistant"]

    third = await chat(till.agent(), [{"role": "user", "content": "Hello"}])
    assert text(third) == "I see."
    assert turns(local, database) == [(1, "completed", False), (2, "completed", False)]


@pytest.mark.parametrize(
    "said",
    [
        lambda waits: {"items": [response(waits, False, "Too much.")]},
        lambda waits: {
            "approvals": [{"approval_request_id": waits, "approve": False, "reason": "Too much."}]
        },
    ],
    ids=["items", "custom_inputs"],
)
async def test_no_is_no(chat: Chat, said: Callable[[str], Any]) -> None:
    """The model is told why."""
    till = Till()
    [waits] = asked(await chat(till.agent(), PAY))
    answer = await chat(till.agent(), **said(waits["id"]))
    assert till.paid == []
    assert kinds(answer) == ["function_call_output", "message"]
    assert text(answer) == "Too much."


async def test_a_yes_in_custom_inputs(chat: Chat) -> None:
    """With the conversation resent, as a chat UI does it; what is sent with it counts as old."""
    till = Till()
    first = await chat(till.agent(), PAY)
    [waits] = asked(first)
    answer = await chat(till.agent(), [*PAY, *first["output"]], approvals={waits["id"]: True})
    assert till.paid == ["Mia"]
    assert text(answer) == DONE


async def test_a_client_that_resends_everything(chat: Chat, lakebase: Lakebase) -> None:
    """What was asked and answered here is no item for the model, in any later turn."""
    till = Till()
    first = await chat(till.agent(), PAY)
    [waits] = asked(first)
    sent = [*PAY, *first["output"], response(waits["id"], True)]
    second = await chat(till.agent(), sent)
    assert text(second) == DONE
    sent += [*second["output"], {"role": "user", "content": "Hello"}]
    assert text(await chat(till.agent(), sent)) == "I see."
    assert (await stored(lakebase))[-2:] == ["user", "assistant"]
    assert len(await stored(lakebase)) == 6


async def test_an_answer_counts_once(chat: Chat) -> None:
    """A second click, a later one, and one for what nobody asked."""
    till = Till()
    [waits] = asked(await chat(till.agent(), PAY))
    for unknown in ("approval_1", "", "a,b", "a\0b", "x" * 300):
        with pytest.raises(ApprovalNotFound, match="nothing was run"):
            await chat(till.agent(), approvals={unknown: True})
        with pytest.raises(ApprovalNotFound):
            await chat(till.agent(), approvals={waits["id"]: True, unknown: True})
    assert till.paid == []
    await chat(till.agent(), approvals={waits["id"]: True})
    for again in (True, False):
        with pytest.raises(ApprovalNotFound):
            await chat(till.agent(), approvals={waits["id"]: again})
    assert till.paid == ["Mia"]


async def test_ten_clicks_at_once(
    chat: Chat, lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """On as many workers: one runs the tool and stores what it did, the others are told at once."""
    till = Till()
    [waits] = asked(await chat(till.agent(), PAY))

    async def click() -> Any:
        async with Lakebase(
            "local", workspace_client=local.workspace_client(), database=database
        ) as worker:
            again = dataclasses.replace(chat, lakebase=worker)
            return await again(till.agent(), approvals={waits["id"]: True})

    answers = await asyncio.gather(*(click() for _ in range(10)), return_exceptions=True)
    assert till.paid == ["Mia"]
    late = [answer for answer in answers if isinstance(answer, ApprovalNotFound)]
    assert len(late) == 9
    assert await stored(lakebase) == ["user", "function_call", "function_call_output", "assistant"]


async def test_nobody_answers_for_somebody_else(chat: Chat) -> None:
    till = Till()
    [waits] = asked(await chat(till.agent(), PAY, user="mia"))
    for user in ("noah", None):
        with pytest.raises(ApprovalNotFound):
            await chat(till.agent(), user=user, approvals={waits["id"]: True})
    assert till.paid == []
    await chat(till.agent(), user="mia", approvals={waits["id"]: True})
    assert till.paid == ["Mia"]


async def test_a_message_declines(
    chat: Chat, lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """The model does not see the call, nothing is left of the state, and a yes comes late."""
    till = Till()
    [waits] = asked(await chat(till.agent(), PAY))
    model = RefusingModel()
    answer = await chat(till.agent(model), [{"role": "user", "content": "My name is Mia."}])
    assert text(answer) == "Hello! I will remember: your name is Mia."
    assert [item.get("role") for item in model.seen] == ["user", "user"]
    assert turns(local, database) == [(1, "cancelled", False), (2, "completed", False)]
    with pytest.raises(ApprovalNotFound):
        await chat(till.agent(), approvals={waits["id"]: True})
    assert till.paid == []
    assert [item.type for item in await lakebase.session("s").repair()] == ["function_call"]


async def test_whoever_writes_declines(chat: Chat, lakebase: Lakebase) -> None:
    """Upstream's class too, which knows nothing of turns."""
    till = Till()
    [waits] = asked(await chat(till.agent(), PAY))
    await lakebase.session("s").add_items([{"role": "user", "content": "Wait!"}])
    with pytest.raises(ApprovalNotFound):
        await chat(till.agent(), approvals={waits["id"]: True})
    assert till.paid == []
    assert text(await chat(till.agent(), [{"role": "user", "content": "Hi"}])) == "I see."


async def test_a_message_that_is_under_way_when_the_answer_comes(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """The tool runs, so it is the message that has to be sent again."""
    till = Till()
    chat = Chat(lakebase, streamed=False, atomic=True)
    [waits] = asked(await chat(till.agent(), PAY))

    class Answered(OfflineModel):
        async def get_response(self, *args: Any, **kwargs: Any) -> Any:
            await chat(till.agent(), approvals={waits["id"]: True})
            return await super().get_response(*args, **kwargs)

    with pytest.raises(ConversationConflict):
        await chat(till.agent(Answered()), [{"role": "user", "content": "Hi"}])
    assert till.paid == ["Mia"]
    lost = (None, "failed", False)  # what the message's run has used
    assert turns(local, database) == [(1, "completed", False), lost]


async def test_two_calls_and_one_answer(chat: Chat, local: LocalLakebase, database: str) -> None:
    """What was answered is done; the rest waits on, under its id."""
    till = Till()
    calls = [call("make_payment", json.dumps({"to": to})) for to in ("Mia", "Noah")]
    first = await chat(till.agent(ScriptedModel(calls)), PAY)
    mia, noah = asked(first)
    second = await chat(till.agent(), approvals={noah["id"]: True})
    assert till.paid == ["Noah"]
    assert kinds(second) == ["function_call_output", "mcp_approval_request"]
    assert asked(second) == [mia]
    assert turns(local, database) == [(1, "waiting", True)]
    with pytest.raises(ApprovalNotFound):
        await chat(till.agent(), approvals={noah["id"]: True})
    third = await chat(till.agent(), approvals={mia["id"]: False})
    assert till.paid == ["Noah"]
    assert kinds(third) == ["function_call_output", "message"]
    assert turns(local, database) == [(1, "completed", False)]


async def test_one_run_may_ask_again(chat: Chat, local: LocalLakebase, database: str) -> None:
    """For a second call, under another id, also where a gateway numbers its calls."""
    till = Till()
    again = call("make_payment", '{"to": "Mia"}')
    [first] = asked(await chat(till.agent(ScriptedModel([again])), PAY))
    [second] = asked(
        await chat(
            till.agent(ScriptedModel([call("make_payment", '{"to": "Mia"}')])),
            approvals={first["id"]: True},
        )
    )
    assert till.paid == ["Mia"]
    assert first["id"] != second["id"]
    with pytest.raises(ApprovalNotFound):
        await chat(till.agent(), approvals={first["id"]: True})
    await chat(till.agent(), approvals={second["id"]: True})
    assert till.paid == ["Mia", "Mia"]
    assert turns(local, database) == [(1, "completed", False)]


async def test_some_arguments_need_approval(chat: Chat) -> None:
    async def needs(_context: Any, arguments: dict[str, Any], _call_id: str) -> bool:
        return bool(arguments["to"] == "Noah")

    till = Till(needs)
    assert text(await chat(till.agent(), PAY)) == DONE
    answer = await chat(till.agent(), [{"role": "user", "content": "A payment for Noah, please."}])
    assert till.paid == ["Mia"]
    [waits] = asked(answer)
    answer = await chat(till.agent(), approvals={waits["id"]: True})
    assert text(answer) == "Paid Noah."


@pytest.mark.parametrize(
    "said",
    [
        {"approvals": {"ID": "false"}},
        {"approvals": {"ID": 1}},
        {"approvals": {"ID": None}},
        {"approvals": "ID"},
        {"approvals": ["ID"]},
        {"approvals": [{"approval_request_id": "ID"}]},
        {"approvals": [{"approval_request_id": "ID", "approve": True, "reason": 1}]},
        {"approvals": [{"approval_request_id": ["ID"], "approve": True}]},
        {"approvals": {"ID": True}, "items": [response("ID", False)]},
        {"items": [response("ID", True) | {"approve": "yes"}]},
    ],
)
async def test_nothing_but_true_is_a_yes(lakebase: Lakebase, said: dict[str, Any]) -> None:
    chat = Chat(lakebase, streamed=False, atomic=False)
    till = Till()
    [waits] = asked(await chat(till.agent(), PAY))
    said = json.loads(json.dumps(said).replace("ID", waits["id"]))
    with pytest.raises(InvalidApproval):
        await chat(till.agent(), **said)
    assert till.paid == []
    await chat(till.agent(), approvals={waits["id"]: True})
    assert till.paid == ["Mia"]


@pytest.mark.parametrize("none", [{}, [], None])
async def test_no_answers_are_no_answer(lakebase: Lakebase, none: Any) -> None:
    chat = Chat(lakebase, streamed=False, atomic=False)
    answer = await chat(Till().agent(), [{"role": "user", "content": "Hi"}], approvals=none)
    assert text(answer) == "I see."


@pytest.fixture
async def proxied(local: LocalLakebase, database: str, proxy: Proxy) -> Any:
    client = local.workspace_client()
    async with Lakebase("proxied", workspace_client=client, database=database) as lakebase:
        yield lakebase


async def test_round_trips(proxied: Lakebase, proxy: Proxy, streamed: bool, atomic: bool) -> None:
    """Waiting costs a plain turn one more, and an atomic one none; an answer reads as it claims."""
    chat = Chat(proxied, streamed, atomic)
    till = Till()
    for _ in range(3):
        before = proxy.round_trips
        [waits] = asked(await chat(till.agent(), PAY))
        asking = proxy.round_trips - before
        await chat(till.agent(), approvals={waits["id"]: True})
        answering = proxy.round_trips - before - asking
        assert (asking, answering) == ((2, 2) if atomic else (4, 3))
        before = proxy.round_trips
        with pytest.raises(ApprovalNotFound):
            await chat(till.agent(), approvals={waits["id"]: True})
        assert proxy.round_trips - before == 1
