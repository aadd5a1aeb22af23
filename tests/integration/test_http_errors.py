"""add_error_handlers: whose error it is, and that everything else stays as it was."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import fastapi
import httpx
import pytest
import starlette.exceptions
from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from lakebase_sessions import (
    ConversationBusy,
    LakebaseUnavailable,
    TargetNotFound,
    add_error_handlers,
    session_for,
)

WORDS = "There is no Lakebase instance 'inner-name'"


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")


async def get(app: Any, path: str) -> httpx.Response:
    async with client(app) as http:
        return await http.get(path)


def code_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


# --- whose error it is ---------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Asks MLflow's own server, whose handlers raise what `fail` does."""
    import mlflow
    from mlflow.genai.agent_server import AgentServer, server

    mlflow.tracing.disable()

    async def asked(fail: Callable[[], Any], *, stream: bool, chunks: int = 0) -> httpx.Response:
        async def handle(_request: Any) -> Any:
            return fail()

        async def handle_stream(_request: Any) -> Any:
            for _ in range(chunks):
                yield {"type": "response.output_text.delta", "item_id": "i", "delta": "d"}
            fail()

        monkeypatch.setattr(server, "_invoke_function", handle)
        monkeypatch.setattr(server, "_stream_function", handle_stream)
        app = AgentServer("ResponsesAgent").app
        add_error_handlers(app)
        async with client(app) as http:
            return await http.post("/invocations", json={"input": [], "stream": stream})

    return asked


def as_it_is() -> None:
    raise TargetNotFound(WORDS)


def from_ours() -> None:
    try:
        raise TargetNotFound(WORDS)
    except TargetNotFound as error:
        raise ValueError("no memory") from error


def handled() -> None:
    try:
        raise TargetNotFound(WORDS)
    except TargetNotFound:
        raise ValueError("something else")  # noqa: B904 - it is the point


def hidden() -> None:
    try:
        raise TargetNotFound(WORDS)
    except TargetNotFound:
        raise ValueError("something else") from None


def other_words() -> None:
    try:
        raise TargetNotFound(WORDS)
    except TargetNotFound as error:
        raise fastapi.HTTPException(500, "sorry") from error


def other_status() -> None:
    try:
        raise TargetNotFound(WORDS)
    except TargetNotFound as error:
        raise fastapi.HTTPException(503, str(error)) from error


def circle() -> None:
    error = ValueError("round")
    raise error from error


def great_circle() -> None:
    first, second = ValueError("round"), KeyError("and round")
    second.__cause__ = first
    raise first from second


@pytest.mark.parametrize("stream", [False, True], ids=["invoke", "stream"])
@pytest.mark.parametrize("fail", [as_it_is, from_ours])
async def test_ours(asked: Any, fail: Any, stream: bool) -> None:
    assert code_of(await asked(fail, stream=stream)) == (500, "target_not_found")


@pytest.mark.parametrize("stream", [False, True], ids=["invoke", "stream"])
@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (handled, "something else"),
        (hidden, "something else"),
        (other_words, "500: sorry"),
        (other_status, f"503: {WORDS}"),
        (circle, "round"),
        (great_circle, "round"),
    ],
)
async def test_not_ours(asked: Any, fail: Any, words: str, stream: bool) -> None:
    """As MLflow's server answers without us."""
    response = await asked(fail, stream=stream)
    if stream:
        assert response.status_code == 200
        assert response.text.startswith(f'data: {{"error": "{words}"}}')
    else:
        assert (response.status_code, response.json()) == (500, {"detail": words})


def busy() -> None:
    raise ConversationBusy("Another turn is under way.")


@pytest.mark.parametrize("stream", [False, True], ids=["invoke", "stream"])
async def test_when_to_come_back_to_a_busy_conversation(asked: Any, stream: bool) -> None:
    response = await asked(busy, stream=stream)
    assert code_of(response) == (409, "conversation_busy")
    assert response.headers["retry-after"] == "3"
    assert "retry-after" not in (await asked(as_it_is, stream=stream)).headers


# --- streams that never began --------------------------------------------------------------------


def no_session_id() -> None:
    session_for({"custom_inputs": {"session_id": ["x"]}})


async def test_a_stream_of_ones_own_under_mlflow(asked: Any) -> None:
    """It has the status as long as nothing was sent."""
    assert code_of(await asked(no_session_id, stream=True)) == (400, "invalid_session_id")
    response = await asked(no_session_id, stream=True, chunks=1)
    assert response.status_code == 200
    assert "is not a session id" in response.text


