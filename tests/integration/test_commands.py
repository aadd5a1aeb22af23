"""The commands about conversations, against a real server: what they print, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from conftest import admin
from processes import environment

from lakebase_sessions.cli import main
from lakebase_sessions.local import LocalLakebase

pytestmark = pytest.mark.long

HOSTILE = "\x1b[2J\x1b]0;owned\x07 \u202eright to left\u2069 \x9b31m \u200bend\r\nnew line"


@pytest.fixture
def sql(
    local: LocalLakebase, database: str, environ: dict[str, str]
) -> Iterator[psycopg.Connection[Any]]:
    """The database that the commands of the test are about."""
    with admin(local, database) as connection:
        yield connection


def store(
    sql: psycopg.Connection[Any], session_id: str, *said: str, title: str | None = None
) -> None:
    sql.execute("INSERT INTO agent_sessions VALUES (%s)", [session_id])
    for number, text in enumerate(said):
        item = {"role": ("user", "assistant")[number % 2], "content": text}
        sql.execute(
            "INSERT INTO agent_messages (session_id, message_data) VALUES (%s, %s)",
            [session_id, json.dumps(item)],
        )
    if title is not None:
        sql.execute("INSERT INTO agent_conversations VALUES (%s, %s)", [session_id, title])


def ids(sql: psycopg.Connection[Any]) -> list[str]:
    return [row[0] for row in sql.execute("SELECT session_id FROM agent_sessions ORDER BY 1")]


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def objects(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


Start = Callable[..., subprocess.Popen[bytes]]


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def process() -> Iterator[Start]:
    """Starts the command in a process of its own."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
            started = subprocess.Popen(
                [sys.executable, "-m", "lakebase_sessions", *arguments],
                env=environment(dict(os.environ)),
                # A shell's background jobs are started deaf to Ctrl-C.
                preexec_fn=_hear_ctrl_c,  # noqa: PLW1509 - it runs no code of this process
                **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
            )
            stack.enter_context(started)
            stack.callback(started.kill)
            return started

        yield start


class TestList:
    def test_a_table_for_people_and_lines_for_programs(self, sql: psycopg.Connection[Any]) -> None:
        store(sql, "trip-7", "A flight to Seattle, please", "Sure.")
        store(sql, "mia%40example.com:" + "x" * 200, title="Hotels")
        shown = run("list").stdout
        assert "A flight to Seattle" in shown
        assert "x" * 200 in shown  # an id that is cut off is of no use
        both = objects(run("list", "-o", "json"))
        assert {each["title"] for each in both} == {"A flight to Seattle, please", "Hotels"}
        [mias] = objects(run("list", "--user", "mia@example.com", "-o", "json"))
        assert mias["title"] == "Hotels"
        assert mias["items"] == 0

    def test_filters(self, sql: psycopg.Connection[Any]) -> None:
        for name, days in (("old", 40), ("new", 0)):
            store(sql, name)
            sql.execute(
                "UPDATE agent_sessions SET updated_at = updated_at - %s * interval '1 day' "
                "WHERE session_id = %s",
                [days, name],
            )
        sql.execute("INSERT INTO agent_conversations VALUES ('old', NULL, '{\"a\": \"b=c\"}')")

        def found(*options: str) -> list[str]:
            listed = objects(run("list", "-o", "json", *options))
            return [each["session_id"] for each in listed]

        assert found() == ["new", "old"]
        assert found("--since", "7d") == ["new"]
        assert found("--before", "7d") == ["old"]
        assert found("--since", "2001-01-01") == ["new", "old"]
        assert found("--metadata", "a=b=c") == ["old"]
        assert found("-n", "1") == ["new"]
        assert "more than these 1" in run("list", "-n", "1").stderr
        assert "more" not in run("list", "-n", "2").stderr

    @pytest.mark.parametrize(
        "option", [["--since", "soon"], ["--metadata", "a"], ["-n", "-1"], ["--order", "title"]]
    )
    def test_wrong_usage(self, option: list[str]) -> None:
        run("list", *option, code=2)


