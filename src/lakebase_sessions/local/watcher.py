"""The watcher: a process that ends the server of an owner who can no longer do it.

SIGKILL, and SIGTERM without a handler, end a process before it can stop what it has started. So
a second one waits at the far end of a pipe, whose near end only the owner holds: when it closes,
the owner is gone, however it went. What is here runs on psutil alone and starts while initdb or
the server do, so nobody waits for it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

STOP_TIMEOUT_SECONDS = 10.0
"""For each of: a fast shutdown, an immediate one, a kill."""


class Watcher:
    """The owner's end: tells the watcher what to end and to remove, and dismisses it."""

    def __init__(self) -> None:
        far_end, near_end = os.pipe()
        try:
            # A session of its own, and no output: it must not keep the owner's terminal or pipes.
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__],
                stdin=far_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                # Where this process has found psutil, however it came to look there.
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,
            )
        except BaseException:
            os.close(near_end)
            raise
        finally:
            os.close(far_end)
        self._near_end: int | None = near_end

    def watch(self, pid: int) -> None:
        """Have it end this process when the owner is gone."""
        self._tell(str(pid))

    def remove(self, folder: Path) -> None:
        """Have it remove this folder when the owner is gone and what it watches has ended."""
        self._tell(str(folder))

    def _tell(self, line: str) -> None:
        if self._near_end is not None:
            with contextlib.suppress(BrokenPipeError):  # it was killed: then nobody watches
                os.write(self._near_end, os.fsencode(line) + b"\n")

    def dismiss(self) -> None:
        """End it: there is nothing left to do."""
        self._process.kill()
        self._process.wait()
        self.let_go()

    def let_go(self) -> None:
        """Close this end of the pipe; as a forked child, so that only the parent holds it."""
        if self._near_end is not None:
            os.close(self._near_end)
            self._near_end = None


def end(process: psutil.Process) -> None:
    """End a server in the gentlest way that works, and return when it has ended."""
    for signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # fast, immediate, kill
        deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signum)
        while lives(process):
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        else:
            return


def lives(process: psutil.Process) -> bool:
    """Return whether a process has not ended."""
    try:
        # In a container nobody may reap what a killed process leaves: a zombie has ended.
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def end_leftovers(cluster: Path) -> None:
    """End the server that a killed process left on this folder, and what that one left."""
    pid_file = cluster / "postmaster.pid"
    if not pid_file.exists():
        return
    # By what a process is and where it works, not by the pid in the file: that number may be
    # another program's by now.
    postmaster, orphans = None, []
    pid = pid_file.read_text().partition("\n")[0]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == "postgres" and Path(process.cwd()) == cluster:
                if str(process.pid) == pid:
                    postmaster = process
                else:
                    orphans.append(process)
    if postmaster is not None:
        end(postmaster)  # it ends its own children, in good order
    for process in orphans:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
        while lives(process):
            time.sleep(0.01)
    pid_file.unlink(missing_ok=True)


def main() -> None:
    """Wait for the end of the owner, and clean up after it."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # `pkill -f lakebase` and the like mean the owner
    watched, folders = [], []
    for line in sys.stdin.buffer:
        if line.startswith(b"/"):
            folders.append(os.fsdecode(line.removesuffix(b"\n")))
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            # psutil also notes when it was started: a pid may be another program's later.
            watched.append(psutil.Process(int(line)))
    for process in watched:
        end(process)
    for folder in folders:
        for _ in range(10):  # what was being started may still write
            shutil.rmtree(folder, ignore_errors=True)
            if not Path(folder).exists():
                break
            time.sleep(0.1)


if __name__ == "__main__":
    main()
