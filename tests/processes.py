"""Examples as processes, in an environment that holds only what a test gives them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
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
