"""Databricks' managed session stores (`w.agent_kit`), to and from.

They have a place for items, labels and one actor a session, and none for branches and records of
turns. The server sets all dates: order comes from appending.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from lakebase_sessions.conversation.items import decode
from lakebase_sessions.conversation.session_id import scope_to_user
from lakebase_sessions.errors import (
    ConfigurationError,
    ConversationExists,
    InvalidSessionId,
    from_workspace_error,
)
from lakebase_sessions.transfer.lines import Head, Item, Record, as_json, checked
from lakebase_sessions.workspace.background import in_thread, wait_for

if TYPE_CHECKING:
    from databricks.sdk.service.agentkit import AgentKitAPI

STORE = re.compile(r"session-stores/[a-z][a-z0-9-]{2,54}")
"""What names a store, as the platform does."""

NOBODY = "anonymous"
"""The actor of what belongs to no user: every session needs one."""
TITLE = "title"
"""The label that holds the title."""

AT_ONCE = 100
"""Items in one call: the most that a page of them has."""
CHARACTERS_AT_ONCE = 300_000
CALL_SECONDS = 300.0
_ID = re.compile(r"(?!\.)[A-Za-z0-9._~-]{1,255}")
"""The SDK puts an id into a path as it is."""

T = TypeVar("T")


def store_name(text: str) -> str:
    """The resource name of a store, checked before it is put into a path.

    Raises:
        ConfigurationError: It is none.
    """
    if STORE.fullmatch(text) is None:
        raise ConfigurationError(
            f"{text!a} is no managed session store: its name is session-stores/ and 3 to 55 "
            "lowercase letters, digits and hyphens."
        )
    return text


async def managed_records(kit: AgentKitAPI, store: str) -> AsyncIterator[Record]:
    """The sessions of a store, each in its actor's scope.

    Raises:
        LakebaseSessionsError: The workspace refused, or there is no such store.
    """
    sessions = _pages(kit.list_sessions(store, order_by="create_time asc", page_size=AT_ONCE))
    async for session in sessions:
        user = None if session.actor_id == NOBODY else session.actor_id
        labels = dict(session.metadata or {})
        used = session.last_activity_time or session.create_time
        yield checked(
            {
                "conversation": scope_to_user(session.session_id, user),
                "created_at": _moment(session.create_time),
                "updated_at": _moment(used),
                "title": labels.pop(TITLE, None),
                "metadata": labels,
            },
            Head,
        )
        items = kit.list_session_items(session.name, order_by="create_time asc", page_size=AT_ONCE)
        async for item in _pages(items):
            yield Item(as_json(item.data), _moment(item.create_time), None)


async def send(
    kit: AgentKitAPI, store: str, records: AsyncIterator[Record], *, replace: bool = False
) -> AsyncIterator[int]:
    """Store conversations in a managed store; yields how many are there.

    A session that could not be filled is deleted again. Rows that are no JSON, branches and records
    of turns are left out.

    Raises:
        ConversationExists: There is a session of this id, and `replace` is False.
        InvalidSessionId: An id cannot be one there.
        LakebaseSessionsError: The workspace refused.
    """
    name: str | None = None
    held: list[Any] = []
    count = size = 0
    try:
        async for record in records:
            if isinstance(record, Head):
                if name is not None:
                    await _append(kit, name, held)
                    name, held, size, count = None, [], 0, count + 1
                    yield count
                name = await _begin(kit, store, record, replace=replace)
            elif isinstance(record, Item) and record.branch is None:
                held += decode([record.text])
                size += len(record.text)
                if name is not None and (len(held) == AT_ONCE or size > CHARACTERS_AT_ONCE):
                    await _append(kit, name, held)
                    held, size = [], 0
        if name is not None:
            await _append(kit, name, held)
            name = None
            yield count + 1
    except BaseException:
        if name is not None:
            left = name
            await _call(lambda: kit.delete_session(left), "delete what is incomplete")
        raise


async def _begin(kit: AgentKitAPI, store: str, head: Head, *, replace: bool) -> str:
    from databricks.sdk.errors import NotFound, ResourceConflict  # noqa: PLC0415
    from databricks.sdk.service.agentkit import Session  # noqa: PLC0415

    stored = head.fields["conversation"]
    user, colon, session_id = stored.partition(":")
    if not colon:
        user, session_id = "", stored
    if _ID.fullmatch(session_id) is None:
        raise InvalidSessionId(
            f"{session_id!a} cannot name a managed session: letters, digits and ._~- can."
        )
    name = f"{store}/sessions/{session_id}"
    title = head.fields.get("title")
    labels = {**(head.fields.get("metadata") or {}), **({TITLE: title} if title else {})}
    session = Session(actor_id=unquote(user) or NOBODY, metadata=labels)

    def begin() -> None:
        if replace:
            with contextlib.suppress(NotFound):
                kit.delete_session(name)
        try:
            kit.create_session(store, session, session_id=session_id)
        except ResourceConflict as error:
            raise ConversationExists(
                f"There is a session {session_id!a} in {store} already."
            ) from error

    await _call(begin, f"create a session in {store}")
    return name


async def _append(kit: AgentKitAPI, name: str, items: list[Any]) -> None:
    from databricks.sdk.service.agentkit import SessionItem  # noqa: PLC0415

    if items:
        made = [SessionItem(data=item) for item in items]
        await _call(lambda: kit.append_session_items(name, made), f"append to {name}")


async def _pages(found: Iterator[Any]) -> AsyncIterator[Any]:
    while page := await _call(lambda: list(itertools.islice(found, AT_ONCE)), "read the store"):
        for each in page:
            yield each


async def _call(work: Callable[[], T], action: str) -> T:
    try:
        return await wait_for(in_thread(work, "managed"), CALL_SECONDS)
    except Exception as error:
        raise from_workspace_error(error, action) from error


def _moment(stamp: Any) -> str:
    return f"{stamp.ToDatetime():%Y-%m-%dT%H:%M:%S.%f}Z"
