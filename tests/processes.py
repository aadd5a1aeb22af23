"""Processes: examples in an environment that holds only what a test gives them, and forks."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
import pytest

START_TIMEOUT_SECONDS = 90
"""Importing Databricks' libraries takes 5 to 11 seconds, on a busy machine more."""

_CONFIGURATION = ("AGENT_", "DATABRICKS_", "LAKEBASE_", "MLFLOW_", "OPENAI_", "PG")


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """`variables` and whatever of this process' environment configures nothing here."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(_CONFIGURATION)
    }
    return inherited | {"MLFLOW_TRACE_SAMPLING_RATIO": "0"} | dict(variables)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def started(
    arguments: list[str | Path], variables: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that is ended, as by Ctrl-C, with the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=log.parent,
            env=environment(variables),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()


def wait_until_it_serves(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Return once `url` answers."""
    give_up_at = time.monotonic() + START_TIMEOUT_SECONDS
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url).is_success:
                return
        if process.poll() is not None or time.monotonic() > give_up_at:
            pytest.fail(f"the server did not start:\n{log.read_text()[-3000:]}")
        time.sleep(0.1)


class Fork:
    """A child with everything that is in this process' memory; it does `work` and ends at once.

    Many times cheaper than a new interpreter, so there may be one at every step of something.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self._errors, errors = os.pipe()
        with warnings.catch_warnings():
            # Python 3.12 warns that there are threads. So there are in what gunicorn preloads.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                work()
                status = 0
            except BaseException:
                os.write(errors, traceback.format_exc().encode())
            finally:
                os._exit(status)
        os.close(errors)

    def join(self) -> None:
        """Wait for its end; `work` must not have failed."""
        ended, _, _ = select.select([self._errors], [], [], 30)
        error = os.read(self._errors, 100_000).decode() if ended else "It hangs."
        if not ended:
            os.kill(self.pid, signal.SIGKILL)
        self._reap()
        if error:
            pytest.fail(f"a forked child failed:\n{error}")

    def kill(self) -> None:
        """End it by SIGKILL, in the middle of whatever it does."""
        os.kill(self.pid, signal.SIGKILL)
        self._reap()

    def _reap(self) -> None:
        os.waitpid(self.pid, 0)
        os.close(self._errors)
