"""Errors as HTTP responses: add_error_handlers, for AgentServer's app or any other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from lakebase_sessions import errors
from lakebase_sessions.errors import LakebaseSessionsError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


def add_error_handlers(app: Starlette) -> None:
    """Answer with an error's own status and code, and not with 500 for everything.

    The body is `{"error": {"code": …, "message": …, "type": …}}`, as OpenAI's clients read it.
    MLflow's AgentServer wraps every error of a handler into an HTTPException(500); what it wraps
    is looked at. A stream whose first event is an `error` of this package has not begun, so it
    gets the status too; later the status is gone, and the event is all there is.

    Args:
        app: A FastAPI or Starlette app, before it serves: `AgentServer(...).app`.
    """
    app.add_exception_handler(LakebaseSessionsError, _answer)
    app.add_exception_handler(HTTPException, _answer)
    app.add_middleware(_StreamsThatNeverBegan)


async def _answer(_request: Request, error: Exception) -> JSONResponse:
    cause: BaseException | None = error
    # Any other status was chosen by the application, perhaps to say less than the cause does.
    if getattr(error, "status_code", 500) == 500:
        while cause is not None and not isinstance(cause, LakebaseSessionsError):
            cause = cause.__cause__ or cause.__context__
    if isinstance(cause, LakebaseSessionsError):
        return JSONResponse(_body(cause.code, str(cause)), cause.http_status)
    detail = getattr(error, "detail", str(error))
    return JSONResponse(
        {"detail": detail},
        getattr(error, "status_code", 500),
        headers=getattr(error, "headers", None),
    )


def _body(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "type": "lakebase_sessions_error"}}


def _statuses() -> dict[str, int]:
    """Code -> HTTP status, of all classes of the tree."""
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    return {
        kind.code: kind.http_status for kind in classes if issubclass(kind, LakebaseSessionsError)
    }


class _StreamsThatNeverBegan:
    """Holds a stream's status back until its first event shows that there is one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._statuses = _statuses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        refused = False

        async def hold(message: Message) -> None:
            nonlocal start, refused
            if refused:
                return
            if message["type"] == "http.response.start" and _is_stream(message):
                start = message
                return
            if start is not None and message["type"] == "http.response.body":
                error = self._error(message.get("body", b""))
                if error is not None:
                    refused = True
                    response = JSONResponse(_body(*error), self._statuses[error[0]])
                    await response(scope, receive, send)
                    return
                held, start = start, None
                await send(held)
            await send(message)

        await self._app(scope, receive, hold)

    def _error(self, chunk: bytes) -> tuple[str, str] | None:
        """Code and message, if `chunk` is an error event of this package."""
        if not chunk.startswith(b"data: {"):
            return None
        try:
            event = json.loads(chunk.removeprefix(b"data: "))
        except ValueError:
            return None
        code = event.get("code")
        if event.get("type") == "error" and isinstance(code, str) and code in self._statuses:
            return code, str(event.get("message"))
        return None


def _is_stream(start: Message) -> bool:
    headers = {name.lower(): value for name, value in start["headers"]}
    return bool(headers.get(b"content-type", b"").startswith(b"text/event-stream"))
