"""The tree of errors, and how other libraries' errors get into it."""

from __future__ import annotations

import copy
import json
import pickle
import re
from typing import Any

import databricks.sdk.errors as sdk
import psycopg
import psycopg.errors
import pytest
import requests

from lakebase_sessions import errors
from lakebase_sessions.errors import (
    ConfigurationError,
    DatabaseFailure,
    InvalidItems,
    LakebaseSessionsError,
    LakebaseTimeout,
    LakebaseUnavailable,
    PermissionDenied,
    TablesMissing,
    TargetNotFound,
    check_running,
    from_connect_error,
    from_statement_error,
    from_workspace_error,
)

INSTANCE = "my-lake"
ENDPOINT = "projects/shop/branches/main/endpoints/primary"

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, LakebaseSessionsError)
]
every_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)


class TestTheTree:
    def test_the_drawing_is_the_tree(self) -> None:
        drawn = {}
        above = {0: "LakebaseSessionsError"}
        line_of = re.compile(
            r"    (?P<branch>[│├└─ ]+)(?P<name>\w+) +(?P<builtins>\w+(?:, \w+)*) +"
            r"(?P<status>\d{3})  (?P<code>\w+)"
        )
        for line in (errors.__doc__ or "").splitlines():
            if found := line_of.fullmatch(line):
                depth = len(found["branch"]) // 4
                above[depth] = found["name"]
                bases = {above[depth - 1], *found["builtins"].split(", ")}
                drawn[found["name"]] = (bases, int(found["status"]), found["code"])
        assert drawn == {
            kind.__name__: (
                {base.__name__ for base in kind.__bases__},
                kind.http_status,
                kind.code,
            )
            for kind in CLASSES
            if kind is not LakebaseSessionsError
        }

    @every_class
    def test_documented_and_coded(self, kind: type[LakebaseSessionsError]) -> None:
        assert vars(kind).get("__doc__")
        assert "code" in vars(kind), "an inherited code says too little"
        assert re.fullmatch(r"[a-z_]+", kind.code)
        assert 400 <= kind.http_status < 600

    def test_codes_are_unique(self) -> None:
        assert len({kind.code for kind in CLASSES}) == len(CLASSES)

    @every_class
    def test_every_class_is_a_builtin_that_callers_catch(
        self, kind: type[LakebaseSessionsError]
    ) -> None:
        builtins = {base for base in kind.__mro__ if base.__module__ == "builtins"}
        assert kind is LakebaseSessionsError or builtins - {Exception, BaseException, object}

    @every_class
    def test_copies_are_equal(self, kind: type[LakebaseSessionsError]) -> None:
        """Servers and worker pools send errors from one process to another."""
        error = kind("It broke. To fix this: mend it.")
        for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert type(other) is kind
            assert str(other) == "It broke. To fix this: mend it."
            assert other.args == error.args
            assert vars(other) == vars(error)

    def test_attributes_survive(self) -> None:
        for kind in (LakebaseUnavailable, LakebaseTimeout):
            lost = pickle.loads(pickle.dumps(kind("gone", outcome_unknown=True)))
            assert lost.outcome_unknown is True
            assert kind("gone").outcome_unknown is False
        full = pickle.loads(pickle.dumps(DatabaseFailure("full", sqlstate="54000")))
        assert full.sqlstate == "54000"
        assert DatabaseFailure("?").sqlstate is None

    def test_what_a_caller_of_the_template_catches(self) -> None:
        assert issubclass(TargetNotFound, ValueError)
        assert issubclass(LakebaseTimeout, TimeoutError)
        assert issubclass(PermissionDenied, OSError)
        assert issubclass(InvalidItems, TypeError)


# --- the workspace's API -----------------------------------------------------------------------

