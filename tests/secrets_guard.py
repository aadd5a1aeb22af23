"""A pytest plugin: a test fails if a token or a password shows in anything that comes out of it.

Every token that a `LocalLakebase` of this process issues is remembered, and looked for in what
tests print, log (by any logger, at DEBUG), raise, catch with `pytest.raises`, and read from the
processes they start. So are its first and last ten characters, because that is how upstream
shortens tokens in its logs. Upstream's class and the SDK do log what they fetch; a test that has
them fetch a token, and not this package, is marked `upstream_logs`.
"""

from __future__ import annotations

import functools
import logging
import subprocess
import traceback
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from servers import PASSWORD

from lakebase_sessions.local.identities import Identities
from lakebase_sessions.local.tokens import Tokens

PART_LENGTH = 10
UPSTREAM = ("logger databricks_ai_bridge", "logger databricks.sdk")


class SecretsGuard:
    """What was issued, and what has been shown since the last report."""

    def __init__(self) -> None:
        self._secrets = {PASSWORD}
        self._shown: list[tuple[str, str]] = []
        self._patches = pytest.MonkeyPatch()

    def watch(self) -> None:
        """From now on, see whatever is issued, logged, caught, or read from a process."""
        self._after(Identities, "add", lambda known: self._secrets.add(known.secret))
        self._after(Identities, "log_in", self._secrets.add)
        self._after(Tokens, "mint", lambda minted: self._secrets.add(minted[0]))
        self._after(subprocess.Popen, "communicate", self._see_output)
        self._watch_caught()
        self._watch_loggers()

    def stop(self) -> None:
        self._patches.undo()

    def see(self, where: str, text: str) -> None:
        self._shown.append((where, text))

    def leaks(self, *, upstream_logs: bool) -> list[str]:
        """One line for each place that has shown a secret since the last call."""
        shown, self._shown = self._shown, []
        if upstream_logs:
            shown = [(where, text) for where, text in shown if not where.startswith(UPSTREAM)]
        found = set()
        for secret in list(self._secrets):
            parts = secret[:PART_LENGTH], secret[-PART_LENGTH:]
            for where, text in shown:
                if any(part in text for part in parts):
                    found.add(f"{where}: {'a' if secret in text else 'part of a'} secret")
        return sorted(found)

    def _after(self, owner: type, name: str, look: Callable[[Any], object]) -> None:
        """Have `look` see what every call of a method returns."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def watched(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            look(result)
            return result

        self._patches.setattr(owner, name, watched)

    def _see_output(self, streams: tuple[str | bytes | None, ...]) -> None:
        for text in streams:
            decoded = text.decode(errors="replace") if isinstance(text, bytes) else text
            self.see("output of a process", decoded or "")

    def _watch_caught(self) -> None:
        leave = pytest.RaisesExc.__exit__

        def watched(raises: Any, kind: Any, error: BaseException | None, where: Any) -> bool:
            if error is not None:
                self.see("an exception that was caught", _text_of(error))
            return leave(raises, kind, error, where)

        self._patches.setattr(pytest.RaisesExc, "__exit__", watched)

    def _watch_loggers(self) -> None:
        """See what each logger would log at DEBUG; what handlers and caplog get stays the same."""
        is_enabled, handle = logging.Logger.isEnabledFor, logging.Logger.handle

        def watched(logger: logging.Logger, record: logging.LogRecord) -> None:
            if not logger.disabled and logger.filter(record):
                self.see(f"logger {record.name}, {record.levelname}", _message_of(record))
            if is_enabled(logger, record.levelno):
                handle(logger, record)

        self._patches.setattr(logging.Logger, "isEnabledFor", lambda _logger, _level: True)
        self._patches.setattr(logging.Logger, "handle", watched)


def _text_of(error: BaseException) -> str:
    """The messages of an exception and of its causes: a traceback without its frames."""
    return "".join(traceback.format_exception(error, limit=0))


def _message_of(record: logging.LogRecord) -> str:
    try:
        message = record.getMessage()
    except Exception:  # a log call of somebody's that does not fit its own format
        message = f"{record.msg} {record.args}"
    error = record.exc_info[1] if record.exc_info else None
    return message if error is None else f"{message}\n{_text_of(error)}"


_guard = pytest.StashKey[SecretsGuard]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "upstream_logs: has upstream's class or the SDK fetch a token; they log it"
    )
    config.stash[_guard] = SecretsGuard()
    config.stash[_guard].watch()


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_guard].stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    guard = item.config.stash[_guard]
    for title, text in [*report.sections, (f"the outcome of {report.when}", report.longreprtext)]:
        if title.endswith(str(report.when)):  # those of earlier phases are there again
            guard.see(title, text)
    marked = item.get_closest_marker("upstream_logs") is not None
    if leaks := "; ".join(guard.leaks(upstream_logs=marked)):
        if any(logger in leaks for logger in UPSTREAM):
            leaks += " (if this test has upstream fetch a token: @pytest.mark.upstream_logs)"
        report.sections.append(("Secrets", leaks))
        if not report.failed:
            report.outcome = "failed"
            report.longrepr = leaks
    return report


@pytest.fixture(scope="session", autouse=True)
def logs_of_processes(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[None]:
    """Looked through at the end; what they show fails the teardown of the last test."""
    yield
    folder = tmp_path_factory.getbasetemp()
    for log in folder.rglob("*.log"):
        if log.is_file():
            pytestconfig.stash[_guard].see(
                str(log.relative_to(folder)), log.read_text(errors="replace")
            )
