"""From a host's name to a login."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lakebase_sessions.doctor.step import Step, failed, ok
from lakebase_sessions.errors import (
    ConfigurationError,
    LakebaseSessionsError,
    PermissionDenied,
    TargetNotFound,
    check_running,
)
from lakebase_sessions.postgres.connection import PORT

if TYPE_CHECKING:
    from lakebase_sessions.postgres.connection import Connection
    from lakebase_sessions.workspace.place import Place


def dns(place: Place) -> tuple[Step, list[str]]:
    """The addresses of the host."""
    host = place.host.name
    if host.startswith("/"):
        return ok("DNS", "a Unix socket, which needs no name"), []
    try:
        found = socket.getaddrinfo(host, PORT, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "no name at all"
        return failed("DNS", f"{host}: {reason}", f"nslookup {host}"), []
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    return ok("DNS", f"{host} is {', '.join(addresses)}"), addresses


def tcp(place: Place, addresses: list[str]) -> Step:
    """Whether anybody listens; one address is enough."""
    host = place.host.name
    refusals = []
    for address in addresses or [host]:
        began = time.monotonic()
        try:
            _reach(address, place.timeout_seconds)
        except OSError as error:
            refusals.append(f"{address}: {error.strerror or error}")
        else:
            milliseconds = (time.monotonic() - began) * 1000
            return ok("TCP", f"{address} answers at port {PORT} within {milliseconds:.0f} ms")
    return failed(
        "TCP",
        f"nobody can be reached at port {PORT}: {'; '.join(refusals)}. A firewall or a private "
        "link may be in the way, or it does not run",
        check_running(place.name),
    )


def _reach(address: str, timeout_seconds: float) -> None:
    if address.startswith("/"):
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(timeout_seconds)
            stream.connect(str(Path(address) / f".s.PGSQL.{PORT}"))
    else:
        socket.create_connection((address, PORT), timeout_seconds).close()


def connected(place: Place, connection: Connection, seconds: float) -> list[Step]:
    """What a connection shows that is there."""
    if place.host.name.startswith("/"):
        tls = ok("TLS", "a Unix socket, which needs none")
    else:
        tls = ok("TLS", f"on, sslmode={place.ssl_mode}")
    login = ok("login", f"as '{place.user}', within {seconds * 1000:.0f} ms")
    version = connection.info.parameter_status("server_version")
    return [tls, login, ok("database", f"'{place.database}', PostgreSQL {version}")]


def refused(place: Place, error: LakebaseSessionsError, grant: str) -> list[Step]:
    """What a connection shows that could not be had: the last step is the one that failed.

    Args:
        place: Where it was to lead.
        error: Why not.
        grant: The command that lets this identity in.
    """
    tls = ok("TLS", f"sslmode={place.ssl_mode}")
    login = ok("login", f"as '{place.user}'")
    said = str(error)
    match error:
        case ConfigurationError():
            return [failed("TLS", said, f"openssl s_client -starttls postgres {place.host.name}")]
        case TargetNotFound():
            return [tls, login, failed("database", said, f'CREATE DATABASE "{place.database}";')]
        case PermissionDenied() if "permission denied for database" in str(error.__cause__):
            return [tls, login, failed("database", said, grant)]
        case PermissionDenied():
            return [tls, failed("login", said, grant)]
        case _:
            return [failed("login", said, check_running(place.name))]