FROM_SDK: dict[str, type[LakebaseSessionsError]] = {
    "Aborted": LakebaseUnavailable,
    "AlreadyExists": LakebaseUnavailable,
    "BadRequest": ConfigurationError,
    "Cancelled": LakebaseUnavailable,
    "DataLoss": LakebaseUnavailable,
    "DatabricksError": LakebaseUnavailable,
    "DeadlineExceeded": LakebaseTimeout,
    "InternalError": LakebaseUnavailable,
    "InvalidParameterValue": ConfigurationError,
    "InvalidState": ConfigurationError,
    "NotFound": TargetNotFound,
    "NotImplemented": LakebaseUnavailable,
    "OperationFailed": LakebaseUnavailable,
    "OperationTimeout": LakebaseTimeout,
    "PermissionDenied": PermissionDenied,
    "PrivateLinkValidationError": PermissionDenied,
    "RequestLimitExceeded": LakebaseUnavailable,
    "ResourceAlreadyExists": LakebaseUnavailable,
    "ResourceConflict": LakebaseUnavailable,
    "ResourceDoesNotExist": TargetNotFound,
    "ResourceExhausted": LakebaseUnavailable,
    "TemporarilyUnavailable": LakebaseUnavailable,
    "TooManyRequests": LakebaseUnavailable,
    "Unauthenticated": PermissionDenied,
    "Unknown": LakebaseUnavailable,
}
SDK_ERRORS = {
    name: value
    for name, value in vars(sdk).items()
    if isinstance(value, type) and issubclass(value, BaseException)
}


def from_sdk(error: BaseException) -> LakebaseSessionsError:
    return from_workspace_error(error, "read the Lakebase instance 'my-lake'")


class TestWorkspace:
    def test_the_table_has_every_class_of_the_sdk(self) -> None:
        """A class that the SDK adds needs a decision; a row of the table is it."""
        assert set(FROM_SDK) == set(SDK_ERRORS)

    @pytest.mark.parametrize("name", list(FROM_SDK))
    def test_every_class_of_the_sdk(self, name: str) -> None:
        found = from_sdk(SDK_ERRORS[name]("The platform's own words"))
        assert type(found) is FROM_SDK[name]
        assert str(found).startswith(
            "Could not read the Lakebase instance 'my-lake': The platform's own words. "
        ) or str(found) == (
            "Could not read the Lakebase instance 'my-lake': The platform's own words."
        )

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (TimeoutError("Timed out after 0:05:00"), LakebaseTimeout),
            (requests.ReadTimeout("read timed out"), LakebaseTimeout),
            (requests.ConnectTimeout("connect timed out"), LakebaseTimeout),
            (requests.ConnectionError("refused"), LakebaseUnavailable),
            (requests.exceptions.SSLError("bad certificate"), LakebaseUnavailable),
            (requests.exceptions.ChunkedEncodingError("broke off"), LakebaseUnavailable),
            (requests.exceptions.InvalidURL("no host"), LakebaseUnavailable),
            (requests.exceptions.JSONDecodeError("Expecting value", "", 0), LakebaseUnavailable),
            (json.JSONDecodeError("Expecting value", "<html>", 0), LakebaseUnavailable),
            (ConnectionResetError("reset by peer"), LakebaseUnavailable),
            (KeyError("token"), LakebaseUnavailable),
            (AttributeError("'NoneType' object has no attribute 'get'"), LakebaseUnavailable),
            (ValueError("Invalid isoformat string"), LakebaseUnavailable),
            (RuntimeError(""), LakebaseUnavailable),
        ],
        ids=lambda value: getattr(value, "__name__", None) or type(value).__name__,
    )
    def test_everything_else_that_a_call_can_raise(
        self, error: Exception, kind: type[LakebaseSessionsError]
    ) -> None:
        found = from_sdk(error)
        assert type(found) is kind
        assert str(found).startswith("Could not read the Lakebase instance 'my-lake': ")

    def test_retries_that_ended_name_the_last_answer(self) -> None:
        """429 and 503 come as the builtin TimeoutError, and the reason is its cause."""
        try:
            try:
                raise sdk.TooManyRequests("Current qps exceeds the limit")
            except sdk.TooManyRequests as cause:
                raise TimeoutError("Timed out after 0:00:10") from cause
        except TimeoutError as error:
            found = from_sdk(error)
        assert type(found) is LakebaseTimeout
        assert "Timed out after 0:00:10." in str(found)
        assert "Its last answer: Current qps exceeds the limit." in str(found)
        assert "tried again with the next request" in str(found)

    def test_our_own_pass_through(self) -> None:
        error = TargetNotFound("gone")
        assert from_sdk(error) is error

    def test_a_refusal_names_the_cure(self) -> None:
        assert "CAN_CONNECT_AND_CREATE" in str(from_sdk(sdk.PermissionDenied("no")))

    def test_a_failed_login_is_another_matter(self) -> None:
        message = str(from_sdk(sdk.Unauthenticated("Invalid token")))
        assert "DATABRICKS_HOST" in message
        assert "databricks auth describe" in message
        assert "CAN_CONNECT_AND_CREATE" not in message

    def test_private_link_is_another_matter_too(self) -> None:
        """A grant does not open a network."""
        message = str(from_sdk(SDK_ERRORS["PrivateLinkValidationError"]("AWS PrivateLink enabled")))
        assert "CAN_CONNECT_AND_CREATE" not in message

    def test_an_unreachable_workspace_names_the_variable(self) -> None:
        assert "DATABRICKS_HOST" in str(from_sdk(requests.ConnectionError("refused")))

    def test_only_the_first_line_is_quoted(self) -> None:
        message = str(from_sdk(sdk.InternalError("It broke\nat line 1\nat line 2")))
        assert "It broke." in message
        assert "at line" not in message


