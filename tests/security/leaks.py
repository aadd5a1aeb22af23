"""Tests that leak on purpose, run by `test_secrets.py`: and have to fail, but for the last two."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lakebase_sessions.local import DEFAULT_USER, LocalLakebase

logger = logging.getLogger("somebody")


@pytest.fixture(scope="module")
def local() -> Iterator[LocalLakebase]:
    with LocalLakebase() as local:
        yield local


@pytest.fixture
def token(local: LocalLakebase) -> str:
    token: str = local._started_server().tokens.mint(DEFAULT_USER)[0]
    return token


@pytest.fixture
def workspace_token(local: LocalLakebase) -> str:
    return local.environ["DATABRICKS_TOKEN"]


def test_print(token: str) -> None:
    print("the token is", token)


def test_print_of_a_workspace_token(workspace_token: str) -> None:
    print(workspace_token)


def test_child(token: str) -> None:
    subprocess.run(["sh", "-c", 'echo "$0" >&2', token], check=True)


def test_child_whose_output_is_read(token: str) -> None:
    subprocess.run(["echo", token], capture_output=True, check=True)


def test_child_with_a_log(token: str, tmp_path: Path) -> None:
    """Seen when all tests are over: the last one fails in its teardown."""
    Path(tmp_path, "server.log").write_text(token)


def test_beginning_in_a_debug_log(token: str) -> None:
    logger.debug("token %s...", token[:10])


def test_end_in_a_debug_log(token: str) -> None:
    logger.debug("token ...%s", token[-10:])


def test_log_that_goes_nowhere(token: str) -> None:
    silent = logging.getLogger("silent")
    silent.propagate = False
    silent.setLevel(logging.CRITICAL)
    silent.debug(token)


def test_logged_exception(token: str) -> None:
    try:
        raise ValueError(token)
    except ValueError:
        logger.debug("failed", exc_info=True)


def test_caught_exception(token: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        raise ValueError(token)


def test_cause_of_a_caught_exception(token: str) -> None:
    with pytest.raises(ValueError, match="no"):
        raise ValueError("no") from KeyError(token)


@pytest.mark.upstream_logs
def test_print_of_upstream(token: str) -> None:
    """The mark is for two loggers alone."""
    print(token)


@pytest.mark.upstream_logs
def test_log_of_upstream(token: str) -> None:
    logging.getLogger("databricks_ai_bridge.lakebase").debug(token[:10])


def test_nothing(token: str) -> None:
    logger.debug("a token of %d characters", len(token))
    subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, check=True)
