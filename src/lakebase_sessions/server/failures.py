"""Failures as OpenAI's API answers them."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response


class Refused(Exception):
    """A request that is not what it should be.

    Attributes:
        param: The field that is wrong.
        code: OpenAI's code for it, if it has one.
    """

    def __init__(self, message: str, param: str | None, *, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


def failure(
    status: int, message: str, *, code: str | None = None, param: str | None = None
) -> Response:
    """The answer: `{"error": {"message", "type", "param", "code"}}`."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return JSONResponse({"error": error}, status)