# --- Postgres ----------------------------------------------------------------------------------

AT = 'connection failed: connection to server at "127.0.0.1", port 5432 failed: '
DENIED = (PermissionDenied, "CAN_CONNECT_AND_CREATE")
GONE = (LakebaseUnavailable, "databricks database get-database-instance my-lake")
FULL = (LakebaseUnavailable, "pool_size")
NO_DATABASE = (TargetNotFound, "PGDATABASE")
CONNECTING: list[tuple[str, tuple[type[LakebaseSessionsError], str]]] = [
    (f'{AT}FATAL:  password authentication failed for user "x"', DENIED),
    (
        (
            f'{AT}FATAL:  password authentication failed for user "x"\nMultiple connection '
            "attempts failed. All failures were:\n- host: 'a', port: 5432: connection failed"
        ),
        DENIED,
    ),
    (f'{AT}FATAL:  role "x" does not exist', DENIED),
    (f'{AT}FATAL:  role "x" is not permitted to log in', DENIED),
    (
        (
            f'{AT}FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "x", database "y", '
            "no encryption"
        ),
        DENIED,
    ),
    (
        (
            f'{AT}FATAL:  permission denied for database "y"\n'
            "DETAIL:  User does not have CONNECT privilege."
        ),
        DENIED,
    ),
    (f'{AT}FATAL:  database "y" does not exist', NO_DATABASE),
    (
        (
            f'{AT}FATAL:  database "y" does not exist\n'
            'DETAIL:  The database subdirectory "base/5" is missing.'
        ),
        NO_DATABASE,
    ),
    (f"{AT}FATAL:  the database system is starting up", GONE),
    (f"{AT}FATAL:  the database system is shutting down", GONE),
    (f"{AT}FATAL:  the database system is in recovery mode", GONE),
    (
        (
            f"{AT}FATAL:  the database system is not yet accepting connections\n"
            "DETAIL:  Consistent recovery state has not been yet reached."
        ),
        GONE,
    ),
    (f'{AT}FATAL:  database "y" is not currently accepting connections', GONE),
    (f"{AT}FATAL:  sorry, too many clients already", FULL),
    (f'{AT}FATAL:  too many connections for role "x"', FULL),
    (f'{AT}FATAL:  too many connections for database "y"', FULL),
    (
        (
            f"{AT}FATAL:  remaining connection slots are reserved for roles with the SUPERUSER "
            "attribute"
        ),
        FULL,
    ),
    (
        (
            f"{AT}FATAL:  remaining connection slots are reserved for non-replication superuser "
            "connections"
        ),
        FULL,
    ),
    (f"{AT}server does not support SSL, but SSL was required", (ConfigurationError, "TLS")),
    (
        (
            f"{AT}Connection refused\n\tIs the server running on that host and accepting TCP/IP "
            "connections?"
        ),
        GONE,
    ),
    (
        (
            'connection failed: connection to server on socket "/tmp/x/.s.PGSQL.5432" failed: No '
            "such file or directory\n\tIs the server running locally and accepting connections on "
            "that socket?"
        ),
        GONE,
    ),
    (f"{AT}server closed the connection unexpectedly\n\tThis probably means ...", GONE),
    (f"{AT}SSL error: certificate verify failed", (ConfigurationError, "PGSSLROOTCERT")),
    ("failed to resolve host 'h.example.com': [Errno -2] Name or service not known", GONE),
    ('could not translate host name "h.example.com" to address: Name or service not known', GONE),
    ("", GONE),
]
"""What libpq and psycopg say, word for word, and a word of the cure."""


