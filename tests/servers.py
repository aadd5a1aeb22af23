"""The Postgres servers that `--postgres` chooses from, each behind a `LocalLakebase`."""

from __future__ import annotations

import contextlib
import datetime
import gc
import ipaddress
import random
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psycopg
import pytest

from lakebase_sessions.local import LocalLakebase

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

IMAGE = "postgres:17"
PASSWORD = "for-tests-only"
SMALL_DISK = "/small"
SMALL_DISK_MB = 12
"""Room for a tablespace that can be filled."""


def docker_runs() -> bool:
    """Whether a Docker engine answers on this machine."""
    with warnings.catch_warnings():
        # Where nobody answers, docker-py leaves sockets behind, for which the garbage collector
        # would blame whichever test runs next.
        warnings.simplefilter("ignore", ResourceWarning)
        answers = _docker_answers()
        gc.collect()
    return answers


def _docker_answers() -> bool:
    import docker

    try:
        docker.from_env(timeout=5).ping()
    except docker.errors.DockerException:
        return False
    return True


@contextmanager
def local_lakebase(
    choice: str, *, token_lifetime_seconds: float = 3600.0
) -> Iterator[LocalLakebase]:
    """A LocalLakebase on the chosen server: `embedded`, `container`, or a superuser's DSN."""
    with contextlib.ExitStack() as stack:
        dsn = None
        if choice == "container":
            _, dsn = stack.enter_context(container())
        elif choice != "embedded":
            dsn = choice
        yield stack.enter_context(
            LocalLakebase(dsn=dsn, token_lifetime_seconds=token_lifetime_seconds)
        )


@contextmanager
def container() -> Iterator[tuple[DockerContainer, str]]:
    """A throwaway container with TLS on and a small disk, and its superuser's DSN."""
    from testcontainers.core.container import DockerContainer

    # Clients have port 5432 fixed, so a free loopback address is looked for instead of a port.
    address = _free_address()
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "tls.sh")
        script.write_text(_tls_script(address))
        script.chmod(0o755)
        Path(folder).chmod(0o755)
        server = (
            DockerContainer(IMAGE)
            .with_env("POSTGRES_PASSWORD", PASSWORD)
            .with_volume_mapping(folder, "/docker-entrypoint-initdb.d", "ro")
            .with_command(["-c", "max_connections=300", "-c", "fsync=off"])
            .with_tmpfs_mount(SMALL_DISK, f"size={SMALL_DISK_MB}m")
        )
        # with_bind_ports would listen on every address
        server.ports = cast("Any", {"5432/tcp": (address, 5432)})
        with server:
            dsn = f"host={address} port=5432 user=postgres password={PASSWORD} sslmode=require"
            wait_until_it_answers(dsn)
            yield server, dsn


def wait_until_it_answers(dsn: str) -> None:
    """Return once the server takes a connection."""
    give_up_at = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(dsn, dbname="postgres", connect_timeout=2).close()
        except psycopg.OperationalError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.2)
        else:
            return


def _free_address() -> str:
    """At random: of workers that look at the same moment, none takes another's."""
    for last in random.sample(range(1, 20), 19):  # proxies take the others
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((f"127.0.0.{last}", 5432))
            return f"127.0.0.{last}"
    pytest.exit("No loopback address has port 5432 free for the Postgres container.")


def _tls_script(address: str) -> str:
    """An init script that writes a key and a certificate of its own and switches TLS on."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lakebase-test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    certificate_pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
    return f"""#!/bin/bash
umask 077
cat >"$PGDATA/server.key" <<'PEM'
{key_pem}PEM
cat >"$PGDATA/server.crt" <<'PEM'
{certificate_pem}PEM
echo "ssl = on" >>"$PGDATA/postgresql.conf"
"""
