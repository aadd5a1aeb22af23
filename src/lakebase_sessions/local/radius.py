"""RADIUS: how Postgres asks about the token of somebody who has no role with a password.

The only way for PostgreSQL to check a login elsewhere that needs nothing installed. It matters
because of what comes after: with a right token and without a role, Postgres refuses the login as
it does on the platform, `role "..." does not exist`.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
import threading
from collections.abc import Callable

ADDRESS = "127.0.0.1"
_ACCESS_ACCEPT, _ACCESS_REJECT = 2, 3
_USER_NAME, _USER_PASSWORD = 1, 2
_HEADER_BYTES = 20


class RadiusServer:
    """Answers Access-Requests (RFC 2865) on this machine, from construction to `stop()`.

    Args:
        accepts: Whether a user is let in with a password.
    """

    def __init__(self, accepts: Callable[[str, str], bool]) -> None:
        self._accepts = accepts
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((ADDRESS, 0))
        self.port: int = self._socket.getsockname()[1]
        self.secret = secrets.token_hex(16)
        self._thread = threading.Thread(
            target=self._serve, name="lakebase-local-logins", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", (ADDRESS, self.port))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            request, sender = self._socket.recvfrom(4096)
            if not request:
                return
            accepted = self._accepted(request)
            answer = bytes([_ACCESS_ACCEPT if accepted else _ACCESS_REJECT, request[1]])
            answer += _HEADER_BYTES.to_bytes(2, "big")
            # The request's authenticator and the secret: only who knows it can have answered.
            signed = answer + request[4:_HEADER_BYTES] + self.secret.encode()
            self._socket.sendto(answer + _md5(signed), sender)

    def _accepted(self, request: bytes) -> bool:
        attributes: dict[int, bytes] = {}
        rest = request[_HEADER_BYTES:]
        while len(rest) > 2:
            attributes[rest[0]] = rest[2 : rest[1]]
            rest = rest[max(rest[1], 2) :]
        password, previous = b"", request[4:_HEADER_BYTES]
        hidden = attributes.get(_USER_PASSWORD, b"")
        for start in range(0, len(hidden), 16):
            block = hidden[start : start + 16]
            key = _md5(self.secret.encode() + previous)
            password += bytes(a ^ b for a, b in zip(block, key, strict=False))
            previous = block
        try:
            user = attributes.get(_USER_NAME, b"").decode()
            return self._accepts(user, password.rstrip(b"\0").decode())
        except Exception:  # noqa: BLE001 whatever it is, nobody is let in by it
            return False


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()