class TestConnecting:
    @pytest.mark.parametrize(
        ("said", "verdict"),
        CONNECTING,
        ids=[said.removeprefix(AT).partition("\n")[0][:60] or "nothing" for said, _ in CONNECTING],
    )
    def test_what_libpq_says(
        self, said: str, verdict: tuple[type[LakebaseSessionsError], str]
    ) -> None:
        kind, cure = verdict
        found = from_connect_error(psycopg.OperationalError(said), INSTANCE)
        assert type(found) is kind
        assert str(found).startswith(f"Could not connect to Lakebase '{INSTANCE}': ")
        assert said.partition("\n")[0] in str(found)
        assert cure in str(found)
        assert "{" not in str(found)
        assert "\n" not in str(found)

    def test_no_answer_in_time_is_a_timeout(self) -> None:
        error = psycopg.errors.ConnectionTimeout("connection timeout expired")
        found = from_connect_error(error, INSTANCE)
        assert isinstance(found, LakebaseUnavailable)
        assert GONE[1] in str(found)
        assert isinstance(found, LakebaseTimeout)

    def test_an_endpoint_is_checked_by_another_command(self) -> None:
        found = from_connect_error(psycopg.OperationalError(f"{AT}Connection refused"), ENDPOINT)
        assert f"`databricks postgres get-endpoint {ENDPOINT}`" in str(found)

    def test_nothing_is_known_to_be_stored_or_not(self) -> None:
        found = from_connect_error(psycopg.OperationalError(f"{AT}Connection refused"), INSTANCE)
        assert isinstance(found, LakebaseUnavailable)
        assert not found.outcome_unknown


