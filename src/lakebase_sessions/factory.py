"""session_for: request -> session, on the process-wide default Lakebase."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lakebase_sessions.conversation.session_id import check_session_id, get_session_id
from lakebase_sessions.lakebase import Lakebase

if TYPE_CHECKING:
    from agents import RunContextWrapper

    from lakebase_sessions.conversation.session import LakebaseSession

_lock = threading.Lock()
_default: Lakebase | None = None


def session_for(
    request: object = None,
    /,
    *,
    session_id: object = None,
    user: str | Callable[[RunContextWrapper[Any]], str | None] | None = None,
    lakebase: Lakebase | None = None,
    history_limit: int | None = None,
) -> LakebaseSession:
    """The conversation that a request belongs to, ready for `Runner.run(session=...)`.

    A plain function without I/O: the first awaited call on any session opens the Lakebase, once.
    What it returns is an `AsyncDatabricksSession`; its `session_id` is what the client has to
    send back.

    Args:
        request: MLflow's `ResponsesAgentRequest`, a raw JSON body, a session id, or None; where
            the id is looked for is said at `get_session_id`. Without one a new one is made.
        session_id: The id, instead of the request's. None and `""` count as absent.
        user: Keeps users apart: a guessed id of somebody else opens an empty conversation. Take
            it from what the platform authenticated, never from the request's body. Where the run's
            context knows it, a function of the `RunContextWrapper`: the run gets the conversation
            of the user that it returns, and nothing outside a run gets any.
        lakebase: Where to store. None: the process-wide default, `Lakebase.from_env()`.
        history_limit: `get_items()` returns at most the latest so many items.

    Raises:
        InvalidSessionId: The request's id cannot be stored.
        InvalidUser: `user` is blank or not a string.
        InvalidLimit: `history_limit` is not a whole number from 0.
        ConfigurationError: The environment does not say which Lakebase is meant.

    Example:
        >>> import os
        >>> os.environ["LAKEBASE_INSTANCE_NAME"] = "my-instance"
        >>> session_for({"custom_inputs": {"session_id": "trip-7"}}).session_id
        'trip-7'
        >>> session_for(session_id="trip-7", user="mia@example.com").session_id
        'mia%40example.com:trip-7'
        >>> shared = session_for(session_id="trip-7", user=lambda run: run.context["user"])
        >>> # await Runner.run(agent, "Hi", session=shared, context={"user": "mia@example.com"})
    """
    named = check_session_id(session_id) or get_session_id(request)
    return (lakebase or default_lakebase()).session(named, user=user, history_limit=history_limit)


def default_lakebase() -> Lakebase:
    """The process-wide Lakebase of the environment, made on first use.

    Raises:
        ConfigurationError: The environment does not say which Lakebase is meant.
    """
    global _default  # noqa: PLW0603 - one for the process is what it is for
    with _lock:
        if _default is None or _default._closed:
            _default = Lakebase.from_env()
        return _default
