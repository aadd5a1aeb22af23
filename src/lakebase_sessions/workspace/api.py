"""The workspace's API as this package uses it: bounded calls, our errors, plain answers.

Everything here blocks and runs in a thread (`background.py` beside it). The SDK's own bounds are no
use in a server: five minutes of retries a call, and a `Retry-After` of any length is obeyed.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from databricks.sdk import WorkspaceClient
from databricks.sdk.clock import RealClock
from databricks.sdk.common.lro import LroOptions
from databricks.sdk.config import Config
from databricks.sdk.core import ApiClient
from databricks.sdk.service.database import DatabaseAPI
from databricks.sdk.service.postgres import PostgresAPI, Role, RoleIdentityType, RoleRoleSpec
from requests.exceptions import RequestException

from lakebase_sessions.errors import (
    ConfigurationError,
    LakebaseSessionsError,
    LakebaseUnavailable,
    PermissionDenied,
    from_workspace_error,
)

if TYPE_CHECKING:
    from databricks.sdk.service.agentkit import AgentKitAPI
    from databricks.sdk.service.database import DatabaseInstance
    from databricks.sdk.service.postgres import Endpoint

_hush = threading.local()


def _not_hushed(_record: logging.LogRecord) -> bool:
    return not getattr(_hush, "now", False)


# At DEBUG the SDK logs the bodies of its calls, and of two of them the token is a part.
logging.getLogger("databricks.sdk").addFilter(_not_hushed)

PAGE_SIZE = 100
"""Entries a page; the API's maximum."""
ROLE_TIMEOUT_SECONDS = 60.0
"""Of making a role, which the platform does in the background."""
ASSUMED_LIFETIME_SECONDS = 15 * 60
"""For a token whose lifetime cannot be told: what Databricks' own clients assume."""
_FAILING_LOGIN = {"server_error", "temporarily_unavailable", "unknown"}
"""OAuth's codes for a server that is failing, and the SDK's for an answer without one."""


@dataclass(frozen=True, slots=True)
class Token:
    """A database password that expires.

    Attributes:
        value: The password. Never shown.
        lifetime_seconds: From `received_at` to its expiry, both by the platform's clock.
        received_at: `time.monotonic()` when it was asked for; safe against changes of the clock.
    """

    value: str = field(repr=False)
    lifetime_seconds: float
    received_at: float

    @property
    def expires_at(self) -> float:
        """`time.monotonic()` at which Postgres stops taking it."""
        return self.received_at + self.lifetime_seconds


class _ImpatientClock(RealClock):
    """Refuses to sleep longer than a whole call may take, instead of obeying `Retry-After`."""

    def __init__(self, longest_seconds: float) -> None:
        self._longest_seconds = longest_seconds

    def sleep(self, seconds: float) -> None:
        if seconds > self._longest_seconds:
            raise TimeoutError(f"The workspace asks to come back in {seconds:.0f} s")
        super().sleep(seconds)


