"""Errors as HTTP responses: add_error_handlers, for AgentServer's app or any other."""

from __future__ import annotations

import inspect
import json
import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.responses import JSONResponse, Response

from lakebase_sessions import errors
from lakebase_sessions.errors import LakebaseSessionsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

RETRY_AFTER_SECONDS = 3
"""Of a busy conversation's `Retry-After`: the other turn lasts about as long."""

_failures: ContextVar[list[BaseException]] = ContextVar("lakebase_sessions_failures")
"""What MLflow has logged during the current request."""


def add_error_handlers(app: Starlette) -> None:
    """Answer with an error's own status and code, and not with 500 for everything.

    The body is `{"error": {"code": …, "message": …, "type": …}}`, as OpenAI's clients read it;
    `ConversationBusy` has a `Retry-After` too.
    MLflow's AgentServer wraps every error of a handler into an HTTPException(500); what it wraps
    is looked at. Every other HTTPException goes to the handler that the app has for it, whether
    that was registered before or after. A stream that fails with an error of this package before
    its first chunk, or whose first event is an `error` of this package, has not begun, so it
    gets the status too; later the status is gone, and the event is all there is.

    Args:
        app: A FastAPI or Starlette app, before it serves: `AgentServer(...).app`.
    """
    app.add_exception_handler(LakebaseSessionsError, _answer)
    app.add_middleware(_StreamsThatNeverBegan)
    logging.getLogger("mlflow.genai.agent_server.server").addFilter(_note)
    build = app.build_middleware_stack

    def build_with_ours_first() -> ASGIApp:
        # At the first request: by now the application has registered its own.
        handlers = app.exception_handlers
        for kind in {HTTPException, *filter(_is_http_exception, handlers)}:
            handlers[kind] = _ours_or(
                handlers.get(kind) or ExceptionMiddleware(app.router).http_exception
            )
        return build()

    app.build_middleware_stack = build_with_ours_first  # type: ignore[method-assign]


def _is_http_exception(key: Any) -> bool:
    return isinstance(key, type) and issubclass(key, HTTPException)


def _ours_or(theirs: Any) -> Callable[[Request, Exception], Any]:
    """Answers what AgentServer has wrapped; everything else `theirs` does, as if alone."""

    async def handle(request: Request, error: Exception) -> Any:
        if (cause := _cause(error)) is not None:
            return _response(cause)
        if inspect.iscoroutinefunction(theirs):
            return await theirs(request, error)
        answer = await run_in_threadpool(theirs, request, error)
        return await answer if inspect.isawaitable(answer) else answer

    return handle


async def _answer(_request: Request, error: Exception) -> Response:
    return _response(cast("LakebaseSessionsError", error))


def _cause(error: BaseException) -> LakebaseSessionsError | None:
    """The error of this package that `error` is, or was raised `from`."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, LakebaseSessionsError):
            return cause
        seen.add(id(cause))  # a chain may have a circle
        cause = _wrapped(cause) if isinstance(cause, HTTPException) else cause.__cause__
    return None


def _wrapped(error: HTTPException) -> BaseException | None:
    """What AgentServer was told, if it is AgentServer's `HTTPException(500, detail=str(e))`.

    It names no cause, so what it was handling has to do. Whoever chose another status or other
    words may want to say less than the cause does.
    """
    wrapped = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return wrapped if error.status_code == 500 and error.detail == str(wrapped) else None


def _response(error: LakebaseSessionsError) -> Response:
    return _refusal(error.http_status, error.code, str(error))


def _refusal(status: int, code: str, message: str) -> Response:
    error = {"code": code, "message": message, "type": "lakebase_sessions_error"}
    busy = code == errors.ConversationBusy.code
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if busy else None
    return JSONResponse({"error": error}, status, headers)


def _statuses() -> dict[str, int]:
    """Code -> HTTP status, of all classes of the tree."""
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    return {
        kind.code: kind.http_status for kind in classes if issubclass(kind, LakebaseSessionsError)
    }


def _note(record: logging.LogRecord) -> bool:
    """Of a stream's error AgentServer sends the words; which one it was, only its log is told."""
    if record.exc_info and record.exc_info[1] and (failures := _failures.get(None)) is not None:
        failures.append(record.exc_info[1])
    return True


class _StreamsThatNeverBegan:
    """Holds a stream's status back until its first chunk shows that there is one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._statuses = _statuses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held: list[Message] = []
        refused = False
        failures: list[BaseException] = []
        _failures.set(failures)

        async def release() -> None:
            for message in held:
                await send(message)
            held.clear()

        async def hold(message: Message) -> None:
            nonlocal refused
            if refused:
                return
            if message["type"] == "http.response.start" and _is_stream(message):
                held.append(message)
                return
            if held and message["type"] == "http.response.body":
                chunk = bytes(message.get("body", b""))
                if not chunk:  # also what Starlette's BaseHTTPMiddleware sends before it raises
                    held.append(message)
                    return
                if (refusal := self._refusal(chunk, failures)) is not None:
                    refused = True
                    await refusal(scope, receive, send)
                    return
            await release()
            await send(message)

        try:
            await self._app(scope, receive, hold)
        except Exception as error:
            cause = _cause(error)
            if not held or refused or cause is None:
                raise
            await _response(cause)(scope, receive, send)
        else:
            if not refused:
                await release()

    def _refusal(self, chunk: bytes, failures: list[BaseException]) -> Response | None:
        """What to answer instead, if the first chunk of a stream is an error of this package."""
        if not chunk.startswith(b"data: {"):
            return None
        try:
            event = json.loads(chunk.removeprefix(b"data: "))
        except ValueError:
            return None
        code = event.get("code")
        if event.get("type") == "error" and isinstance(code, str) and code in self._statuses:
            return _refusal(self._statuses[code], code, str(event.get("message")))
        for failure in failures:
            if event == {"error": str(failure)} and (cause := _cause(failure)) is not None:
                return _response(cause)
        return None


def _is_stream(start: Message) -> bool:
    """Whether what it begins comes in pieces."""
    names = {name.lower() for name, _ in start["headers"]}
    return b"content-length" not in names and start["status"] not in (204, 304)
