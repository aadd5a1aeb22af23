"""Route: one of the conversations' routes, with the failures and the paths of OpenAI's API."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.routing import Match

from lakebase_sessions.errors import LakebaseSessionsError
from lakebase_sessions.server.failures import Refused, failure

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from fastapi import Request
    from starlette.responses import Response
    from starlette.types import Scope

_SLASH = "\ud800"
"""One within an id, while routes are looked for. No path has it: UTF-8 does not."""


class Route(APIRoute):
    """Answers failures as OpenAI's API does, and knows an id with a slash by its %2F.

    By `path` alone, in which that is a slash like others, an id is all of it that may be one: so
    MLflow's chat proxy lets it through.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether it is for this request, and what its path names."""
        match, found = super().matches({**scope, "path": _path(scope)})
        named = found.get("path_params", {})
        for name in self.param_convertors if match != Match.NONE else ():
            if not named[name] or "/" in named[name]:
                return Match.NONE, {}
            named[name] = named[name].replace(_SLASH, "/")
        return match, found

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers the request."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except LakebaseSessionsError as error:
                return failure(error.http_status, str(error), code=error.code)
            except Refused as error:
                return failure(400, str(error), code=error.code, param=error.param)
            except RequestValidationError as error:
                first = error.errors()[0]
                place = [
                    str(part) for part in first["loc"] if part not in ("body", "query", "path")
                ]
                return failure(400, first["msg"], param=".".join(place) or None)

        return answer


def _path(scope: Scope) -> str:
    """The path, in which only what parts its segments is a slash."""
    path = str(scope["path"])
    sent = (scope.get("raw_path") or b"").decode("latin-1")
    segments = [unquote(segment) for segment in sent.split("/")]
    if "/".join(segments) != path:  # the server tells none, or another has been put in its place
        return path
    return "/".join(segment.replace("/", _SLASH) for segment in segments)
