"""Conversations over HTTP: OpenAI's Conversations API, and what a side bar needs, on a Lakebase."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from functools import partial
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.responses import StreamingResponse

from lakebase_sessions.conversation.item_pages import (
    add_numbered,
    branch_page,
    check_there,
    item_page,
    one_item,
    remove_item,
)
from lakebase_sessions.conversation.session_id import user_prefix
from lakebase_sessions.factory import default_lakebase
from lakebase_sessions.server.api_objects import (
    INCLUDABLE,
    BranchList,
    ConversationList,
    ConversationObject,
    ConversationUsage,
    DeletedConversation,
    ItemList,
    Restored,
    Rewound,
    TurnList,
    branch_object,
    conversation_object,
    conversation_usage,
    item_list,
    item_number,
    item_object,
    turn_object,
)
from lakebase_sessions.server.failures import Refused
from lakebase_sessions.server.given_items import checked_items
from lakebase_sessions.server.openai_requests import Caller, OpenAIRequests
from lakebase_sessions.server.route import Route
from lakebase_sessions.transfer.export import export_conversations

if TYPE_CHECKING:
    from fastapi import FastAPI

    from lakebase_sessions.conversation.session import LakebaseSession
    from lakebase_sessions.conversation.store import SessionStore
    from lakebase_sessions.lakebase import Lakebase


def add_conversations(
    app: FastAPI, *, user: Caller = None, lakebase: Lakebase | None = None
) -> None:
    """Give an agent server its conversations over HTTP, in one line.

    That is `conversations_router`, and `conversation=`, `previous_response_id=` and a bare string
    as `input` in what the official clients send to the agent itself (`OpenAIRequests`).

    Args:
        app: `AgentServer("ResponsesAgent").app`, before it serves.
        user: Whose conversations: what `invoke_turn` and `stream_turn` get.
        lakebase: Where they are; None is the process-wide default.

    Example:
        >>> add_conversations(app, user=current_user)
    """
    # Routes of the app itself: MLflow's chat proxy takes a router's for paths that nobody serves.
    _add_routes(app.router, user, lakebase)
    app.add_middleware(OpenAIRequests, user=user, lakebase=lakebase)


def conversations_router(*, user: Caller = None, lakebase: Lakebase | None = None) -> APIRouter:
    """The routes of conversations, for an app of FastAPI's, such as `AgentServer(...).app`.

    They speak OpenAI's Conversations API as the official client calls it, on what the agent
    itself remembers, and more in its style: list, search, rename, fork, rewind, turns, branches,
    usage, export. Every route sees the conversations of one user: to it another's do not exist.

    Args:
        user: Whose conversations: a user, or a function of the request's headers that says who it
            is, `current_user`. None: everybody's, which is for a service without users.
        lakebase: Where they are; None is the process-wide default.

    Example:
        >>> app.include_router(conversations_router(user=current_user))
    """
    router = APIRouter()
    _add_routes(router, user, lakebase)
    return router


def _add_routes(router: APIRouter, user: Caller, lakebase: Lakebase | None) -> None:
    routes = _Routes(user, lakebase)
    for path, method, handler, summary in (
        ("", "POST", routes.create, "Create a conversation"),
        ("", "GET", routes.list, "List the user's conversations, or search what was said in them"),
        ("/{conversation_id:path}", "GET", routes.retrieve, "Retrieve a conversation"),
        ("/{conversation_id:path}", "POST", routes.update, "Update metadata, or rename"),
        ("/{conversation_id:path}", "DELETE", routes.delete, "Delete a conversation"),
        ("/{conversation_id:path}/items", "POST", routes.create_items, "Append items"),
        ("/{conversation_id:path}/items", "GET", routes.list_items, "List items"),
        (
            "/{conversation_id:path}/items/{item_id}",
            "GET",
            routes.retrieve_item,
            "Retrieve an item",
        ),
        ("/{conversation_id:path}/items/{item_id}", "DELETE", routes.delete_item, "Delete an item"),
        ("/{conversation_id:path}/turns", "GET", routes.turns, "List turns, with their usage"),
        ("/{conversation_id:path}/usage", "GET", routes.usage, "What all runs have used"),
        ("/{conversation_id:path}/export", "GET", routes.export, "Export as JSON Lines"),
        ("/{conversation_id:path}/fork", "POST", routes.fork, "Copy into a new conversation"),
        ("/{conversation_id:path}/rewind", "POST", routes.rewind, "Go back to before a turn"),
        ("/{conversation_id:path}/branches", "GET", routes.branches, "List what was taken out"),
        (
            "/{conversation_id:path}/branches/{branch_id}/items",
            "GET",
            routes.branch_items,
            "List a branch's items",
        ),
        (
            "/{conversation_id:path}/branches/{branch_id}/restore",
            "POST",
            routes.restore,
            "Put a branch back, in the place of what stands there",
        ),
    ):
        router.add_api_route(
            f"/conversations{path}",
            handler,
            methods=[method],
            summary=summary,
            operation_id=f"conversations_{handler.__name__}",
            tags=["conversations"],
            route_class_override=Route,
        )


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _in_a_path(session_id: str) -> str:
    if session_id in (".", ".."):  # clients and proxies take these for steps
        raise ValueError(f"{session_id!r} cannot be part of a path: no route would reach it.")
    return session_id


_Id = Annotated[str, AfterValidator(_in_a_path)]


class _Create(_Body):
    items: list[dict[str, Any]] | None = Field(None, max_length=1000)
    metadata: dict[str, str] | None = None
    title: str | None = None
    id: _Id | None = None


class _Update(_Body):
    metadata: dict[str, str] | None = None
    title: str | None = None


class _Items(_Body):
    items: list[dict[str, Any]] = Field(max_length=1000)


class _Fork(_Body):
    before_turn: int | None = None
    id: _Id | None = None


class _Rewind(_Body):
    before_turn: int | None = None
    to_response: str | None = None
    keep: bool = True


_Limit = Annotated[int, Query(ge=1, le=100)]
_Include = Annotated[list[str] | None, Query()]


class _Routes:
    """The handlers. What is not a caller's is not found, whatever they send."""

    def __init__(self, user: Caller, lakebase: Lakebase | None) -> None:
        self._caller = user
        self._lakebase = lakebase

    async def create(self, request: Request, body: _Create) -> ConversationObject:
        user = self._user(request)
        items = checked_items(body.items or ())
        created = await self._store().create(
            body.id, user=user, title=body.title, metadata=body.metadata, items=items
        )
        return conversation_object(created, partial(_public, user=user))

    async def list(
        self,
        request: Request,
        limit: _Limit = 20,
        after: str | None = None,
        order: Literal["updated", "created"] = "updated",
        search: str | None = None,
    ) -> ConversationList:
        user = self._user(request)
        page = await self._store().page(
            user=user, order=order, search=search, limit=limit, after=after
        )
        data = [
            conversation_object(each, partial(_public, user=user)) for each in page.conversations
        ]
        return ConversationList(
            data=data,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            has_more=page.next is not None,
            next=page.next,
        )

    async def retrieve(self, request: Request, conversation_id: str) -> ConversationObject:
        return await self._retrieved(request, conversation_id)

    async def update(
        self, request: Request, conversation_id: str, body: _Update
    ) -> ConversationObject:
        user = self._user(request)
        changes = {name: getattr(body, name) for name in body.model_fields_set}
        updated = await self._store().update(conversation_id, user=user, **changes)
        return conversation_object(updated, partial(_public, user=user))

    async def delete(self, request: Request, conversation_id: str) -> DeletedConversation:
        await self._store().delete(conversation_id, user=self._user(request))
        return DeletedConversation(id=conversation_id)

    async def create_items(
        self,
        request: Request,
        conversation_id: str,
        body: _Items,
        include: _Include = None,
    ) -> ItemList:
        wanted = _included(request, include)
        items = checked_items(body.items)
        added = await add_numbered(self._session(request, conversation_id), items)
        return item_list(added, include=wanted)

    async def list_items(  # noqa: PLR0917 - FastAPI calls it by name
        self,
        request: Request,
        conversation_id: str,
        limit: _Limit = 20,
        after: str | None = None,
        order: Literal["asc", "desc"] = "desc",
        include: _Include = None,
    ) -> ItemList:
        wanted = _included(request, include)
        page = await item_page(
            self._session(request, conversation_id),
            after=None if after is None else item_number(after),
            limit=limit,
            backwards=order == "desc",
        )
        return item_list(page.items, has_more=page.has_more, include=wanted)

    async def retrieve_item(
        self, request: Request, conversation_id: str, item_id: str, include: _Include = None
    ) -> dict[str, Any]:
        wanted, number = _included(request, include), item_number(item_id)
        session = self._session(request, conversation_id)
        return item_object(number, await one_item(session, number), wanted)

    async def delete_item(
        self, request: Request, conversation_id: str, item_id: str
    ) -> ConversationObject:
        await remove_item(self._session(request, conversation_id), item_number(item_id))
        return await self._retrieved(request, conversation_id)

    async def turns(self, request: Request, conversation_id: str, limit: _Limit = 100) -> TurnList:
        session = await self._there(request, conversation_id)
        return TurnList(data=[turn_object(turn) for turn in await session.turns(limit)])

    async def usage(self, request: Request, conversation_id: str) -> ConversationUsage:
        session = await self._there(request, conversation_id)
        return conversation_usage(await session.usage())

    async def export(self, request: Request, conversation_id: str) -> StreamingResponse:
        session = await self._there(request, conversation_id)
        lakebase = self._lakebase or default_lakebase()
        lines = export_conversations(lakebase, session_ids=[session.session_id])
        return StreamingResponse(await _spooled(lines), media_type="application/x-ndjson")

    async def fork(
        self, request: Request, conversation_id: str, body: _Fork | None = None
    ) -> ConversationObject:
        session = self._session(request, conversation_id)
        wanted = body or _Fork()
        fork = await session.fork(wanted.id, before_turn=wanted.before_turn)
        return await self._retrieved(request, fork.session_id)

    async def rewind(self, request: Request, conversation_id: str, body: _Rewind) -> Rewound:
        if (body.before_turn is None) == (body.to_response is None):
            raise Refused("Give one of before_turn and to_response.", "before_turn")
        branch = await self._session(request, conversation_id).rewind(
            before_turn=body.before_turn, to_response=body.to_response, keep=body.keep
        )
        return Rewound(branch=None if branch is None else branch_object(branch))

    async def branches(self, request: Request, conversation_id: str) -> BranchList:
        session = await self._there(request, conversation_id)
        return BranchList(data=[branch_object(branch) for branch in await session.branches()])

    async def branch_items(
        self, request: Request, conversation_id: str, branch_id: int
    ) -> ItemList:
        return item_list(await branch_page(self._session(request, conversation_id), branch_id))

    async def restore(self, request: Request, conversation_id: str, branch_id: int) -> Restored:
        branch = await self._session(request, conversation_id).restore(branch_id)
        return Restored(branch=None if branch is None else branch_object(branch))

    def _user(self, request: Request) -> str | None:
        return self._caller(request.headers) if callable(self._caller) else self._caller

    def _session(self, request: Request, conversation_id: str) -> LakebaseSession:
        lakebase = self._lakebase or default_lakebase()
        return lakebase.session(conversation_id, user=self._user(request))

    def _store(self) -> SessionStore:
        return (self._lakebase or default_lakebase()).store

    async def _there(self, request: Request, conversation_id: str) -> LakebaseSession:
        """Its session, if there is such a conversation."""
        session = self._session(request, conversation_id)
        await check_there(session)
        return session

    async def _retrieved(self, request: Request, conversation_id: str) -> ConversationObject:
        user = self._user(request)
        found = await self._store().get(conversation_id, user=user)
        return conversation_object(found, partial(_public, user=user))


async def _spooled(lines: AsyncIterator[bytes]) -> Iterator[bytes]:
    """Read at once and sent from a file: a client that is slow to read keeps no connection."""
    with ExitStack() as stack:
        file = stack.enter_context(TemporaryFile())
        async for line in lines:
            file.write(line)
        file.seek(0)
        stack.pop_all()
    return _sent(file)


def _sent(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        yield from iter(partial(file.read, 2**16), b"")


def _included(request: Request, include: list[str] | None) -> list[str]:
    # The official client writes a list with brackets.
    wanted = [*(include or ()), *request.query_params.getlist("include[]")]
    if unknown := sorted(set(wanted) - INCLUDABLE):
        raise Refused(
            f"{unknown[0][:60]!a} cannot be included. Known: {', '.join(sorted(INCLUDABLE))}.",
            "include",
        )
    return wanted


def _public(session_id: str, *, user: str | None) -> str:
    """The id without its user's prefix, which names them; both are understood."""
    return session_id if user is None else session_id.removeprefix(user_prefix(user))
