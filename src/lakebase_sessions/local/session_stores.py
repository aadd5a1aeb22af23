"""Managed session stores of a local workspace: the calls of `w.agent_kit` about sessions."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from dataclasses import dataclass, field

from lakebase_sessions.local.http_server import ApiError, Body, Call


@dataclass
class _Session:
    body: Body
    items: list[Body] = field(default_factory=list)


class SessionStores:
    """Stores, their sessions and items, in memory. Times are the server's, as on the platform."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stores: dict[str, Body] = {}
        self._sessions: dict[str, dict[str, _Session]] = {}

    def answer(self, call: Call, parts: list[str]) -> Body | None:
        """Return the body of the answer, None where there is no such call.

        Args:
            call: The call.
            parts: Of its path, behind `session-stores`.
        """
        with self._lock:
            match call.method, parts:
                case "POST", []:
                    return self._create_store(call.query.get("session_store_id", ""), call.json())
                case "GET", []:
                    return _page("session_stores", list(self._stores.values()), call)
                case "GET", [store]:
                    self._of(store)
                    return self._stores[store]
                case "POST", [store, "sessions"]:
                    return self._create(store, call.query.get("session_id"), call.json())
                case "GET", [store, "sessions"]:
                    found = [session.body for session in self._of(store).values()]
                    return _page("sessions", _ordered(found, call), call)
                case "GET", [store, "sessions", session]:
                    return self._one(store, session).body
                case "DELETE", [store, "sessions", session]:
                    self._one(store, session)
                    del self._of(store)[session]
                    return {}
                case "GET", [store, "sessions", session, "items"]:
                    items = self._one(store, session).items
                    return _page("session_items", _ordered(items, call), call)
                case "POST", [store, "sessions", session, "items:append"]:
                    return self._append(self._one(store, session), call.json().get("items"))
                case "POST", [store, "sessions", session, "items:clear"]:
                    self._one(store, session).items.clear()
                    return {}
        return None

    def _of(self, store: str) -> dict[str, _Session]:
        if store not in self._sessions:
            raise ApiError(404, f"Session store '{store}' does not exist.")
        return self._sessions[store]

    def _one(self, store: str, session: str) -> _Session:
        if session not in self._of(store):
            raise ApiError(404, f"Session '{session}' does not exist.")
        return self._of(store)[session]

    def _create_store(self, name: str, body: Body) -> Body:
        if name in self._stores:
            raise ApiError(409, f"Session store '{name}' exists.", "ALREADY_EXISTS")
        self._sessions[name] = {}
        named = {**body, "name": f"session-stores/{name}", "create_time": _now()}
        self._stores[name] = named
        return named

    def _create(self, store: str, session_id: str | None, body: Body) -> Body:
        session_id = session_id or str(uuid.uuid4())
        if session_id in self._of(store):
            raise ApiError(409, f"Session '{session_id}' exists.", "ALREADY_EXISTS")
        if not body.get("actor_id"):
            raise ApiError(400, "actor_id is required.", "INVALID_PARAMETER_VALUE")
        made = {
            "actor_id": body["actor_id"],
            "metadata": body.get("metadata") or {},
            "name": f"session-stores/{store}/sessions/{session_id}",
            "session_id": session_id,
            "create_time": _now(),
            "last_activity_time": _now(),
        }
        self._of(store)[session_id] = _Session(made)
        return made

    def _append(self, session: _Session, items: object) -> Body:
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ApiError(400, "items must be a list.", "INVALID_PARAMETER_VALUE")
        made = [
            {"data": item.get("data"), "item_id": str(uuid.uuid4()), "create_time": _now()}
            for item in items
        ]
        session.items += made
        session.body["last_activity_time"] = _now()
        return {"session_items": made}


def _ordered(found: list[Body], call: Call) -> list[Body]:
    """In the order in which they came, or from the newest on, which is the default."""
    return found if call.query.get("order_by") == "create_time asc" else found[::-1]


def _page(key: str, found: list[Body], call: Call) -> Body:
    try:
        size = int(call.query.get("page_size") or 10)
        offset = int(call.query.get("page_token") or 0)
    except ValueError:
        size = offset = -1
    if not 1 <= size <= 100 or offset < 0:
        raise ApiError(400, "page_size must be between 1 and 100.", "INVALID_PARAMETER_VALUE")
    body: Body = {key: found[offset : offset + size]}
    if offset + size < len(found):
        body["next_page_token"] = str(offset + size)
    return body


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
