"""Titles that a function makes, once the first answer is stored and nobody waits any more."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from lakebase_sessions.conversation.listing import first_words
from lakebase_sessions.conversation.metadata import TITLE_LENGTH
from lakebase_sessions.conversation.session import LakebaseSession
from lakebase_sessions.conversation.store import SessionStore
from lakebase_sessions.workspace.background import in_thread

if TYPE_CHECKING:
    from lakebase_sessions.conversation.session import Owner

logger = logging.getLogger(__name__)

TitleWith = Callable[[list[Any]], str | Awaitable[str]]
"""From a conversation's items to its title."""

_under_way: set[asyncio.Task[None]] = set()
"""The loop itself holds its tasks only weakly."""


def title_soon(title_with: TitleWith, session_id: str, lakebase: Owner) -> None:
    """Have a conversation titled in the background.

    Args:
        title_with: Makes the title; a plain function runs in a thread.
        session_id: Which, as it is stored.
        lakebase: Where it is stored.
    """
    task = asyncio.get_running_loop().create_task(_title(title_with, session_id, lakebase))
    _under_way.add(task)
    task.add_done_callback(_under_way.discard)


async def _title(title_with: TitleWith, session_id: str, lakebase: Owner) -> None:
    store = SessionStore(lakebase)
    try:
        if (await store.get(session_id)).titled:
            return  # the first question was edited
        items: list[Any] = await LakebaseSession(session_id, lakebase=lakebase).get_items()
        made: str | Awaitable[str]
        if inspect.iscoroutinefunction(title_with):
            made = title_with(items)
        else:
            made = await asyncio.wrap_future(_called(title_with, items))
        title = made if isinstance(made, str) else await made
        await store._title(session_id, first_words(title, TITLE_LENGTH))
    except Exception as error:  # noqa: BLE001 - the answer is there; its title is a nicety
        # Not what it says: that may be a part of the conversation.
        logger.warning(
            "Conversation %a has no title: %s. Its first words are shown.",
            session_id,
            type(error).__name__,
        )


def _called(title_with: TitleWith, items: list[Any]) -> Future[str | Awaitable[str]]:
    return in_thread(lambda: title_with(items), "title")
