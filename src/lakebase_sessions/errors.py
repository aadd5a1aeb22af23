"""What can go wrong, and what to do about it.

Everything this package raises on purpose is a `LakebaseSessionsError`. Beside each class: the
builtins it also is, the HTTP status a server may answer with, and the stable code::

    LakebaseSessionsError
    ├── ConfigurationError       ValueError               500  configuration
    │   └── MissingConfiguration LookupError              500  missing_configuration
    ├── InvalidSessionId         ValueError               400  invalid_session_id
    ├── InvalidUser              ValueError               400  invalid_user
    ├── InvalidItems             TypeError, ValueError    400  invalid_items
    ├── InvalidLimit             ValueError               400  invalid_limit
    ├── InvalidApproval          ValueError               400  invalid_approval
    ├── InvalidExport            ValueError               400  invalid_export
    ├── InvalidMetadata          ValueError               400  invalid_metadata
    ├── InvalidQuery             ValueError               400  invalid_query
    ├── InvalidTurn              ValueError               400  invalid_turn
    ├── TargetNotFound           LookupError, ValueError  500  target_not_found
    ├── PermissionDenied         PermissionError          403  permission_denied
    ├── TablesMissing            LookupError              500  tables_missing
    ├── LakebaseUnavailable      ConnectionError          503  lakebase_unavailable
    │   └── LakebaseTimeout      TimeoutError             503  lakebase_timeout
    ├── DatabaseFailure          RuntimeError             500  database_failure
    ├── ConversationConflict     RuntimeError             409  conversation_conflict
    ├── ConversationBusy         RuntimeError             409  conversation_busy
    ├── ApprovalNotFound         LookupError              409  approval_not_found
    ├── StateUnreadable          RuntimeError             409  state_unreadable
    ├── ConversationExists       RuntimeError             409  conversation_exists
    ├── ConversationNotFound     LookupError              404  conversation_not_found
    ├── TurnNotFound             LookupError              404  turn_not_found
    ├── BranchNotFound           LookupError              404  branch_not_found
    ├── ItemNotFound             LookupError              404  item_not_found
    ├── TurnNotOpen              RuntimeError             500  turn_not_open
    ├── LakebaseNotOpen          RuntimeError             503  lakebase_not_open
    └── LocalLakebaseError       RuntimeError             500  local_lakebase

The functions below the tree put other libraries' errors into it: by type for the workspace's
API, by SQLSTATE for Postgres. Words in a message decide in one place only, `_CONNECT_FAILURES`:
libpq names no SQLSTATE for a connection that was refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime

    import psycopg


class LakebaseSessionsError(Exception):
    """Base of all errors of this package."""

    code: ClassVar[str] = "lakebase_sessions"
    """A stable name for logs and clients; it does not change between releases."""
    http_status: ClassVar[int] = 500
    """What a server may answer with when this error ends a request."""


class ConfigurationError(LakebaseSessionsError, ValueError):
    """An argument or an environment variable cannot be used as it is.

    To fix this: the message names the argument or variable, what it holds and what it may be; the
    forms of a name are in the page "Addresses".
    """

    code = "configuration"


class MissingConfiguration(ConfigurationError, LookupError):
    """Nothing says which Lakebase is meant.

    To fix this: set one of `LAKEBASE_AUTOSCALING_ENDPOINT`, `LAKEBASE_AUTOSCALING_PROJECT` with
    `LAKEBASE_AUTOSCALING_BRANCH`, or `LAKEBASE_INSTANCE_NAME`; in Databricks Apps, add the Lakebase
    as a resource. `lakebase-sessions doctor` says what it sees.
    """

    code = "missing_configuration"


class InvalidSessionId(LakebaseSessionsError, ValueError):
    """The session id of a request cannot be stored.

    To fix this: send a string of 1 to 255 characters without control characters, an int or a UUID,
    or nothing for a new conversation.
    """

    code = "invalid_session_id"
    http_status = 400


class InvalidUser(LakebaseSessionsError, ValueError):
    """The `user` that a session was to be scoped to is blank or cannot be stored.

    To fix this: pass the name that the platform authenticated, such as `current_user()`; without
    one, answer the request with 401 instead of making a session.
    """

    code = "invalid_user"
    http_status = 400


class InvalidItems(LakebaseSessionsError, TypeError, ValueError):
    """Items cannot be stored because they are not JSON.

    To fix this: add dicts of what JSON has: strings, numbers, booleans, None, lists and dicts. Call
    `model_dump(mode="json")` on a model of pydantic's.
    """

    code = "invalid_items"
    http_status = 400


class InvalidLimit(LakebaseSessionsError, ValueError):
    """A limit is not a whole number of items.

    To fix this: pass an int from 0, or None for all.
    """

    code = "invalid_limit"
    http_status = 400


class InvalidApproval(LakebaseSessionsError, ValueError):
    """What a request holds as answers to approvals says neither yes nor no.

    To fix this: send `true` or `false` for each id, in `custom_inputs["approvals"]` or in
    `mcp_approval_response` items; the message shows the form.
    """

    code = "invalid_approval"
    http_status = 400


class InvalidExport(LakebaseSessionsError, ValueError):
    """What was to be loaded is no whole export of conversations.

    To fix this: export it again; the message names the line, and nothing behind it was loaded.
    """

    code = "invalid_export"
    http_status = 400


class InvalidMetadata(LakebaseSessionsError, ValueError):
    """A title or metadata cannot be stored, or go beyond their bounds.

    To fix this: keep to 16 keys of 64 characters with texts of 512, and titles of 200.
    """

    code = "invalid_metadata"
    http_status = 400


class InvalidQuery(LakebaseSessionsError, ValueError):
    """What a listing was asked for makes no sense: an order, a bound, or where it goes on.

    To fix this: correct the argument that the message names; a listing goes on with the `next`
    of its own page.
    """

    code = "invalid_query"
    http_status = 400


class InvalidTurn(LakebaseSessionsError, ValueError):
    """The number of a turn that a request names is none.

    To fix this: send the number of a turn, from 1, as `custom_outputs["turn"]` had it.
    """

    code = "invalid_turn"
    http_status = 400


class TargetNotFound(LakebaseSessionsError, LookupError, ValueError):
    """No Lakebase, branch, endpoint or database goes by the configured name.

    To fix this: compare with the names that the message found near it, and with what this identity
    may see: `databricks database list-database-instances`, `databricks postgres list-projects`. For
    a database, create it or name another one.
    """

    code = "target_not_found"


class PermissionDenied(LakebaseSessionsError, PermissionError):
    """The workspace or Postgres knows who asks, and says no.

    To fix this: run `lakebase-sessions doctor` as the same identity; it names the privilege that is
    missing, and `lakebase-sessions grant` gives it. In Databricks Apps, add the Lakebase as a
    resource with CAN_CONNECT_AND_CREATE.
    """

    code = "permission_denied"
    http_status = 403


class TablesMissing(LakebaseSessionsError, LookupError):
    """The session tables do not exist and may not be created.

    To fix this: run `lakebase-sessions init`, leave `create_tables` at True, or check the database
    and `LAKEBASE_AGENT_MEMORY_SCHEMA`: the tables may be in another one.
    """

    code = "tables_missing"


class LakebaseUnavailable(LakebaseSessionsError, ConnectionError):
    """The workspace or Postgres cannot be reached, or broke off.

    To fix this: try again, if `outcome_unknown` is False; the next call connects anew. If it stays,
    `lakebase-sessions doctor` says at which step it breaks.

    Attributes:
        outcome_unknown: The connection broke while a write was under way, so that it cannot be
            known whether the items were stored. Read the conversation before sending them again.
    """

    code = "lakebase_unavailable"
    http_status = 503

    def __init__(self, message: str = "", *, outcome_unknown: bool = False) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown


class LakebaseTimeout(LakebaseUnavailable, TimeoutError):
    """The workspace or Postgres did not answer within its bound.

    To fix this: try again; if it stays, look for a lock that somebody holds, a Lakebase that is too
    small, or a network that drops packets: `lakebase-sessions doctor`.
    """

    code = "lakebase_timeout"


class DatabaseFailure(LakebaseSessionsError, RuntimeError):
    """Postgres refused a statement for a reason that has no class of its own.

    To fix this: read what Postgres said, and look `sqlstate` up in its documentation ("PostgreSQL
    Error Codes").

    Attributes:
        sqlstate: Postgres' error code, such as `"54000"`, or None where it named none.
    """

    code = "database_failure"

    def __init__(self, message: str = "", *, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class ConversationConflict(LakebaseSessionsError, RuntimeError):
    """Somebody else wrote to the conversation meanwhile; nothing was stored or changed.

    To fix this: read the conversation again and repeat what was tried, on what it holds now.
    """

    code = "conversation_conflict"
    http_status = 409


class ConversationBusy(LakebaseSessionsError, RuntimeError):
    """Another turn of the conversation is under way, and this one has not begun.

    To fix this: send it again when the other turn has been answered, in a few seconds.

    Attributes:
        since: When the other one began; None where one that waits for it is about to.
    """

    code = "conversation_busy"
    http_status = 409

    def __init__(self, message: str = "", *, since: datetime | None = None) -> None:
        super().__init__(message)
        self.since = since


class ApprovalNotFound(LakebaseSessionsError, LookupError):
    """Nothing in this conversation waits for that answer, or not any more; no tool was run.

    To fix this: show the conversation as it is; what is still wanted can be asked for in a message.
    """

    code = "approval_not_found"
    http_status = 409


class StateUnreadable(LakebaseSessionsError, RuntimeError):
    """The run that waits cannot be taken up by this agent or this version; it waits on.

    To fix this: answer where the agent and the libraries are those that asked, or send a message,
    which declines.
    """

    code = "state_unreadable"
    http_status = 409


class ConversationExists(LakebaseSessionsError, RuntimeError):
    """A conversation is stored under the id that a fork or a load was to give one.

    To fix this: choose another id, or leave it out for a new one; a load may replace it.
    """

    code = "conversation_exists"
    http_status = 409


class ConversationNotFound(LakebaseSessionsError, LookupError):
    """There is no conversation of this id.

    To fix this: check the id and its user; a conversation begins with its first item.
    """

    code = "conversation_not_found"
    http_status = 404


class TurnNotFound(LakebaseSessionsError, LookupError):
    """The conversation has no such turn.

    To fix this: take a number or a response id that `session.turns()` lists.
    """

    code = "turn_not_found"
    http_status = 404


class BranchNotFound(LakebaseSessionsError, LookupError):
    """The conversation has no such branch.

    To fix this: take one that `session.branches()` lists.
    """

    code = "branch_not_found"
    http_status = 404


class ItemNotFound(LakebaseSessionsError, LookupError):
    """The conversation has no item with this id.

    To fix this: list the conversation's items; one that was taken out has its id again when it is
    restored.
    """

    code = "item_not_found"
    http_status = 404


class TurnNotOpen(LakebaseSessionsError, RuntimeError):
    """An atomic turn was used outside its `async with`.

    To fix this: use the turn inside `async with session.turn() as turn:`, and a new one for the
    next.
    """

    code = "turn_not_open"


class LakebaseNotOpen(LakebaseSessionsError, RuntimeError):
    """The `Lakebase` was closed already, or is not open yet where it has to be.

    To fix this: make a new `Lakebase` after a `close()`, and close it when the last request has
    ended.
    """

    code = "lakebase_not_open"
    http_status = 503


class LocalLakebaseError(LakebaseSessionsError, RuntimeError):
    """The Lakebase on this machine cannot run.

    To fix this: do what the message says; most often `pip install 'lakebase-sessions[local]'`, or a
    folder that is empty or was made by a local Lakebase.
    """

    code = "local_lakebase"


GRANT_ACCESS = (
    "In Databricks Apps, add the Lakebase as a `database` (or `postgres`) resource with "
    "permission CAN_CONNECT_AND_CREATE to databricks.yml and deploy again; for anybody else, "
    "grant a Postgres role to that identity"
)
"""What to do about a refusal; the same words wherever one can come from."""


CLOSED = "This Lakebase was closed; make a new one for further sessions."


def check_running(target: str) -> str:
    """The command that shows whether `target` (a name or resource path) runs."""
    if target.startswith("projects/"):
        return f"databricks postgres get-endpoint {target}"
    return f"databricks database get-database-instance {target}"


# --- the workspace's API -----------------------------------------------------------------------


def from_workspace_error(error: BaseException, action: str) -> LakebaseSessionsError:
    """The error of this package for one that a call of `databricks.sdk` raised.

    Args:
        error: What the SDK raised.
        action: What was tried, to begin the message with: `"read instance 'x'"`.
    """
    # Imported here: whoever can raise these has loaded the SDK, and nobody else should.
    from databricks.sdk import errors as sdk  # noqa: PLC0415
    from databricks.sdk.core import DatabricksError  # noqa: PLC0415
    from databricks.sdk.errors.private_link import PrivateLinkValidationError  # noqa: PLC0415
    from requests.exceptions import RequestException, Timeout  # noqa: PLC0415

    if isinstance(error, LakebaseSessionsError):
        return error
    said = f"Could not {action}: {_first_line(error)}"
    match error:
        case sdk.NotFound():
            return TargetNotFound(said)
        case PrivateLinkValidationError():
            return PermissionDenied(said)  # a matter of networks, which no grant opens
        case sdk.PermissionDenied():
            return PermissionDenied(f"{said} To fix this: {GRANT_ACCESS}.")
        case sdk.Unauthenticated():
            return PermissionDenied(
                f"{said} The workspace did not accept the credentials: check DATABRICKS_HOST and "
                "how this process logs in (`databricks auth describe`)."
            )
        case sdk.BadRequest():
            return ConfigurationError(said)
        case TimeoutError() | Timeout() | sdk.DeadlineExceeded():
            answer = error.__cause__ or error.__context__
            cause = f" Its last answer: {_first_line(answer)}" if answer else ""
            return LakebaseTimeout(
                f"{said}{cause} The workspace is slow, throttling or down; this is tried again "
                "with the next request."
            )
        case DatabricksError() | RequestException() | OSError():
            return LakebaseUnavailable(
                f"{said} The workspace cannot be reached or is failing; this is tried again "
                "with the next request. Check DATABRICKS_HOST if it never worked."
            )
        case _:
            # Malformed JSON and the like: the SDK lets its parser's errors through.
            return LakebaseUnavailable(f"{said} The workspace gave an answer that makes no sense.")


# --- Postgres ----------------------------------------------------------------------------------


class _Verdict(NamedTuple):
    kind: type[LakebaseSessionsError]
    advice: str


_DENIED = _Verdict(PermissionDenied, f"To fix this: {GRANT_ACCESS}.")
_NOT_NOW = _Verdict(
    LakebaseUnavailable, "Lakebase is starting, stopping or failing over. Check it with `{check}`."
)
_FULL_HOUSE = _Verdict(
    LakebaseUnavailable,
    "All connections of this Lakebase are taken. Lower `pool_size` times the number of workers, "
    "or raise its capacity.",
)
_NO_DATABASE = _Verdict(
    TargetNotFound,
    "Create the database, or name another one (PGDATABASE, or `Lakebase(database=...)`).",
)
_TABLES_GONE = _Verdict(
    TablesMissing,
    "The session tables were there when this Lakebase was opened. Restore them, or restart to "
    "have them made anew; check the database and the schema (LAKEBASE_AGENT_MEMORY_SCHEMA).",
)
_GONE = _Verdict(LakebaseUnavailable, "Check that it runs and can be reached from here: `{check}`.")

_NOT_TRUSTED = _Verdict(
    ConfigurationError,
    "To verify the server, set PGSSLMODE=verify-full and PGSSLROOTCERT to a file of the "
    "certificates that are trusted, or to `system`; to encrypt only, set neither.",
)

_CONNECT_FAILURES: tuple[tuple[str, _Verdict], ...] = (
    ("password authentication failed", _DENIED),
    ("is not permitted to log in", _DENIED),
    ("no pg_hba.conf entry", _DENIED),
    ("permission denied for database", _DENIED),
    ("the database system is", _NOT_NOW),  # starting up, shutting down, in recovery mode, ...
    ("accepting connections", _NOT_NOW),  # "is not currently ...", "is not yet ..."
    ("too many clients", _FULL_HOUSE),
    ("too many connections", _FULL_HOUSE),
    ("connection slots are reserved", _FULL_HOUSE),
    ("endpoint is disabled", _NOT_NOW),
    ("certificate", _NOT_TRUSTED),  # verify failed, does not match host name, file does not exist
    ("weak sslmode", _NOT_TRUSTED),  # with the system's certificates libpq insists on verify-full
    (
        "server does not support SSL",
        _Verdict(
            ConfigurationError,
            "Every Lakebase speaks TLS: is this the address of a Lakebase?",
        ),
    ),
)
"""What libpq says when it cannot connect; anything else it says is `_GONE`. `database "x" does
not exist` and `role "x" does not exist` share their words and are told apart below."""

_SQLSTATES: dict[str, _Verdict] = {
    "28": _DENIED,
    "42501": _DENIED,
    "3D000": _NO_DATABASE,
    "3F000": _TABLES_GONE,
    "42P01": _TABLES_GONE,
    "53300": _FULL_HOUSE,
    "53": _Verdict(LakebaseUnavailable, "Lakebase is out of disk, memory or another resource."),
    "25006": _Verdict(
        LakebaseUnavailable,
        "This server only reads: a read-only endpoint, or a copy during a failover.",
    ),
    "57014": _Verdict(
        LakebaseTimeout, "Postgres cancelled the statement (statement_timeout, or an operator)."
    ),
    "55P03": _Verdict(
        LakebaseTimeout,
        "Something else held a lock on it for too long, such as a transaction that was left open. "
        "Nothing was changed.",
    ),
    "40": _Verdict(LakebaseUnavailable, "Postgres rolled the statement back; it may be repeated."),
    "57": _NOT_NOW,
    "08": _GONE,
}
"""SQLSTATE, or its class of two characters, to what it means here; the longer key wins."""


def from_connect_error(error: psycopg.Error | OSError, target: str) -> LakebaseSessionsError:
    """The error of this package for a connection to Postgres that could not be opened.

    Args:
        error: What psycopg raised.
        target: The instance name or resource path, to name the command that checks it.
    """
    from psycopg.errors import ConnectionTimeout  # noqa: PLC0415 - loaded already, if it raised

    said = _first_line(error)
    lowered = str(error).lower()
    if isinstance(error, ConnectionTimeout):
        verdict = _Verdict(LakebaseTimeout, _GONE.advice)
    elif "does not exist" in lowered and 'database "' in lowered:
        verdict = _NO_DATABASE
    elif "does not exist" in lowered and 'role "' in lowered:
        verdict = _DENIED
    else:
        verdict = next((v for words, v in _CONNECT_FAILURES if words.lower() in lowered), _GONE)
    advice = verdict.advice.format(check=check_running(target))
    return verdict.kind(f"Could not connect to Lakebase '{target}': {said} {advice}")


def from_statement_error(
    error: psycopg.Error,
    target: str,
    *,
    broken: bool,
    writing: bool,
    silent_for_seconds: float | None = None,
) -> LakebaseSessionsError:
    """The error of this package for a statement that failed on an open connection.

    Args:
        error: What psycopg raised.
        target: The instance name or resource path, to name the command that checks it.
        broken: The connection did not survive; without it, Postgres has rolled back.
        writing: The statement would have changed something.
        silent_for_seconds: The connection was given up, because nothing came for so long.
    """
    said = _first_line(error)
    if broken:
        kind = LakebaseUnavailable
        happened = f"The connection to Lakebase '{target}' broke: {said}"
        if silent_for_seconds is not None:
            kind = LakebaseTimeout
            happened = (
                f"Lakebase '{target}' did not answer within {silent_for_seconds:g} s, and the "
                "connection was given up."
            )
        unknown = (
            " Whether the write was stored is not known: read the conversation before you send "
            "it again."
        )
        return kind(
            f"{happened}{unknown if writing else ''} The next call connects anew. "
            f"{_GONE.advice.format(check=check_running(target))}",
            outcome_unknown=writing,
        )
    sqlstate = error.sqlstate or ""
    verdict = _SQLSTATES.get(sqlstate) or _SQLSTATES.get(sqlstate[:2])
    if verdict is None:
        return DatabaseFailure(f"Lakebase '{target}' refused: {said}", sqlstate=error.sqlstate)
    advice = verdict.advice.format(check=check_running(target))
    return verdict.kind(f"Lakebase '{target}' refused: {said} {advice}")


def _first_line(error: BaseException | None) -> str:
    """The first line of a message, as a sentence; details and hints follow on later lines."""
    lines = str(error).strip().splitlines()
    line = lines[0].strip() if lines else type(error).__name__
    return line if line.endswith((".", "!", "?")) else f"{line}."
