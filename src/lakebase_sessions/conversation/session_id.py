"""Request -> session id: where it is looked for, what it may be, and whose it is."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import uuid_utils

from lakebase_sessions.errors import InvalidSessionId, InvalidUser

logger = logging.getLogger(__name__)

MAX_LENGTH = 255
"""Characters in a stored session id, the user's part included. Keeps ids fit for an index, a log
line and a URL; Postgres itself would take more."""

_UNSTORABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_PLACES = "custom_inputs.session_id, context.conversation_id, conversation"


def get_session_id(request: object = None) -> str:
    """The session id that a request names, or a new one.

    Looked for in this order: `custom_inputs["session_id"]`, `context.conversation_id`, and, in a
    mapping, a top-level `conversation` (a string, or an object with an `id`, as in OpenAI's
    Responses API). None and `""` count as absent. Where there is none, a UUIDv7 is made.

    Args:
        request: MLflow's `ResponsesAgentRequest` (or anything with its two attributes), a mapping
            such as the raw JSON body, a session id itself, or None.

    Returns:
        A string of 1 to 255 characters without control characters and lone surrogates.

    Raises:
        InvalidSessionId: What stands in one of these places is not a session id.

    Example:
        >>> get_session_id({"custom_inputs": {"session_id": "trip-7"}})
        'trip-7'
        >>> len(get_session_id({"input": []}))
        36
    """
    named = _find(request)
    if named is not None:
        return named
    made = new_session_id()
    logger.info(
        "The request names no session (looked at %s): a new conversation begins as %s. An agent "
        "that does not remember is usually this: pass the same session_id in custom_inputs with "
        "every request of a conversation.",
        _PLACES,
        made,
    )
    return made


def new_session_id() -> str:
    """An id that nobody has."""
    return str(uuid_utils.uuid7())


def check_session_id(value: object, place: str = "session_id") -> str | None:
    """`value` as a session id; None where it is absent.

    Args:
        value: A str, an int or a UUID; None and `""` count as absent.
        place: Where it was found, for the message.

    Raises:
        InvalidSessionId: It is of another type, too long, or holds what Postgres cannot store.
    """
    match value:
        case None:
            return None
        case bool():  # a bool is an int to Python, and never an id
            raise InvalidSessionId(_not_an_id(place, "a boolean"))
        case str():
            text = str.__str__(value)  # the text itself, whatever a subclass prints as
            if not text:
                return None
        case int() if value.bit_length() > MAX_LENGTH * 4:  # Python refuses to print huge ints
            raise InvalidSessionId(_not_an_id(place, f"more than {MAX_LENGTH} digits"))
        case int() | uuid.UUID() | uuid_utils.UUID():
            text = str(value)
        case _:
            raise InvalidSessionId(_not_an_id(place, f"a {type(value).__name__}"))
    if len(text) > MAX_LENGTH:
        raise InvalidSessionId(_not_an_id(place, f"{len(text)} characters long"))
    if fault := _unstorable(text):
        raise InvalidSessionId(_not_an_id(place, fault))
    return text


def scope_to_user(session_id: str, user: str | None) -> str:
    """The stored id of `user`'s session: percent-encoded user, colon, session id.

    A guessed or stolen id of somebody else opens an empty conversation, and one user's sessions
    share a prefix. An id that is this user's already is returned as it is, so that a client can
    send back what it was given. None leaves the id alone.

    Args:
        session_id: A valid session id.
        user: Who the platform says is asking; never what a request body says.

    Raises:
        InvalidUser: `user` is not a string, is blank, or cannot be encoded.
        InvalidSessionId: Both together are longer than 255 characters.
    """
    if user is None:
        return session_id
    prefix = user_prefix(user)
    if session_id.startswith(prefix) and len(session_id) > len(prefix):
        return session_id
    scoped = prefix + session_id
    if len(scoped) > MAX_LENGTH:
        raise InvalidSessionId(
            _not_an_id("session_id", f"{len(scoped)} characters long with its user")
        )
    return scoped


def user_prefix(user: str) -> str:
    """What the stored ids of all of `user`'s sessions begin with.

    Raises:
        InvalidUser: `user` is not a string, is blank, or cannot be encoded.
    """
    if not isinstance(user, str) or not user.strip():
        raise InvalidUser(
            f"user must be a non-empty string or None, not {_show(user)}. A blank user is not "
            "'nobody': it would put every unknown caller's conversations together."
        )
    try:
        prefix = quote(user, safe="") + ":"
    except UnicodeEncodeError as error:
        raise InvalidUser(f"user holds a lone surrogate: {_show(user)}.") from error
    if len(prefix) >= MAX_LENGTH:
        raise InvalidUser(f"user leaves no room for a session id: {_show(user)}.")
    return prefix


def _find(request: object) -> str | None:
    match request:
        case None:
            return None
        case Mapping():
            return _find_in_body(request)
        case str() | int() | uuid.UUID() | uuid_utils.UUID():
            return check_session_id(request)
    if not (hasattr(request, "custom_inputs") or hasattr(request, "context")):
        raise InvalidSessionId(
            f"No session id can be read from a {type(request).__name__}: pass the "
            "ResponsesAgentRequest, the JSON body as a mapping, or the id itself."
        )
    return _find_in_fields(
        getattr(request, "custom_inputs", None), getattr(request, "context", None)
    )


def _find_in_body(body: Mapping[Any, Any]) -> str | None:
    named = _find_in_fields(body.get("custom_inputs"), body.get("context"))
    if named is None:
        conversation = body.get("conversation")
        if isinstance(conversation, Mapping):
            conversation = conversation.get("id")
        named = check_session_id(conversation, "conversation")
    stray = body.get("session_id")
    if named is None and isinstance(stray, str | int) and stray:
        logger.warning(
            "The request has a session_id at its top level, where it does not count: pass it in "
            "custom_inputs."
        )
    return named


def _find_in_fields(custom_inputs: object, context: object) -> str | None:
    named = check_session_id(
        _member(custom_inputs, "custom_inputs", "session_id"), "custom_inputs.session_id"
    )
    if named is None:
        named = check_session_id(
            _member(context, "context", "conversation_id"), "context.conversation_id"
        )
    return named


def _member(holder: object, holder_name: str, name: str) -> object:
    """`holder[name]` or `holder.name`; a holder of any other kind cannot hold an id."""
    if holder is None:
        return None
    if isinstance(holder, Mapping):
        return holder.get(name)
    if isinstance(holder, str | bytes | int | float | list | tuple):
        raise InvalidSessionId(
            f"{holder_name} must be an object with a {name}, not a {type(holder).__name__}."
        )
    return getattr(holder, name, None)


def _unstorable(text: str) -> str | None:
    if (found := _UNSTORABLE.search(text)) is None:
        return None
    kind = "lone surrogate" if found[0] >= "\ud800" else "control character"
    return f"with a {kind} (U+{ord(found[0]):04X}): {_show(text)}"


def _not_an_id(place: str, found: str) -> str:
    return (
        f"{place} is not a session id: it is {found}. A session id is a string of 1 to "
        f"{MAX_LENGTH} characters (an int or a UUID will do) without control characters."
    )


def _show(value: object) -> str:
    """A short, printable form: never the whole of what a stranger sent."""
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
