"""TLS: what is asked of libpq, and what goes over the wire where there is none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import certifi
import pytest
from conftest import admin
from proxy import Proxy
from sqlalchemy import text

from lakebase_sessions import ConfigurationError, Lakebase, session_for
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.workspace.settings import Settings

WEAK = ("disable", "allow", "prefer")
STRONG = ("require", "verify-ca", "verify-full")
URL = "postgresql://mia:secret@ep-a.database.x.cloud.databricks.com/db"


# --- what is asked for --------------------------------------------------------------------------


def test_without_a_word_about_it_tls_is_required() -> None:
    assert Settings.from_environ({"PGHOST": "ep-a.x.databricks.com"}).ssl_mode == "require"


@pytest.mark.parametrize("mode", STRONG)
def test_stronger_modes_go_to_libpq(mode: str) -> None:
    environ = {"LAKEBASE_INSTANCE_NAME": "x", "PGSSLMODE": mode}
    assert Settings.from_environ(environ).ssl_mode == mode
    assert Settings.from_environ({}, target=f"{URL}?sslmode={mode}").ssl_mode == mode


def test_what_the_target_says_comes_before_the_variable() -> None:
    environ = {"PGSSLMODE": "require"}
    assert Settings.from_environ(environ, target=f"{URL}?sslmode=verify-ca").ssl_mode == "verify-ca"


@pytest.mark.parametrize("mode", WEAK)
@pytest.mark.parametrize(
    "target",
    [
        URL + "?sslmode={}",
        URL + "?connect_timeout=3&sslmode={}&sslmode=require#x",
        URL + "?%73slmode={}",
        "host=ep-a.database.x.cloud.databricks.com sslmode = '{}'",
    ],
)
def test_a_target_that_allows_plain_text_is_refused(target: str, mode: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'{mode}'.*plain text.*require"):
        Lakebase(target.format(mode))


@pytest.mark.parametrize("mode", WEAK)
async def test_a_variable_that_allows_plain_text_is_refused_before_anything_is_sent(
    environ: dict[str, str], local: LocalLakebase, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("PGSSLMODE", mode)
    asked = local.requests
    with pytest.raises(ConfigurationError, match=f"PGSSLMODE is '{mode}'.*plain text.*require"):
        await session_for(session_id="s").get_items()
    with pytest.raises(ConfigurationError, match="PGSSLMODE"):
        await Lakebase("local").open()
    assert local.requests == asked


def test_a_mode_that_is_none_is_refused_and_not_shown() -> None:
    """What stands there may be the end of a password."""
    with pytest.raises(ConfigurationError, match="none that libpq knows") as caught:
        Settings.from_environ({}, target="postgresql://mia:x&sslmode=pa55word@host/db")
    assert "pa55word" not in str(caught.value)


# --- what goes over the wire --------------------------------------------------------------------

SSL_REQUEST = bytes.fromhex("0000000804d2162f")


class ServerWithoutTls(asyncio.Protocol):
    """Answers as a Postgres does that has no TLS, and keeps what it is told."""

    received = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        type(self).received = b""

    def data_received(self, data: bytes) -> None:
        type(self).received += data
        self.transport.write(b"N")


@pytest.fixture
async def host_without_tls() -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    for last in range(20, 255):
        host = f"127.0.0.{last}"
        with contextlib.suppress(OSError):
            async with await loop.create_server(ServerWithoutTls, host, 5432):
                yield host
            return


async def test_a_server_without_tls_is_told_nothing(
    local: LocalLakebase, host_without_tls: str
) -> None:
    """Neither who wants to log in, nor a token; and it is not asked again and again."""
    local.add_instance("plain", read_write_dns=host_without_tls)
    lakebase = Lakebase("plain", workspace_client=local.workspace_client())
    with pytest.raises(ConfigurationError, match="server does not support SSL"):
        await lakebase.open()
    local.remove_instance("plain")
    assert ServerWithoutTls.received == SSL_REQUEST


# --- with certificates, on the container --------------------------------------------------------


@pytest.fixture
def tls(local: LocalLakebase) -> None:
    if local.host.startswith("/"):
        pytest.skip("a Unix socket has no TLS; --postgres=container has")


@pytest.fixture
def certificate(tls: None, local: LocalLakebase, database: str, tmp_path: Path) -> Path:
    """The server's own, which nobody has signed."""
    with admin(local, database) as connection:
        found = connection.execute("SELECT pg_read_file('server.crt')").fetchone()
    assert found is not None
    path = tmp_path / "server.crt"
    path.write_text(found[0])
    return path


async def test_connections_are_encrypted(tls: None, lakebase: Lakebase) -> None:
    session = lakebase.session("s")
    await session.get_items()
    async with session.engine.connect() as connection:
        found = await connection.execute(
            text("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        )
        assert found.one() == (True, "TLSv1.3")


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
async def test_a_certificate_that_is_trusted(
    lakebase: Lakebase, certificate: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("PGSSLMODE", mode)
    monkeypatch.setenv("PGSSLROOTCERT", str(certificate))
    assert await lakebase.session("s").get_items() == []


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
async def test_a_certificate_that_nobody_trusts(
    lakebase: Lakebase, tls: None, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("PGSSLMODE", mode)
    monkeypatch.setenv("PGSSLROOTCERT", certifi.where())
    with pytest.raises(ConfigurationError, match=r"certificate verify failed.*PGSSLROOTCERT"):
        await lakebase.open()


async def test_trusting_the_system_and_not_verifying_is_a_contradiction(
    lakebase: Lakebase, tls: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libpq refuses it, so that nobody believes to be safe who is not."""
    monkeypatch.setenv("PGSSLROOTCERT", "system")
    with pytest.raises(ConfigurationError, match='weak sslmode "require"'):
        await lakebase.open()


async def test_roots_that_are_not_there(
    lakebase: Lakebase, tls: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    monkeypatch.setenv("PGSSLROOTCERT", str(tmp_path / "missing.crt"))
    with pytest.raises(ConfigurationError, match=r"missing\.crt.*PGSSLROOTCERT"):
        await lakebase.open()


async def test_a_certificate_of_another_host(
    local: LocalLakebase, database: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`verify-full` notices who stands in between, `verify-ca` does not."""
    monkeypatch.setenv("PGSSLROOTCERT", str(certificate))
    client = local.workspace_client()
    with Proxy(local.host) as proxy:
        local.add_instance("between", read_write_dns=proxy.host)
        monkeypatch.setenv("PGSSLMODE", "verify-full")
        with pytest.raises(ConfigurationError, match=f'does not match host name "{proxy.host}"'):
            await Lakebase("between", workspace_client=client, database=database).open()
        monkeypatch.setenv("PGSSLMODE", "verify-ca")
        async with Lakebase("between", workspace_client=client, database=database) as lakebase:
            assert await lakebase.session("s").get_items() == []
        local.remove_instance("between")
