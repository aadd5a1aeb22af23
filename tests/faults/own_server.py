"""A Postgres of a test's own, behind a LocalLakebase, that can be stopped and started.

The control plane lives on meanwhile, as the platform's does.
"""

from __future__ import annotations

import itertools
import os
import pwd
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest
from servers import SMALL_DISK, SMALL_DISK_MB, container, wait_until_it_answers

from lakebase_sessions.local import LocalLakebase

Manner = Literal["fast", "immediate", "kill"]

_SIGNALS = {
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
    "kill": signal.SIGKILL,
}


class Machine(Protocol):
    """Where the server runs."""

    dsn: str

    def stop(self, manner: Manner) -> None: ...

    def start(self) -> None: ...

    def kill(self, pid: int) -> None: ...

    def folder_on_small_disk(self) -> str: ...


@dataclass
class OwnServer:
    """The server and what stands in front of it."""

    local: LocalLakebase
    machine: Machine
    stopped: bool = False

    def stop(self, manner: Manner = "fast") -> None:
        """Stop it and return when it has ended: a fast or immediate shutdown, or SIGKILL."""
        self.stopped = True
        self.machine.stop(manner)

    def start(self) -> None:
        """Start it if it is stopped, at the same address; return when it takes connections."""
        if self.stopped:
            self.machine.start()
            self.stopped = False

    def kill_backend(self, pid: int) -> None:
        """SIGKILL for one backend: Postgres throws everybody out and recovers."""
        self.machine.kill(pid)

    def folder_on_small_disk(self) -> str:
        """An empty folder for a tablespace, where `SMALL_DISK_MB` fill the disk."""
        return self.machine.folder_on_small_disk()


@contextmanager
def own_server(choice: str, folder: Path) -> Iterator[OwnServer]:
    """A running server of the chosen kind.

    Args:
        choice: `embedded` or `container`; with a DSN the test is skipped.
        folder: For the embedded server's data.
    """
    with ExitStack() as stack:
        if choice == "embedded":
            machine: Machine = stack.enter_context(_embedded(folder))
        elif choice == "container":
            machine = stack.enter_context(_container())
        else:
            pytest.skip("a server that is given by a DSN is not ours to stop")
        yield OwnServer(stack.enter_context(LocalLakebase(dsn=machine.dsn)), machine)


class _Embedded:
    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            # pgserver warns where XDG_RUNTIME_DIR is not set; that folder is not used here.
            warnings.simplefilter("ignore")
            from lakebase_sessions.local.postgres import ADMIN_ROLE, EmbeddedPostgres
        self._folder = folder
        self._postgres = EmbeddedPostgres(folder / "data", version=18)
        self._mounted: list[Path] = []
        self.start()
        self.dsn = f"host={self._postgres.socket_dir} user={ADMIN_ROLE} dbname=postgres"

    def start(self) -> None:
        self._postgres.start()

    def stop(self, manner: Manner) -> None:
        pid_file = self._folder / "data" / "postgres" / "postmaster.pid"
        os.kill(int(pid_file.read_text().split()[0]), _SIGNALS[manner])
        while self._postgres.running:
            time.sleep(0.01)
        self._postgres.stop()  # gives the folder free for the next start

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def folder_on_small_disk(self) -> str:
        folder = self._folder / f"small-{len(self._mounted)}"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_MB}m", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
            pytest.skip("a small disk cannot be mounted here; that takes root")
        self._mounted.append(folder)
        os.chown(folder, pwd.getpwnam("pgserver").pw_uid, -1)
        return str(folder)

    def close(self) -> None:
        self._postgres.stop()
        for folder in self._mounted:
            subprocess.run(["umount", folder], check=True)


@contextmanager
def _embedded(folder: Path) -> Iterator[_Embedded]:
    machine = _Embedded(folder)
    try:
        yield machine
    finally:
        machine.close()


class _Container:
    def __init__(self, server: Any, dsn: str) -> None:
        self._server = server
        self._numbers = itertools.count()
        self.dsn = dsn

    def start(self) -> None:
        self._server.start()
        wait_until_it_answers(self.dsn)

    def stop(self, manner: Manner) -> None:
        self._server.kill(_SIGNALS[manner].name)  # Postgres is its first process
        self._server.wait()

    def kill(self, pid: int) -> None:
        killed = self._server.exec_run(["bash", "-c", f"kill -KILL {pid}"])
        assert killed.exit_code == 0, killed.output

    def folder_on_small_disk(self) -> str:
        folder = f"{SMALL_DISK}/{next(self._numbers)}"
        made = self._server.exec_run(["install", "-d", "-o", "postgres", "-m", "700", folder])
        assert made.exit_code == 0, made.output
        return folder


@contextmanager
def _container() -> Iterator[_Container]:
    with container() as (server, dsn):
        yield _Container(server.get_wrapped_container(), dsn)