SQLSTATES: list[tuple[str, type[LakebaseSessionsError], str]] = [
    ("28000", PermissionDenied, "CAN_CONNECT_AND_CREATE"),
    ("28P01", PermissionDenied, "CAN_CONNECT_AND_CREATE"),
    ("42501", PermissionDenied, "CAN_CONNECT_AND_CREATE"),
    ("3D000", TargetNotFound, "PGDATABASE"),
    ("3F000", TablesMissing, "Restore them, or restart"),
    ("42P01", TablesMissing, "Restore them, or restart"),
    ("53300", LakebaseUnavailable, "pool_size"),
    ("53100", LakebaseUnavailable, "disk"),
    ("53200", LakebaseUnavailable, "memory"),
    ("25006", LakebaseUnavailable, "only reads"),
    ("57014", LakebaseTimeout, "statement_timeout"),
    ("55P03", LakebaseTimeout, "held a lock on it"),
    ("40001", LakebaseUnavailable, "may be repeated"),
    ("40P01", LakebaseUnavailable, "may be repeated"),
    ("57P01", LakebaseUnavailable, GONE[1]),
    ("57P02", LakebaseUnavailable, GONE[1]),
    ("57P03", LakebaseUnavailable, GONE[1]),
    ("08006", LakebaseUnavailable, GONE[1]),
    ("08P01", LakebaseUnavailable, GONE[1]),
    ("22021", DatabaseFailure, "its own words"),
    ("23503", DatabaseFailure, "its own words"),
    ("42601", DatabaseFailure, "its own words"),
    ("42703", DatabaseFailure, "its own words"),
    ("54000", DatabaseFailure, "its own words"),
    ("XX000", DatabaseFailure, "its own words"),
]


class TestStatements:
    @pytest.mark.parametrize(("sqlstate", "kind", "cure"), SQLSTATES)
    @pytest.mark.parametrize("writing", [False, True], ids=["reading", "writing"])
    def test_sqlstates(
        self, sqlstate: str, kind: type[LakebaseSessionsError], cure: str, writing: bool
    ) -> None:
        error = psycopg.errors.lookup(sqlstate)("its own words\nLINE 1: SELECT secret")
        found = from_statement_error(error, INSTANCE, broken=False, writing=writing)
        assert type(found) is kind
        assert str(found).startswith(f"Lakebase '{INSTANCE}' refused: its own words.")
        assert cure in str(found)
        assert "LINE 1" not in str(found)
        assert "{" not in str(found)
        if isinstance(found, DatabaseFailure):
            assert found.sqlstate == sqlstate
        if isinstance(found, LakebaseUnavailable):
            assert not found.outcome_unknown, "Postgres answered, so it has rolled back"

    @pytest.mark.parametrize("sqlstate", ["57P01", "42501", "57014", "54000"])
    def test_a_write_that_broke_in_flight_is_not_known_to_be_stored(self, sqlstate: str) -> None:
        error = psycopg.errors.lookup(sqlstate)("terminating connection")
        found = from_statement_error(error, INSTANCE, broken=True, writing=True)
        assert type(found) is LakebaseUnavailable
        assert found.outcome_unknown
        assert "read the conversation before you send it again" in str(found)
        assert GONE[1] in str(found)

    def test_a_read_that_broke_has_no_outcome(self) -> None:
        error = psycopg.OperationalError("consuming input failed: server closed the connection")
        found = from_statement_error(error, ENDPOINT, broken=True, writing=False)
        assert type(found) is LakebaseUnavailable
        assert not found.outcome_unknown
        assert "stored" not in str(found)
        assert f"databricks postgres get-endpoint {ENDPOINT}" in str(found)

    @pytest.mark.parametrize("message", ["", "\n", "odd"])
    def test_without_a_sqlstate(self, message: str) -> None:
        found: Any = from_statement_error(
            psycopg.DataError(message), INSTANCE, broken=False, writing=True
        )
        assert type(found) is DatabaseFailure
        assert found.sqlstate is None
        assert (message.strip() or "DataError") in str(found)

    def test_words_do_not_decide(self) -> None:
        """A tool's output that speaks of Postgres is not a failure of Postgres."""
        error = psycopg.errors.lookup("22021")('permission denied: role "x" does not exist')
        found = from_statement_error(error, INSTANCE, broken=False, writing=True)
        assert type(found) is DatabaseFailure


@pytest.mark.parametrize(
    ("target", "command"),
    [
        (INSTANCE, "databricks database get-database-instance my-lake"),
        (ENDPOINT, f"databricks postgres get-endpoint {ENDPOINT}"),
    ],
)
def test_the_command_that_checks_a_target(target: str, command: str) -> None:
    assert check_running(target) == command