class Workspace:
    """One identity in one workspace.

    Args:
        client: Whose identity to use; None logs in as the SDK finds it in the environment.
        call_timeout_seconds: How long one attempt may take, and how long attempts may begin.
        profile: Of the Databricks CLI; for where there is no client.
    """

    def __init__(
        self,
        client: WorkspaceClient | None,
        *,
        call_timeout_seconds: float,
        profile: str | None = None,
    ) -> None:
        with _our_errors("log in to the workspace"):
            self._client = _bounded(client, call_timeout_seconds, profile)
            self._api = _DatedApiClient(self._client.config)
            self._database = DatabaseAPI(self._api)  # type: ignore[no-untyped-call]
            self._postgres = PostgresAPI(self._api)  # type: ignore[no-untyped-call]
            self._log_in()

    @property
    def login(self) -> str:
        """Where this is logged in, and by which of the SDK's ways."""
        config = self._client.config
        return f"{config.host} by {config.auth_type}"

    @property
    def agent_kit(self) -> AgentKitAPI:
        """The managed session stores.

        Raises:
            ConfigurationError: The databricks-sdk that is installed does not know them.
        """
        kit: AgentKitAPI | None = getattr(self._client, "agent_kit", None)
        if kit is None:
            raise ConfigurationError(
                "Managed session stores need a newer databricks-sdk: "
                "pip install 'databricks-sdk>=0.162'."
            )
        return kit

    def user_name(self) -> str:
        """The identity, which is also the name of its Postgres role."""
        with _our_errors("ask the workspace who this is"):
            name = self._client.current_user.me().user_name
        if not name:
            raise PermissionDenied(
                "The workspace does not say who this is (current_user.me has no user name), so "
                "there is no Postgres role to log in as. Check how this process logs in."
            )
        return name

    def instance(self, name: str) -> DatabaseInstance:
        """The provisioned instance of that name."""
        with _our_errors(f"read the Lakebase instance '{name}'"):
            return self._client.database.get_database_instance(name)

    def instances(self) -> Iterator[DatabaseInstance]:
        """All provisioned instances that this identity may see, page by page."""
        with _our_errors("list the Lakebase instances"):
            yield from self._client.database.list_database_instances(page_size=PAGE_SIZE)

    def endpoint(self, path: str) -> Endpoint:
        """The autoscaling endpoint at `projects/…/branches/…/endpoints/…`."""
        with _our_errors(f"read the Lakebase endpoint '{path}'"):
            return self._client.postgres.get_endpoint(path)

    def endpoints(self, branch: str) -> Iterator[Endpoint]:
        """The endpoints of `projects/…/branches/…`, page by page."""
        with _our_errors(f"list the endpoints of '{branch}'"):
            yield from self._client.postgres.list_endpoints(branch, page_size=PAGE_SIZE)

    def projects(self) -> Iterator[str]:
        """The paths of all autoscaling projects that this identity may see, page by page."""
        with _our_errors("list the Lakebase projects"):
            for project in self._client.postgres.list_projects(page_size=PAGE_SIZE):
                yield project.name or ""

    def branches(self, project: str) -> Iterator[str]:
        """The paths of the branches of `projects/…`, page by page."""
        with _our_errors(f"list the branches of '{project}'"):
            for branch in self._client.postgres.list_branches(project, page_size=PAGE_SIZE):
                yield branch.name or ""

    def create_role(self, branch: str, name: str, kind: str) -> None:
        """Make the Postgres role of an identity in `projects/…/branches/…`.

        Args:
            branch: The branch; all its endpoints have the role.
            name: A user name, a client id, or a group's name; the role is called that.
            kind: `"USER"`, `"SERVICE_PRINCIPAL"` or `"GROUP"`.
        """
        spec = RoleRoleSpec(postgres_role=name, identity_type=RoleIdentityType(kind))
        bound = LroOptions(timeout=timedelta(seconds=ROLE_TIMEOUT_SECONDS))
        with _our_errors(f"make the Postgres role of '{name}'"):
            self._client.postgres.create_role(branch, Role(spec=spec)).wait(bound)

    def instance_token(self, name: str) -> Token:
        """A new database token for a provisioned instance."""
        with _our_errors(f"get a database token for '{name}'"), _hushed():
            self._log_in()
            asked_at = time.monotonic()
            credential = self._database.generate_database_credential(
                instance_names=[name], request_id=str(uuid.uuid4())
            )
            expiry = credential.expiration_time
            expires = datetime.fromisoformat(expiry) if expiry else None
            return _token(credential.token, expires, self._api.answered_at, asked_at, name)

    def endpoint_token(self, path: str) -> Token:
        """A new database token for an autoscaling endpoint."""
        with _our_errors(f"get a database token for '{path}'"), _hushed():
            self._log_in()
            asked_at = time.monotonic()
            credential = self._postgres.generate_database_credential(path)
            expiry = credential.expire_time
            expires = expiry.ToDatetime(tzinfo=UTC) if expiry else None
            return _token(credential.token, expires, self._api.answered_at, asked_at, path)

    def _log_in(self) -> None:
        """Log in, or see that the login still holds.

        Of a login that was refused the SDK says what it says of an answer it cannot read.
        """
        try:
            self._client.config.authenticate()
        except RequestException:
            raise
        except ValueError as error:
            said = next(iter(str(error).splitlines()), "no reason given.")
            unreadable = any(isinstance(argument, bytes) for argument in error.args)
            if unreadable or said.partition(":")[0] in _FAILING_LOGIN:
                raise LakebaseUnavailable(
                    f"Could not log in to the workspace, which is failing: {said[:200]} This is "
                    "tried again with the next request."
                ) from error
            raise PermissionDenied(
                f"Could not log in to the workspace: {said} Check DATABRICKS_HOST and how this "
                "process logs in (`databricks auth describe`)."
            ) from error


