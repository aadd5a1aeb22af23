"""The public names as a user writes them: type-checked by mypy and pyright, never run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, assert_type

import pytest
from agents import Agent, RunConfig, Runner, TResponseInputItem
from agents.memory import Session
from mlflow.types.responses import (
    ResponsesAgentRequest,
    ResponsesAgentResponse,
    ResponsesAgentStreamEvent,
)

import lakebase_sessions
from lakebase_sessions import (
    AtomicTurn,
    Branch,
    DatabaseFailure,
    Lakebase,
    LakebaseSession,
    LakebaseSessionsError,
    LakebaseUnavailable,
    RefusedItem,
    Turn,
    Usage,
    add_error_handlers,
    current_user,
    default_lakebase,
    get_session_id,
    invoke_turn,
    merge_history,
    resolve_lakebase_instance_name,
    session_for,
    stream_turn,
)
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.testing import OfflineModel, SessionContract

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient
    from fastapi import FastAPI

agent = Agent[None](name="Assistant", model=OfflineModel())


async def sessions(request: ResponsesAgentRequest, body: dict[str, object]) -> None:
    assert_type(session_for(request), LakebaseSession)
    assert_type(session_for(body, user="mia@example.com"), LakebaseSession)
    assert_type(session_for("trip-7"), LakebaseSession)
    session = session_for(session_id="trip-7", history_limit=50)
    as_the_sdk_wants_it: Session = session
    await Runner.run(agent, "Hello", session=session)
    await Runner.run(agent, "Hello", session=as_the_sdk_wants_it)
    assert_type(await session.get_items(limit=2), list[TResponseInputItem])
    assert_type(await session.pop_item(), TResponseInputItem | None)
    await session.add_items([{"role": "user", "content": "Hello"}])
    await session.clear_session()
    assert_type(await session.repair(dry_run=True), tuple[RefusedItem, ...])
    async with session.turn() as turn:
        assert_type(turn, AtomicTurn)
        await Runner.run(agent, "Hello", session=turn)
    assert_type(get_session_id(request), str)


async def going_back(session: LakebaseSession) -> None:
    assert_type(await session.turns(limit=5), list[Turn])
    assert_type(await session.usage(), Usage)
    branch = await session.rewind(before_turn=2)
    assert_type(branch, Branch | None)
    assert_type(await session.branches(), list[Branch])
    if branch is not None:
        assert_type(await session.branch_items(branch), list[TResponseInputItem])
        assert_type(await session.restore(branch), Branch | None)


async def lakebases(client: WorkspaceClient) -> None:
    async with Lakebase(
        "my-instance", database="app", schema="memory", workspace_client=client, pool_size=5
    ) as lakebase:
        assert_type(lakebase, Lakebase)
        assert_type(lakebase.session("trip-7", user="mia@example.com"), LakebaseSession)
        assert_type(lakebase.schema, str | None)
        session_for("trip-7", lakebase=lakebase)
    opened = await Lakebase.from_env({"LAKEBASE_INSTANCE_NAME": "my-instance"}).open()
    assert_type(opened, Lakebase)
    await opened.close()
    assert_type(default_lakebase(), Lakebase)
    assert_type(resolve_lakebase_instance_name("my-instance", client), str)


async def handlers(request: ResponsesAgentRequest, app: FastAPI) -> None:
    add_error_handlers(app)
    assert_type(await invoke_turn(agent, request, user=current_user), ResponsesAgentResponse)
    assert_type(
        stream_turn(agent, request, user="mia@example.com", atomic=True),
        AsyncGenerator[ResponsesAgentStreamEvent, None],
    )
    async for event in stream_turn(agent, request):
        assert_type(event, ResponsesAgentStreamEvent)
    assert_type(current_user({"X-Forwarded-User": "mia@example.com"}), str | None)
    RunConfig(session_input_callback=merge_history)


def errors() -> None:
    try:
        assert_type(lakebase_sessions.session_for("trip-7"), LakebaseSession)
    except LakebaseUnavailable as error:
        assert_type(error.outcome_unknown, bool)
    except DatabaseFailure as error:
        assert_type(error.sqlstate, str | None)
    except LakebaseSessionsError as error:
        assert_type(error.code, str)
        assert_type(error.http_status, int)


def tests_of_ones_own() -> None:
    with LocalLakebase() as local:
        assert_type(local, LocalLakebase)
        assert_type(local.environ, dict[str, str])
        with local.fault("/credentials", status=503, times=2):
            pass


class TestMine(SessionContract):
    @pytest.fixture
    def make_session(self) -> Callable[[str], Session]:
        return session_for
