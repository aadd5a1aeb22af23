"""A local Lakebase as a process: signals, kills, neighbours. What runs here is the command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg
import pytest

from lakebase_sessions.errors import LocalLakebaseError
from lakebase_sessions.local import LocalLakebase

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = [sys.executable, "-c", "from lakebase_sessions.cli import main; main()", "local"]


class Running:
    """`lakebase-sessions local` in a process of its own."""

    def __init__(self, data: Path, *arguments: str) -> None:
        self.data = data
        self.process = subprocess.Popen(
            [*COMMAND, "--data", str(data), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.out = self.err = ""

    def exports(self) -> dict[str, str]:
        """What it prints once it runs; nothing if it does not come to run."""
        assert self.process.stdout
        lines = [self.process.stdout.readline() for _ in range(3)]
        pairs = [line.removeprefix("export ").strip().partition("=") for line in lines if line]
        return {name: value for name, _, value in pairs}

    def end(self, signum: int | None = None) -> int:
        if signum is not None:
            self.process.send_signal(signum)
        self.out, self.err = self.process.communicate(timeout=60)
        return self.process.returncode

    def postgres(self) -> psutil.Process:
        pid = (self.data / "postgres" / "postmaster.pid").read_text().split()[0]
        return psutil.Process(int(pid))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[type[Running]]:
    """`Running`, and afterwards nothing of it is left."""
    started: list[Running] = []

    class Noted(Running):
        def __init__(self, data: Path, *arguments: str) -> None:
            super().__init__(data, *arguments)
            started.append(self)

    yield Noted
    for one in started:
        if one.process.poll() is None:
            one.end(signal.SIGTERM)
    assert servers_under(tmp_path) == []


def lives(process: psutil.Process) -> bool:
    """A zombie, which in a container nobody may reap, has ended."""
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


def servers_under(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == "postgres" and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(run: type[Running], tmp_path: Path, signum: int) -> None:
    """Exit code 0, no traceback, no server, no socket; the data stays."""
    running = run(tmp_path / "data")
    exports = running.exports()
    assert list(exports) == ["DATABRICKS_HOST", "DATABRICKS_TOKEN", "LAKEBASE_INSTANCE_NAME"]
    server = running.postgres()
    assert lives(server)
    assert running.end(signum) == 0
    assert not lives(server)
    assert "is running" in running.err
    assert str(tmp_path / "data") in running.err.replace("\n", "")
    assert exports["DATABRICKS_TOKEN"] not in running.err
    assert "Traceback" not in running.err
    assert running.out == ""
    assert not (tmp_path / "data" / "socket").exists()
    assert (tmp_path / "data" / "postgres" / "PG_VERSION").exists()


def test_ctrl_c_in_a_terminal_reaches_the_whole_group(run: type[Running], tmp_path: Path) -> None:
    """A terminal signals every process of the group; the server is not in it and ends in order."""
    running = run(tmp_path / "data")
    running.exports()
    assert os.getpgid(running.postgres().pid) != os.getpgid(running.process.pid)
    assert running.end(signal.SIGINT) == 0
    assert "database system is shut down" in (tmp_path / "data" / "postgres.log").read_text()


def test_a_signal_during_the_start(run: type[Running], tmp_path: Path) -> None:
    running = run(tmp_path / "data")
    while not (tmp_path / "data" / "lock").exists():
        time.sleep(0.001)
    assert running.end(signal.SIGTERM) == 0
    assert "Traceback" not in running.err


def test_it_serves_another_process(run: type[Running], tmp_path: Path) -> None:
    """The three lines are enough for a program that knows nothing of this one."""
    exports = run(tmp_path / "data").exports()
    program = (
        "from databricks_ai_bridge.lakebase import LakebaseClient\n"
        "import os\n"
        "with LakebaseClient(instance_name=os.environ['LAKEBASE_INSTANCE_NAME']) as client:\n"
        "    print(client.execute('SELECT current_user AS who'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, **exports},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "developer@example.com" in done.stdout, done.stderr


def test_after_a_kill_the_next_start_recovers(run: type[Running], tmp_path: Path) -> None:
    """SIGKILL leaves a server that runs; it is ended, and what it had acknowledged is there."""
    running = run(tmp_path / "data")
    running.exports()
    server = running.postgres()
    running.end(signal.SIGKILL)
    assert lives(server)
    dsn = f"host={tmp_path}/data/socket user=postgres dbname=databricks_postgres"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 42 AS x")
    with LocalLakebase(tmp_path / "data") as local:
        assert not lives(server)
        with psycopg.connect(local.admin_dsn, dbname="databricks_postgres") as conn:
            assert conn.execute("SELECT x FROM kept").fetchone() == (42,)


def test_after_both_are_killed_the_next_start_recovers(run: type[Running], tmp_path: Path) -> None:
    """With the server killed too, its pid file is stale."""
    running = run(tmp_path / "data")
    running.exports()
    server = running.postgres()
    with psycopg.connect(
        f"host={tmp_path}/data/socket user=postgres dbname=databricks_postgres", autocommit=True
    ) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 42 AS x")
    running.end(signal.SIGKILL)
    server.kill()
    # The number may belong to somebody else by now, who must not be taken for the server.
    stranger = subprocess.Popen(["sleep", "60"])
    pid_file = tmp_path / "data" / "postgres" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]))
    try:
        with (
            LocalLakebase(tmp_path / "data") as local,
            psycopg.connect(local.admin_dsn, dbname="databricks_postgres") as conn,
        ):
            assert conn.execute("SELECT x FROM kept").fetchone() == (42,)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_server_that_dies_is_noticed(run: type[Running], tmp_path: Path) -> None:
    running = run(tmp_path / "data")
    running.exports()
    running.postgres().kill()
    assert running.end() == 1
    assert "has ended" in running.err
    assert "Traceback" not in running.err


def test_a_second_process_on_the_same_folder(run: type[Running], tmp_path: Path) -> None:
    """It is told which process has the folder; that one goes on."""
    first = run(tmp_path / "data")
    first.exports()
    second = run(tmp_path / "data")
    assert second.exports() == {}
    assert second.end() == 1
    message = second.err.replace("\n", "")
    assert str(tmp_path / "data") in message
    assert f"process {first.process.pid}" in message
    assert "Traceback" not in second.err
    with pytest.raises(LocalLakebaseError, match=f"process {first.process.pid}"):
        LocalLakebase(tmp_path / "data").start()
    assert lives(first.postgres())


def test_a_second_one_in_the_same_process(tmp_path: Path) -> None:
    with (
        LocalLakebase(tmp_path / "data") as first,
        pytest.raises(LocalLakebaseError, match=f"process {os.getpid()}"),
    ):
        LocalLakebase(tmp_path / "data").start()
    assert not first.running
    LocalLakebase(tmp_path / "data").start().stop()


def test_a_port_in_use(run: type[Running], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        running = run(tmp_path / "data", "--port", str(port))
        assert running.end() == 1
        assert f"Port {port}" in running.err
        assert "Traceback" not in running.err
        assert not (tmp_path / "data").exists()
        with pytest.raises(LocalLakebaseError, match=f"Port {port}"):
            LocalLakebase(port=port).start()


def test_the_end_of_the_interpreter_stops_it(tmp_path: Path) -> None:
    """A program that forgets to stop, and one that fails, leave nothing behind."""
    for ending in ("", "raise SystemExit(3)"):
        program = (
            "from lakebase_sessions.local import LocalLakebase\n"
            f"local = LocalLakebase({str(tmp_path / 'data')!r}).start()\n"
            "local.fault('/x', hang=True)\n"
            "print(local.host)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program + ending],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == (3 if ending else 0), done.stderr
        assert done.stderr == ""
        assert not Path(done.stdout.strip()).exists()
        assert servers_under(tmp_path) == []


def test_a_forked_child_does_not_stop_it(tmp_path: Path) -> None:
    """A child that ends normally runs the same exit handlers; the server is not its own."""
    program = (
        "import os, sys\n"
        "from lakebase_sessions.local import LocalLakebase\n"
        f"with LocalLakebase({str(tmp_path / 'data')!r}) as local:\n"
        "    pid = os.fork()\n"
        "    if pid == 0: sys.exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "    print(local.running)\n"
        "    local.workspace_client().current_user.me()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
