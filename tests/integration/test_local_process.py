"""A local Lakebase as a process: signals, kills, neighbours. What runs here is the command."""

from __future__ import annotations

import contextlib
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
from lakebase_sessions.local import LocalLakebase, watcher

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.long

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

    def watcher(self) -> psutil.Process:
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if child.name() != "postgres")

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


def wait_for_the_end_of(*processes: psutil.Process) -> None:
    deadline = time.monotonic() + 60
    while left := [process for process in processes if lives(process)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


@contextlib.contextmanager
def program(source: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A running program with a LocalLakebase, and the words of its first line."""
    heading = "import os, time\nfrom lakebase_sessions.local import LocalLakebase\n"
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", heading + source], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            yield process, process.stdout.readline().split()
        finally:
            process.kill()


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


def test_a_kill_takes_the_server_along(run: type[Running], tmp_path: Path) -> None:
    """In good order, with a client that is still connected; the next start finds everything."""
    running = run(tmp_path / "data")
    running.exports()
    server, guard = running.postgres(), running.watcher()
    dsn = f"host={tmp_path}/data/socket user=postgres dbname=databricks_postgres"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 42 AS x")
        running.end(signal.SIGKILL)
        wait_for_the_end_of(server, guard)
    assert "database system is shut down" in (tmp_path / "data" / "postgres.log").read_text()
    with (
        LocalLakebase(tmp_path / "data") as local,
        psycopg.connect(local.admin_dsn, dbname="databricks_postgres") as conn,
    ):
        assert conn.execute("SELECT x FROM kept").fetchone() == (42,)


def test_a_server_that_ignores_signals_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "STOP_TIMEOUT_SECONDS", 0.1)
    command = ["sh", "-c", "trap '' INT QUIT; echo; exec sleep 60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        watcher.end(psutil.Process(process.pid))
        assert process.wait() == -signal.SIGKILL


def test_signals_that_mean_the_owner_do_not_end_the_watcher(
    run: type[Running], tmp_path: Path
) -> None:
    """`pkill -f lakebase` meets both."""
    running = run(tmp_path / "data")
    running.exports()
    server, guard = running.postgres(), running.watcher()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        guard.send_signal(signum)
    running.end(signal.SIGKILL)
    wait_for_the_end_of(server, guard)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("where", ["None", "data"])
def test_a_program_that_is_killed_leaves_nothing(
    tmp_path: Path, where: str, signum: signal.Signals
) -> None:
    """Neither a server nor a temporary folder; a folder that was given stays."""
    data = tmp_path / "data"
    with program(
        f"local = LocalLakebase({'None' if where == 'None' else repr(str(data))}).start()\n"
        "compute = local.add_compute('projects/p/branches/b/endpoints/e')\n"
        "postgres = local._started_server().postgres\n"
        "print(postgres.data, compute.host, postgres._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    ) as (process, (folder, host, pid)):
        server = psutil.Process(int(pid))
        process.send_signal(signum)
        assert process.wait() == -signum
        wait_for_the_end_of(server)
    temporary = [Path(host)] if where == "data" else [Path(host), Path(folder)]
    deadline = time.monotonic() + 20
    while left := [path for path in temporary if path.exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)
    assert Path(folder).exists() is (where == "data")


def test_a_kill_during_the_first_start_leaves_nothing(tmp_path: Path) -> None:
    """While initdb runs, and while the server starts."""
    for file in ("postgres.new/PG_VERSION", "postgres/postmaster.pid"):
        with program(
            f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}\n"
            "print('now', flush=True)\n"
            "LocalLakebase().start()\n"
            "time.sleep(60)\n"
        ) as (process, _):
            while not list(tmp_path.glob(f"lakebase-*/{file}")):
                time.sleep(0.001)
            process.kill()
        deadline = time.monotonic() + 20
        while left := [*servers_under(tmp_path), *map(str, tmp_path.iterdir())]:
            assert time.monotonic() < deadline, left
            time.sleep(0.01)


def test_a_forked_child_does_not_keep_it(tmp_path: Path) -> None:
    """It inherits the pipe and the lock; when the parent is killed, both are free all the same."""
    with program(
        f"local = LocalLakebase({str(tmp_path / 'data')!r}).start()\n"
        "server = local._started_server().postgres._process.pid\n"
        "if os.fork() == 0 and (grandchild := os.fork()):\n"
        "    print(os.getpid(), grandchild, server, flush=True)\n"
        "time.sleep(60)\n"
    ) as (process, pids):
        *family, server = (psutil.Process(int(pid)) for pid in pids)
        try:
            process.kill()
            wait_for_the_end_of(server)
            assert [lives(one) for one in family] == [True, True]
            LocalLakebase(tmp_path / "data").start().stop()
        finally:
            for one in family:
                one.kill()


def test_after_both_are_killed_the_next_start_ends_the_server(
    run: type[Running], tmp_path: Path
) -> None:
    """With nobody left to watch, a server runs on; what it had acknowledged is there."""
    running = run(tmp_path / "data")
    running.exports()
    server = running.postgres()
    running.watcher().kill()
    running.end(signal.SIGKILL)
    assert lives(server)
    dsn = f"host={tmp_path}/data/socket user=postgres dbname=databricks_postgres"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 42 AS x")
    with LocalLakebase(tmp_path / "data") as local:
        assert not lives(server)
        with psycopg.connect(local.admin_dsn, dbname="databricks_postgres") as conn:
            assert conn.execute("SELECT x FROM kept").fetchone() == (42,)


def test_after_all_are_killed_the_next_start_recovers(run: type[Running], tmp_path: Path) -> None:
    """With the server killed too, its pid file is stale."""
    running = run(tmp_path / "data")
    running.exports()
    server = running.postgres()
    with psycopg.connect(
        f"host={tmp_path}/data/socket user=postgres dbname=databricks_postgres", autocommit=True
    ) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 42 AS x")
    running.watcher().kill()
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