class TestSearch:
    def test_what_was_said(self, sql: psycopg.Connection[Any]) -> None:
        store(sql, "a", "A Window seat, 100%", "Sure.")
        store(sql, "mia:b", "an ÉTAGE", "a window")
        store(sql, "c", "1000", "no")

        def found(*arguments: str) -> list[str]:
            listed = objects(run("search", *arguments, "-o", "json"))
            return sorted(each["session_id"] for each in listed)

        assert found("window") == ["a", "mia:b"]
        assert found("window", "--user", "mia") == ["mia:b"]
        assert found("étage") == ["mia:b"]
        assert found("100%") == ["a"]
        assert len(found("window", "-n", "1")) == 1
        assert "Window seat" in run("search", "WINDOW").stdout
        run("search", " ", code=2)
        run("search", code=2)


class TestShow:
    def test_what_was_said(self, sql: psycopg.Connection[Any]) -> None:
        store(sql, "trip-7", "Hello", "Good morning.\nHow are you?", title="Greetings")
        for row in (
            '{"type":"function_call","call_id":"c","name":"weather","arguments":"{\\"a\\":1}"}',
            '{"type":"function_call_output","call_id":"c","output":"' + "sunny " * 99 + '"}',
            "no JSON",
            "[1]",
        ):
            sql.execute("INSERT INTO agent_messages VALUES (DEFAULT, 'trip-7', %s)", [row])
        shown = run("show", "trip-7").stdout
        for words in (
            "title:    Greetings",
            "user: Hello",
            "assistant: Good morning.\n    How are you?",
            'call: weather({"a":1})',
            "output: sunny",
            "no JSON",
        ):
            assert words in shown
        assert "sunny " * 50 not in shown
        [whole] = objects(run("show", "trip-7", "-o", "json"))
        assert whole["history"][0] == {"role": "user", "content": "Hello"}
        assert len(whole["history"]) == 5
        [latest] = objects(run("show", "trip-7", "-o", "json", "-n", "1"))
        assert latest["history"] == [[1]]

    def test_one_that_is_not_there_or_somebody_elses(self, sql: psycopg.Connection[Any]) -> None:
        store(sql, "bob:trip-7", "secret")
        for arguments in (["trip-7"], ["bob:trip-7", "--user", "mia"], ["trip-7", "--user", "b"]):
            result = run("show", *arguments, code=1)
            assert result.stderr.startswith("Error: There is no conversation")
            assert "secret" not in result.output

    def test_hostile_text_does_nothing_in_a_terminal(self, sql: psycopg.Connection[Any]) -> None:
        store(sql, "s", HOSTILE, HOSTILE, title=HOSTILE)
        for command in (["list"], ["show", "s"], ["title", "s"]):
            shown = run(*command).stdout
            left = [each for each in shown if not (each.isprintable() or each == "\n")]
            assert left == []
            assert "\\x1b[2J" in shown
        for command in (["list", "-o", "json"], ["show", "s", "-o", "json"]):
            assert run(*command).stdout.isascii()


class TestTitle:
    def test_set_printed_and_taken_away(self, sql: psycopg.Connection[Any]) -> None:
        store(sql, "trip-7", "The first words")
        assert run("title", "trip-7").stdout == "The first words\n"
        assert run("title", "trip-7", "Seattle").stdout == "Seattle\n"
        [told] = objects(run("title", "trip-7", "-o", "json"))
        assert (told["title"], told["titled"]) == ("Seattle", True)
        assert run("title", "trip-7", "--clear").stdout == "The first words\n"
        run("title", "trip-7", "a", "--clear", code=2)
        run("title", "gone", "a", code=1)
        run("title", "trip-7", "a" * 999, code=1)


