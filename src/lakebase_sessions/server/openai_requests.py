"""What OpenAI's official clients send and MLflow's request type drops, put where it counts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lakebase_sessions.errors import LakebaseSessionsError
from lakebase_sessions.factory import default_lakebase
from lakebase_sessions.server.failures import Refused, failure

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from lakebase_sessions.lakebase import Lakebase

Caller = str | Callable[[Mapping[str, str]], str | None] | None
"""A user, or what says of a request's headers who it is: `current_user`."""

PATHS = ("/responses", "/invocations")
"""Where MLflow's AgentServer takes requests."""

_CONCERNED = re.compile(rb'"(conversation|previous_response_id)"|"input"\s*:\s*"')
"""What a body has to hold, somewhere, to be looked at: most do not, and are passed on unread."""


class OpenAIRequests:
    """Middleware for an agent server, by which `conversation=` and the like reach the session.

    `conversation`, an id or an object with one, becomes `custom_inputs["session_id"]`.
    `previous_response_id` is looked up (one round trip) and becomes the session that has it and,
    in `custom_inputs["turn"]`, the turn behind it; what stands there already is replaced, and kept
    as a branch. A bare string as `input` becomes a user's message.

    Args:
        app: The app around which it stands.
        user: Whose conversations, as for `conversations_router`.
        lakebase: Where they are; None is the process-wide default.
    """

    def __init__(
        self, app: ASGIApp, *, user: Caller = None, lakebase: Lakebase | None = None
    ) -> None:
        self._app = app
        self._caller = user
        self._lakebase = lakebase

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["method"] != "POST" or _route_path(scope) not in PATHS:
            await self._app(scope, receive, send)
            return
        body, ended = await _body(receive)
        if _CONCERNED.search(body):
            try:
                body = await self._rewritten(scope, body)
            except LakebaseSessionsError as error:
                refusal = failure(error.http_status, str(error), code=error.code)
                await refusal(scope, receive, send)
                return
            except Refused as error:
                await failure(400, str(error), code=error.code, param=error.param)(
                    scope, receive, send
                )
                return
            length = str(len(body)).encode()
            headers = [
                (name, length if name.lower() == b"content-length" else value)
                for name, value in scope["headers"]
            ]
            scope = {**scope, "headers": headers}
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        if not ended:
            waiting = [{"type": "http.disconnect"}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, replay, send)

    async def _rewritten(self, scope: Scope, body: bytes) -> bytes:
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            return body  # the server says what is wrong with it
        if not isinstance(fields, dict):
            return body
        if isinstance(fields.get("input"), str):
            fields["input"] = [{"role": "user", "content": fields["input"]}]
        conversation = fields.pop("conversation", None)
        previous = fields.pop("previous_response_id", None)
        if conversation is not None and previous is not None:
            raise Refused(
                "conversation and previous_response_id both say where to go on: send one of them.",
                "previous_response_id",
            )
        named: dict[str, Any] = {}
        if conversation is not None:
            is_object = isinstance(conversation, dict)
            named["session_id"] = conversation.get("id") if is_object else conversation
        elif previous is not None:
            named = await self._behind(scope, previous)
        if named:
            given = fields.get("custom_inputs")
            inputs = (given if isinstance(given, dict) else {}) | named
            if "turn" in named:  # beside a response_id, sent back as it came, it would not count
                inputs.pop("response_id", None)
            fields["custom_inputs"] = inputs
        return json.dumps(fields).encode()

    async def _behind(self, scope: Scope, response_id: object) -> dict[str, Any]:
        if not isinstance(response_id, str):
            raise Refused("previous_response_id must be a string.", "previous_response_id")
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        user = self._caller(headers) if callable(self._caller) else self._caller
        store = (self._lakebase or default_lakebase()).store
        found = await store.find_response(response_id, user=user)
        if found is None:
            raise Refused(
                f"Previous response with id {response_id[:80]!a} not found.",
                "previous_response_id",
                code="previous_response_not_found",
            )
        session_id, number = found
        return {"session_id": session_id, "turn": number + 1}


def _route_path(scope: Scope) -> str:
    """The path within the app: in front of it stands where the app is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


async def _body(receive: Receive) -> tuple[bytes, bool]:
    """The request's body, and whether the client was there to its end."""
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(chunks), False
        chunks.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(chunks), True