def own_stream(error: Exception, chunks: int, media_type: str) -> Callable[[], StreamingResponse]:
    async def words() -> AsyncIterator[str]:
        for _ in range(chunks):
            yield "data: {}\n\n"
        raise error

    return lambda: StreamingResponse(words(), media_type=media_type)


@pytest.mark.parametrize("media_type", ["text/event-stream", "application/x-ndjson"])
@pytest.mark.parametrize("others", [False, True], ids=["alone", "with another middleware"])
async def test_a_stream_of_ones_own(media_type: str, others: bool) -> None:
    app = FastAPI()
    if others:

        @app.middleware("http")
        async def passes(request: Request, call_next: Any) -> Any:
            return await call_next(request)

    add_error_handlers(app)
    app.get("/none")(own_stream(LakebaseUnavailable("away"), 0, media_type))
    app.get("/one")(own_stream(LakebaseUnavailable("away"), 1, media_type))
    app.get("/theirs")(own_stream(ValueError("theirs"), 0, media_type))
    assert code_of(await get(app, "/none")) == (503, "lakebase_unavailable")
    with pytest.raises(RuntimeError, match="already started"):
        await get(app, "/one")
    with pytest.raises(ValueError, match="theirs"):
        await get(app, "/theirs")


async def test_what_is_sent_as_it_comes_passes() -> None:
    """A memoryview, nothing at all, and words that look like MLflow's too."""
    app = FastAPI()
    add_error_handlers(app)

    def answering(*chunks: Any) -> Callable[[], StreamingResponse]:
        return lambda: StreamingResponse(iter(chunks))

    app.get("/view")(answering(memoryview(b"data: {}")))
    app.get("/nothing")(answering())
    app.get("/words")(answering('data: {"error": "away"}\n\n', "more"))
    assert (await get(app, "/view")).content == b"data: {}"
    assert (await get(app, "/nothing")).content == b""
    words = await get(app, "/words")
    assert (words.status_code, words.text) == (200, 'data: {"error": "away"}\n\nmore')


# --- other people's handlers ---------------------------------------------------------------------


async def coroutine(_request: Request, error: Any) -> JSONResponse:
    return JSONResponse({"theirs": error.detail}, error.status_code)


def function(_request: Request, error: Any) -> JSONResponse:
    return JSONResponse({"theirs": error.detail}, error.status_code)


class Handler:
    async def __call__(self, request: Request, error: Any) -> JSONResponse:
        return await coroutine(request, error)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", [fastapi.HTTPException, starlette.exceptions.HTTPException])
@pytest.mark.parametrize(
    "handler", [coroutine, function, Handler()], ids=["async", "sync", "object"]
)
async def test_a_handler_of_the_app_stays(when: str, kind: Any, handler: Any) -> None:
    """What AgentServer wraps is answered for it, and nothing else."""
    app = FastAPI()
    if when == "before":
        app.add_exception_handler(kind, handler)
    add_error_handlers(app)
    if when == "after":
        app.add_exception_handler(kind, handler)

    @app.get("/theirs")
    async def theirs() -> None:
        raise fastapi.HTTPException(418, "teapot")

    @app.get("/wrapped")
    async def wrapped() -> None:
        try:
            raise TargetNotFound(WORDS)
        except TargetNotFound as error:
            raise fastapi.HTTPException(500, str(error))  # noqa: B904 - as AgentServer does

    answer = await get(app, "/theirs")
    assert (answer.status_code, answer.json()) == (418, {"theirs": "teapot"})
    assert code_of(await get(app, "/wrapped")) == (500, "target_not_found")


@pytest.fixture(params=[Starlette, FastAPI])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Two apps without handlers of their own, the second with ours."""

    async def fail(request: Request) -> None:
        status = int(request.path_params["status"])
        raise starlette.exceptions.HTTPException(status, headers={"x-tea": "green"})

    apps = [request.param(routes=[Route("/{status}", fail)]) for _ in range(2)]
    add_error_handlers(apps[1])
    return apps[0], apps[1]


@pytest.mark.parametrize("status", [204, 304, 404, 418, 500])
async def test_without_one_it_is_as_the_framework_answers(pair: Any, status: int) -> None:
    without, with_ours = [await get(app, f"/{status}") for app in pair]
    assert with_ours.status_code == without.status_code == status
    assert with_ours.content == without.content
    assert with_ours.headers == without.headers