class TestDelete:
    def test_conversations_by_name(self, sql: psycopg.Connection[Any]) -> None:
        for name in ("a", "b", "mia:a", "mia:b"):
            store(sql, name, "Hi")
        run("delete", "a", "gone", "--yes", code=1)
        assert ids(sql) == ["a", "b", "mia:a", "mia:b"]
        assert "Deleted 1 conversation." in run("delete", "a", "-y").stderr
        [told] = objects(run("delete", "--all", "--user", "mia", "--yes", "-o", "json"))
        assert told == {"deleted": 2}
        assert ids(sql) == ["b"]

    def test_without_a_terminal_it_wants_yes(self, sql: psycopg.Connection[Any]) -> None:
        store(sql, "a", "Hi")
        result = run("delete", "a", code=2)
        assert "--yes" in result.stderr
        assert ids(sql) == ["a"]

    @pytest.mark.parametrize(
        "arguments", [[], ["a", "--all"], ["--all"], ["--user", "mia"], ["--all", "a", "-y"]]
    )
    def test_wrong_usage(self, arguments: list[str]) -> None:
        run("delete", *arguments, code=2)

    @pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"n\n", 1), (b"\x03", 130)])
    def test_in_a_terminal_it_asks(
        self, sql: psycopg.Connection[Any], process: Start, answer: bytes, code: int
    ) -> None:
        store(sql, "a", "Hi \x1b[31m there")
        ours, theirs = pty.openpty()
        asking = process(
            "delete", "a", stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        asked = _read_until(ours, b"[y/N]")
        assert b"\\x1b[31m" in asked
        if answer == b"\x03":
            time.sleep(1)  # Python's input() does not see one that comes before it reads
            asking.send_signal(signal.SIGINT)  # the terminal is not its controlling one
        else:
            os.write(ours, answer)
        assert asking.wait(60) == code
        assert b"Traceback" not in _rest(ours)
        assert ids(sql) == ([] if code == 0 else ["a"])


class TestPrune:
    def test_what_nobody_has_used_for_long(self, sql: psycopg.Connection[Any]) -> None:
        for name, days in (("old", 40), ("mia:old", 40), ("new", 0)):
            store(sql, name, "Hi", "Hello")
            sql.execute(
                "UPDATE agent_sessions SET updated_at = updated_at - %s * interval '1 day' "
                "WHERE session_id = %s",
                [days, name],
            )
        [told] = objects(run("prune", "--older-than", "30d", "--dry-run", "-o", "json"))
        assert (told["conversations"], told["items"], told["dry_run"]) == (2, 4, True)
        assert "--yes" in run("prune", "--older-than", "30d", code=2).stderr
        assert ids(sql) == ["mia:old", "new", "old"]
        run("prune", "--older-than", "30d", "--user", "mia", "-y")
        assert ids(sql) == ["new", "old"]
        assert (
            "Deleted 1 conversations with 2 items"
            in run("prune", "--older-than", "4w", "--yes").stderr
        )
        assert ids(sql) == ["new"]
        run("prune", "--older-than", "30d")  # nothing to ask about

    @pytest.mark.parametrize("age", ["30", "-1d", "a month", ""])
    def test_wrong_usage(self, age: str) -> None:
        run("prune", "--older-than", age, code=2)
        run("prune", code=2)


class TestExportAndLoad:
    def test_a_file_and_back(self, sql: psycopg.Connection[Any], tmp_path: Path) -> None:
        store(sql, "mia:a", "Hi", HOSTILE, title="Mine")
        store(sql, "b", "Hi")
        file = tmp_path / "all.jsonl"
        assert "Exported 2 conversations" in run("export", str(file)).stderr
        sql.execute("DELETE FROM agent_sessions")
        [told] = objects(run("load", str(file), "-o", "json"))
        assert told == {"conversations": 2, "items": 3}
        again = tmp_path / "again.jsonl"
        run("export", str(again))
        assert again.read_bytes() == file.read_bytes()
        assert "is there already" in run("load", str(file), code=1).stderr
        assert "--yes" in run("load", str(file), "--replace", code=2).stderr
        run("load", str(file), "--replace", "--yes")
        run("export", str(again), "a", "--user", "mia", "--yes")
        assert again.read_bytes().count(b'"conversation":') == 1

    def test_a_file_is_not_overwritten_unasked(
        self, sql: psycopg.Connection[Any], tmp_path: Path
    ) -> None:
        file = tmp_path / "thesis.jsonl"
        file.write_text("mine")
        run("export", str(file), code=2)
        run("export", str(file), "gone", "--yes", code=1)
        assert file.read_text() == "mine"
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.jsonl"]
        run("export", str(tmp_path / "no" / "folder"), code=1)
        run("load", str(tmp_path / "nothing"), code=1)
        assert "no JSON" in run("load", str(file), code=1).stderr

    def test_through_a_pipe(self, sql: psycopg.Connection[Any], process: Start) -> None:
        store(sql, "a", "Hi", "Hello")
        piped = run("export", "-").stdout_bytes
        loading = process("load", "-", "--user", "mia", stdin=subprocess.PIPE)
        out, err = loading.communicate(piped, timeout=60)
        assert (loading.returncode, out) == (0, b""), err
        assert ids(sql) == ["a", "mia:a"]

    @pytest.mark.parametrize(
        "command",
        [["export", "-"], ["list", "-n", "0", "-o", "json"], ["list", "-n", "0"]],
        ids=" ".join,
    )
    def test_a_pipe_that_nobody_reads_any_more(
        self, sql: psycopg.Connection[Any], process: Start, command: list[str]
    ) -> None:
        sql.execute("INSERT INTO agent_sessions SELECT 's' || n FROM generate_series(1, 3000) n")
        writing = process(*command)
        assert writing.stdout is not None
        assert writing.stderr is not None
        assert writing.stdout.read(10)
        writing.stdout.close()
        assert writing.stderr.read() == b""
        # A table is one write, of which some kernels say that it was done.
        assert writing.wait(60) in ({0, 1} if command == ["list", "-n", "0"] else {1})

    def test_ctrl_c_ends_a_load_and_leaves_nothing_half(
        self, sql: psycopg.Connection[Any], process: Start
    ) -> None:
        store(sql, "a", "Hi")
        lines = run("export", "-").stdout_bytes.replace(b'"a"', b'"b"').splitlines(keepends=True)
        loading = process("load", "-", stdin=subprocess.PIPE)
        assert loading.stdin is not None
        assert loading.stderr is not None
        for line in lines[:-1]:
            loading.stdin.write(line)
        loading.stdin.flush()
        _wait_for_a_connection(sql)
        loading.send_signal(signal.SIGINT)
        assert loading.wait(60) == 130
        assert b"Traceback" not in loading.stderr.read()
        assert ids(sql) == ["a"]

    def test_ctrl_c_ends_an_export_and_leaves_no_file(
        self,
        local: LocalLakebase,
        database: str,
        sql: psycopg.Connection[Any],
        tmp_path: Path,
        process: Start,
    ) -> None:
        store(sql, "a", "Hi")
        with locked(local, database):
            exporting = process("export", str(tmp_path / "file"))
            assert exporting.stderr is not None
            _wait_for_a_connection(sql, waiting=True)
            exporting.send_signal(signal.SIGINT)
            assert exporting.wait(60) == 130
        assert b"Traceback" not in exporting.stderr.read()
        assert list(tmp_path.iterdir()) == []


class TestTerminals:
    """What long work shows, and what the shell knows."""

    def test_long_work_has_a_progress_bar(
        self, sql: psycopg.Connection[Any], tmp_path: Path, process: Start
    ) -> None:
        sql.execute("INSERT INTO agent_sessions SELECT 's' || n FROM generate_series(1, 3000) n")
        sql.execute("UPDATE agent_sessions SET updated_at = localtimestamp - interval '1 day'")
        file = str(tmp_path / "file")
        for command, shows in (
            (["export", file], b"Exporting"),
            (["load", file, "--replace", "--yes"], b"Loading"),
            (["prune", "--older-than", "1h", "--yes"], b"Deleting"),
        ):
            ours, theirs = pty.openpty()
            working = process(*command, stderr=theirs)
            os.close(theirs)
            shown = _rest(ours)
            assert working.stdout is not None
            assert working.stdout.read() == b""
            assert working.wait(60) == 0, shown
            assert shows in shown
            assert b"%" in shown
        assert ids(sql) == []

    def test_without_a_terminal_there_is_none(self, sql: psycopg.Connection[Any]) -> None:
        store(sql, "a", "Hi")
        assert "%" not in run("export", "-").stderr

    @pytest.mark.parametrize(
        ("words", "completions"),
        [
            ("sea", {"search"}),
            ("export --us", {"--user"}),
            ("list --order ", {"updated", "created"}),
        ],
    )
    def test_completion(self, words: str, completions: set[str]) -> None:
        typed = ["lakebase-sessions", *words.split(" ")]
        answer = subprocess.run(
            [Path(sys.executable).with_name("lakebase-sessions")],
            env=environment(
                {
                    "_LAKEBASE_SESSIONS_COMPLETE": "bash_complete",
                    "COMP_WORDS": " ".join(typed),
                    "COMP_CWORD": str(len(typed) - 1),
                }
            ),
            capture_output=True,
            check=True,
            timeout=60,
        )
        lines = answer.stdout.decode().splitlines()
        assert {line.removeprefix("plain,") for line in lines} == completions


class TestFailures:
    def test_no_lakebase_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in list(os.environ):
            if name.startswith(("LAKEBASE_", "PG")):
                monkeypatch.delenv(name)
        for command in (["list"], ["show", "a"], ["title", "a"], ["delete", "a", "-y"]):
            assert run(*command, code=1).stderr.startswith("Error: ")

    def test_without_tables(
        self, local: LocalLakebase, empty_database: str, environ: dict[str, str]
    ) -> None:
        there = ["--database", empty_database]
        assert "no tables" in run("list", *there, code=1).stderr
        with admin(local, empty_database) as connection:
            assert (
                connection.execute("SELECT FROM pg_tables WHERE schemaname = 'public'").rowcount
                == 0
            )


def _read_until(terminal: int, words: bytes) -> bytes:
    read = b""
    give_up_at = time.monotonic() + 60
    while words not in read and time.monotonic() < give_up_at:
        if select.select([terminal], [], [], 1)[0]:
            read += os.read(terminal, 1000)
    assert words in read, read
    return read


def _rest(terminal: int) -> bytes:
    read = b""
    try:
        while part := os.read(terminal, 1000):
            read += part
    except OSError:  # the other end is closed
        pass
    os.close(terminal)
    return read


def _wait_for_a_connection(sql: psycopg.Connection[Any], *, waiting: bool = False) -> None:
    give_up_at = time.monotonic() + 60
    found = 0
    while not found and time.monotonic() < give_up_at:
        found = sql.execute(
            "SELECT FROM pg_stat_activity WHERE application_name = 'lakebase-sessions' "
            "AND datname = current_database() AND (NOT %s OR wait_event_type = 'Lock')",
            [waiting],
        ).rowcount
        time.sleep(0.05)
    assert found


@contextlib.contextmanager
def locked(local: LocalLakebase, database: str) -> Iterator[None]:
    """A transaction that keeps everybody from reading."""
    with admin(local, database) as connection, connection.transaction():
        connection.execute("LOCK TABLE agent_messages IN ACCESS EXCLUSIVE MODE")
        yield
