"""HTTP under the control plane: connections, threads, faults, the list of calls.

What a call means is the application's business (`control_plane.py`).
"""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Protocol, Self
from urllib.parse import parse_qs, unquote, urlsplit

from lakebase_sessions.errors import LocalLakebaseError

Body = dict[str, Any]

ADDRESS = "127.0.0.1"
REQUESTS_KEPT = 10_000
"""A local Lakebase may run for weeks in a terminal; older calls are forgotten."""
MAX_BODY_BYTES = 1_000_000
_ERROR_CODES = {
    400: "BAD_REQUEST",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "RESOURCE_CONFLICT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL_ERROR",
    501: "NOT_IMPLEMENTED",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class Request(NamedTuple):
    """A call that arrived: the path without its query, and who called (None: nobody known)."""

    method: str
    path: str
    user: str | None


@dataclass(frozen=True)
class Call:
    """A call as the application gets it."""

    method: str
    path: str
    query: dict[str, str]
    """The last value of each parameter."""
    authorization: str = field(repr=False)
    content: bytes = field(repr=False)

    def json(self) -> Body:
        """Return the JSON object in its body, or raise the answer to a body without one."""
        try:
            body = json.loads(self.content)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise ApiError(400, "The body is not a JSON object.", "MALFORMED_REQUEST")
        return body

    def form(self) -> dict[str, str]:
        """Return the fields of a form in its body."""
        fields = parse_qs(self.content.decode(errors="replace"))
        return {name: values[-1] for name, values in fields.items()}


class ApiError(Exception):
    """An answer other than 200: in the platform's form, or with a body of its own."""

    def __init__(
        self, status: int, message: str, code: str | None = None, *, body: Body | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = body or {"error_code": code or _ERROR_CODES[status], "message": message}


@dataclass(eq=False)
class Fault:
    """A way to misbehave, in force until it is removed or used up.

    A context manager that removes it. `LocalLakebase.fault` describes the fields.
    """

    server: HttpServer = field(repr=False)
    path: str = ""
    method: str | None = None
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: Body | str | None = None
    delay_seconds: float = 0.0
    hang: bool = False
    drop: bool = False
    times: int | None = None
    hits: int = 0
    """How many calls it has met."""
    removed: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def answers(self) -> bool:
        """Whether it takes the place of the answer (a mere delay does not)."""
        return self.hang or self.drop or self.status is not None or self.body is not None

    def meets(self, method: str, path: str) -> bool:
        """Return whether it applies to a call now."""
        return (
            self.path in path
            and self.method in (None, method)
            and (self.times is None or self.hits < self.times)
        )

    def remove(self) -> None:
        """End it. Calls that it delays go on, calls that it hangs lose their connection."""
        self.server.remove_fault(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()


class Application(Protocol):
    """What answers the calls."""

    def user_of(self, call: Call) -> str | None:
        """Return who calls, None for somebody unknown."""

    def answer(self, call: Call, user: str | None) -> Body:
        """Return the body of the answer to a call, or raise an `ApiError`."""


class HttpServer(ThreadingHTTPServer):
    """Answers calls on this machine alone, from `start()` to `stop()`.

    Knows its connections and their threads, so that both can be ended.

    Args:
        port: Port to listen on; 0 takes a free one.
        application: What answers the calls.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, application: Application) -> None:
        self.application = application
        self.requests: deque[Request] = deque(maxlen=REQUESTS_KEPT)
        self._faults: list[Fault] = []
        self._faults_lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as exc:
            raise LocalLakebaseError(
                f"Port {port} on {ADDRESS} cannot be used: {exc}. Choose another port, or 0 for "
                "any free one."
            ) from exc
        self.url = f"http://{ADDRESS}:{self.server_address[1]}"
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.05,), name="lakebase-local", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End every call, connection and thread."""
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
        self.server_close()
        self.clear_faults()
        for connection, thread in list(self._connections.items()):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()

    # Faults

    def add_fault(self, **fields: Any) -> Fault:
        """Put a fault in force, with these of its fields."""
        fault = Fault(self, **fields)
        with self._faults_lock:
            self._faults.append(fault)
        return fault

    def remove_fault(self, fault: Fault) -> None:
        """End a fault. One that has ended is fine."""
        with self._faults_lock, contextlib.suppress(ValueError):
            self._faults.remove(fault)
        fault.removed.set()

    def clear_faults(self) -> None:
        """End all faults."""
        for fault in list(self._faults):
            self.remove_fault(fault)

    def take_faults(self, method: str, path: str) -> list[Fault]:
        """Return what a call meets: every mere delay, then the newest fault that answers."""
        with self._faults_lock:
            met = [fault for fault in self._faults if fault.meets(method, path)]
            answering = [fault for fault in met if fault.answers][-1:]
            met = [fault for fault in met if not fault.answers] + answering
            for fault in met:
                fault.hits += 1
        return met

    # What socketserver calls

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of this machine's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread that is remembered."""
        thread = threading.Thread(
            target=self.process_request_thread,
            args=(request, client_address),
            name="lakebase-local-call",
            daemon=True,
        )
        self._connections[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        """Close a connection and forget it."""
        super().shutdown_request(request)
        self._connections.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that give up are what faults are for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: HttpServer

    def do_GET(self) -> None:
        application = self.server.application
        target = urlsplit(self.path)
        path = unquote(target.path)
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            return
        call = Call(
            self.command,
            path,
            {name: values[-1] for name, values in parse_qs(target.query).items()},
            self.headers.get("Authorization", ""),
            self.rfile.read(int(length)),
        )
        user = application.user_of(call)
        self.server.requests.append(Request(self.command, path, user))
        for fault in self.server.take_faults(self.command, path):
            fault.removed.wait(fault.delay_seconds)
            if fault.hang:
                fault.removed.wait()
            if fault.hang or fault.drop:
                self.close_connection = True
                return
            if fault.answers:
                self._send(fault.status or 200, _fault_body(fault), fault.headers)
                return
        try:
            body, status = application.answer(call, user), 200
        except ApiError as exc:
            body, status = exc.body, exc.status
        except Exception as exc:  # noqa: BLE001 a server answers, whatever happens in it
            body = ApiError(500, f"The local Lakebase failed: {type(exc).__name__}.").body
            status = 500
        self._send(status, json.dumps(body), {})

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 names are http.server's

    def _send(self, status: int, text: str, headers: dict[str, str]) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Log nothing: `requests` has the calls, and headers hold tokens."""


def _fault_body(fault: Fault) -> str:
    if isinstance(fault.body, str):
        return fault.body
    if fault.body is not None:
        return json.dumps(fault.body)
    code = _ERROR_CODES.get(fault.status or 200, "UNKNOWN")
    return json.dumps({"error_code": code, "message": "A fault of the local Lakebase."})