class _DatedApiClient(ApiClient):
    """Remembers when the last call was answered, by the clock of the platform."""

    answered_at: datetime | None = None

    def do(self, *args: Any, **kwargs: Any) -> Any:
        """Make a call, as the base class does."""
        answer: Any = super().do(*args, **{**kwargs, "response_headers": ["Date"]})
        try:
            self.answered_at = parsedate_to_datetime(answer.pop("Date"))
        except (AttributeError, TypeError, ValueError):
            self.answered_at = None  # no such header, or none that can be read
        return answer


def _token(
    value: object,
    expires: datetime | None,
    answered_at: datetime | None,
    asked_at: float,
    target: str,
) -> Token:
    if not value or not isinstance(value, str):  # the SDK passes on whatever the answer holds
        raise LakebaseUnavailable(f"The workspace gave no database token for '{target}'.")
    lifetime = 0.0
    if expires is not None and answered_at is not None:
        # Not by our clock, which may be off. A date counts whole seconds, hence the one.
        lifetime = (_aware(expires) - _aware(answered_at)).total_seconds() - 1
    if lifetime <= 0:
        lifetime = ASSUMED_LIFETIME_SECONDS
    return Token(value=value, lifetime_seconds=lifetime, received_at=asked_at)


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _bounded(
    client: WorkspaceClient | None, timeout_seconds: float, profile: str | None
) -> WorkspaceClient:
    """A client of the same identity whose calls end in time."""
    clock = _ImpatientClock(timeout_seconds)
    bounds = {"http_timeout_seconds": timeout_seconds, "retry_timeout_seconds": timeout_seconds}
    if client is not None:
        # A shallow copy shares the login and its token cache, as it should, but also the dict of
        # attributes, which is the caller's: the bounds go into a dict of our own.
        config: Config = client.config.copy()  # type: ignore[no-untyped-call]
        config._inner = {**client.config.as_dict(), **bounds}
        config._clock = clock
    else:
        try:
            config = Config(
                clock=clock,
                profile=profile,
                product="lakebase-sessions",
                product_version=version("lakebase-sessions"),
                http_timeout_seconds=timeout_seconds,
                retry_timeout_seconds=int(timeout_seconds) or 1,
            )
        except ValueError as error:
            raise ConfigurationError(
                f"Could not log in to the workspace: {str(error).splitlines()[0]} Set "
                "DATABRICKS_HOST and a way to log in (`databricks auth login`), or run "
                "`lakebase-sessions local` for a Lakebase on this machine."
            ) from error
    return WorkspaceClient(config=config)


@contextmanager
def _our_errors(action: str) -> Iterator[None]:
    try:
        yield
    except LakebaseSessionsError:
        raise
    except Exception as error:
        raise from_workspace_error(error, action) from error


@contextmanager
def _hushed() -> Iterator[None]:
    _hush.now = True
    try:
        yield
    finally:
        _hush.now = False
