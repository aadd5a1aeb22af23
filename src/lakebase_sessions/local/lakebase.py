"""LocalLakebase: its life, and what tests and programs ask of it.

What runs meanwhile is in `running.py`: PostgreSQL (`server.py`), the workspace
(`control_plane.py`), computes.
"""

from __future__ import annotations

import atexit
import os
import threading
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lakebase_sessions.errors import LocalLakebaseError
from lakebase_sessions.local.identities import ServicePrincipal
from lakebase_sessions.local.running import Running

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient

    from lakebase_sessions.local.compute import Compute
    from lakebase_sessions.local.control_plane import ControlPlane
    from lakebase_sessions.local.http_server import Fault, Request
    from lakebase_sessions.local.server import Server

DEFAULT_USER = "developer@example.com"
"""Exists from the start and owns the default database."""
DEFAULT_INSTANCE = "local"
"""An instance that is there from the start."""
DEFAULT_ENDPOINT = "projects/local/branches/production/endpoints/primary"
"""An endpoint that is there from the start."""


class LocalLakebase:
    """A Lakebase on this machine, from `start()` (or `with`) to `stop()`.

    At the start there are the user `developer@example.com`, the provisioned instance `local` and
    the autoscaling endpoint `projects/local/branches/production/endpoints/primary`. All
    instances and endpoints lead to one PostgreSQL.

    Database tokens are real: Postgres checks them at each login and refuses them once they have
    expired or are another user's. Unlike the platform, one token per user is valid at a time,
    because a Postgres role has one password: a request hands out the current one while more than
    half of its life is left; after that a new one ends the old one. `ttl`, `expire_time` and
    `claims` of a request are not looked at.

    Args:
        data: Folder that keeps the data from one start to the next; made if missing. None:
            a temporary one, removed at the end.
        port: Port of the control plane on 127.0.0.1; 0 takes a free one.
        postgres_version: 16 or 18, for the embedded server.
        token_lifetime_seconds: How long a database token is valid. The platform's: one hour.
        database: The default database.
        dsn: Superuser DSN of a PostgreSQL that already runs on port 5432, used instead of the
            embedded one by one LocalLakebase at a time. `stop()` leaves the server and its
            databases alone and drops the roles made here, except those that own something:
            they stay without login.
        page_size: Most items on a page of a list.
    """

    def __init__(
        self,
        data: str | Path | None = None,
        *,
        port: int = 0,
        postgres_version: int = 18,
        token_lifetime_seconds: float = 3600.0,
        database: str = "databricks_postgres",
        dsn: str | None = None,
        page_size: int = 100,
    ) -> None:
        if data is not None and dsn is not None:
            raise LocalLakebaseError("`data` is the embedded server's folder; a DSN has none.")
        self._data = None if data is None else Path(data).expanduser().absolute()
        self._port = port
        self._version = postgres_version
        self._token_lifetime = token_lifetime_seconds
        self._database = database
        self._dsn = dsn
        self._page_size = page_size
        self._lock = threading.RLock()
        self._pid: int | None = None
        self._running: Running | None = None

    def start(self) -> Self:
        """Start PostgreSQL and the control plane.

        Raises:
            LocalLakebaseError: It is started already, or the message says what is in the way:
                the port, the folder, its version, another process, or PostgreSQL's own log.
        """
        with self._lock:
            if self._pid is not None:
                raise LocalLakebaseError("This LocalLakebase is started already.")
            self._pid = os.getpid()
            atexit.register(self.stop)
            try:
                self._start()
            except BaseException:
                self.stop()
                raise
        return self

    def _start(self) -> None:
        self._running = Running(
            self._data,
            self._dsn,
            port=self._port,
            page_size=self._page_size,
            version=self._version,
            token_lifetime_seconds=self._token_lifetime,
        )
        self.add_user(DEFAULT_USER, can_manage=True)
        databases = self._running.server.databases
        if self._dsn is None:
            databases.adopt_all()
        databases.adopt(self._database, owner=DEFAULT_USER)
        self.add_instance(DEFAULT_INSTANCE)
        self.add_endpoint(DEFAULT_ENDPOINT)
        self._running.plane.http.start()

    def stop(self) -> None:
        """Stop everything that was started and remove what was temporary. Safe to repeat."""
        with self._lock:
            if self._pid != os.getpid():
                return  # not started, or a fork's copy: the parent goes on with it
            try:
                if self._running is not None:
                    self._running.stop()
            finally:
                self._running = self._pid = None
                atexit.unregister(self.stop)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        if self._running is None:
            return "<LocalLakebase, not started>"
        version = self._started_server().version
        return f"<LocalLakebase {self.url}, PostgreSQL {version} at {self.host}>"

    # What a client needs

    @property
    def running(self) -> bool:
        """Whether it is started and its embedded server, if it has one, lives."""
        return self._running is not None and self._running.server.running

    @property
    def url(self) -> str:
        """Address of the control plane: what `DATABRICKS_HOST` is for a workspace."""
        return self._started_plane().http.url

    @property
    def host(self) -> str:
        """What a client passes to libpq as host; for the embedded server a socket's folder.

        Upstream fixes port 5432 and `sslmode=require`. On a socket neither is in the way.
        """
        return self._started_server().host

    @property
    def admin_dsn(self) -> str:
        """Conninfo of a superuser, for tests; with `dsn=` that DSN, its password included."""
        return self._started_server().admin.dsn

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables that lead a process here, as the default user."""
        return {
            "DATABRICKS_HOST": self.url,
            "DATABRICKS_TOKEN": self._started_plane().identities[DEFAULT_USER].secret,
            "LAKEBASE_INSTANCE_NAME": DEFAULT_INSTANCE,
        }

    def workspace_client(self, user: str | None = None) -> WorkspaceClient:
        """Return the real SDK's client, as `user` or as the default user.

        Args:
            user: User name, or a service principal's client id; that one logs in by OAuth.
        """
        from databricks.sdk import WorkspaceClient  # noqa: PLC0415

        known = self._started_plane().identities[user or DEFAULT_USER]
        if known.kind == "SERVICE_PRINCIPAL":
            return WorkspaceClient(
                host=self.url,
                client_id=known.name,
                client_secret=known.secret,
                auth_type="oauth-m2m",
            )
        return WorkspaceClient(host=self.url, token=known.secret, auth_type="pat")

    # Who is in the workspace

    def add_user(
        self, name: str, *, can_create: bool = True, can_manage: bool = False, role: bool = True
    ) -> str:
        """Let someone in, and return the token for the workspace.

        Args:
            name: User name, and so the Postgres role. Somebody who is there already keeps the
                token and gets the permissions of this call; somebody revoked gets a new token.
            can_create: Whether the role may create schemas and tables, as with
                `CAN_CONNECT_AND_CREATE`; otherwise it may connect and look.
            can_manage: Whether they have CAN MANAGE: they may make roles for others, and their
                own role is in `databricks_superuser` and has CREATEROLE, CREATEDB and BYPASSRLS.
            role: Whether there is a role at all. Without one they are in the workspace and get
                database tokens, but Postgres refuses the login, until somebody makes the role.
        """
        known = self._started().add_identity(
            name, "USER", name, can_create=can_create, can_manage=can_manage, role=role
        )
        return known.secret

    def add_service_principal(
        self,
        display_name: str,
        *,
        client_id: str | None = None,
        can_create: bool = True,
        can_manage: bool = False,
        role: bool = True,
    ) -> ServicePrincipal:
        """Let a program in, and return what it logs in with by OAuth, in place of a token.

        Args:
            display_name: What people call it. Two may have the same.
            client_id: Its application id, and so the Postgres role; None makes one. One that is
                there already keeps its secret, as a user's token is kept.
            can_create: As for a user.
            can_manage: As for a user.
            role: As for a user.

        Example::

            app = local.add_service_principal("my-app")
            WorkspaceClient(
                host=local.url, client_id=app.client_id, client_secret=app.client_secret
            )
        """
        known = self._started().add_identity(
            client_id or str(uuid.uuid4()),
            "SERVICE_PRINCIPAL",
            display_name,
            can_create=can_create,
            can_manage=can_manage,
            role=role,
        )
        return ServicePrincipal(known.name, known.secret)

    def add_group(self, name: str, members: Iterable[str] = ()) -> None:
        """Add a group to the workspace, or replace its members.

        It has no Postgres role until somebody makes one. Then its members may log in as the
        group, each with their own token; the role takes that of the member who asked last.

        Args:
            name: Its display name.
            members: User names and client ids of some who are in the workspace.
        """
        self._started().add_group(name, members)

    def revoke_user(self, name: str) -> None:
        """Take the database from someone: credentials answer 403, logins fail.

        The database token that was handed out dies too. Open connections go on, as they do on
        the platform.

        Args:
            name: User name, or a service principal's client id.
        """
        self._started().revoke(name)

    # Instances, endpoints, databases

    def add_instance(
        self,
        name: str,
        *,
        read_write_dns: str | None = None,
        read_only_dns: str | None = None,
        state: str = "AVAILABLE",
    ) -> None:
        """Add or replace a provisioned instance.

        Args:
            name: Instance name.
            read_write_dns: Its host; None means `self.host`, "" that it has none.
            read_only_dns: Its read-only host, likewise.
            state: A `DatabaseInstanceState` of the SDK.
        """
        self._started_plane().resources.add_instance(
            name,
            read_write_dns=self.host if read_write_dns is None else read_write_dns,
            read_only_dns=self.host if read_only_dns is None else read_only_dns,
            state=state,
            version=self._started_server().version,
            creator=DEFAULT_USER,
        )

    def remove_instance(self, name: str) -> None:
        """Remove a provisioned instance. The data stays: all instances share it."""
        self._started_plane().resources.remove_instance(name)

    def add_endpoint(
        self,
        path: str,
        *,
        host: str | None = None,
        read_only_host: str | None = None,
        read_write_pooled_host: str | None = None,
        read_only_pooled_host: str | None = None,
        endpoint_type: str = "ENDPOINT_TYPE_READ_WRITE",
        state: str = "ACTIVE",
    ) -> None:
        """Add or replace an autoscaling endpoint. Its project and branch appear with it.

        Args:
            path: `projects/PROJECT/branches/BRANCH/endpoints/ENDPOINT`.
            host: Its host; None means `self.host`, "" that it has none.
            read_only_host: As the platform names it; None: it has none.
            read_write_pooled_host: Likewise.
            read_only_pooled_host: Likewise.
            endpoint_type: An `EndpointType` of the SDK.
            state: An `EndpointStatusState` of the SDK.
        """
        hosts = {
            "host": self.host if host is None else host,
            "read_only_host": read_only_host,
            "read_write_pooled_host": read_write_pooled_host,
            "read_only_pooled_host": read_only_pooled_host,
        }
        self._started().add_endpoint(path, hosts, endpoint_type=endpoint_type, state=state)

    def add_compute(self, path: str, *, wake_seconds: float = 0.5) -> Compute:
        """Add or replace an autoscaling endpoint whose compute can be suspended and disabled.

        It has a host of its own, a Unix socket's folder also with `dsn=`. What passes there is
        forwarded by this process, which takes some time.

        Args:
            path: `projects/PROJECT/branches/BRANCH/endpoints/ENDPOINT`.
            wake_seconds: How long the first connection waits after `suspend()`.

        Example::

            compute = local.add_compute("projects/app/branches/main/endpoints/primary")
            compute.suspend()  # all sessions are gone; the next connection wakes it
        """
        return self._started().add_compute(path, wake_seconds=wake_seconds)

    def remove_endpoint(self, path: str) -> None:
        """Remove an endpoint, and its branch and project if they have no other."""
        self._started().remove_endpoint(path)

    def create_database(self, name: str, *, template: str | None = None) -> None:
        """Create a database with the default one's owner and permissions.

        Args:
            name: Its name.
            template: Database to copy; nobody may be connected to it.
        """
        self._started_server().databases.create(name, owner=DEFAULT_USER, template=template)

    def drop_database(self, name: str) -> None:
        """Drop a database and end its sessions. One that is not there is fine."""
        self._started_server().databases.drop(name)

    # For tests

    def fault(
        self,
        path: str = "",
        *,
        method: str | None = None,
        status: int | None = None,
        headers: dict[str, str] | None = None,
        body: dict[str, Any] | str | None = None,
        delay_seconds: float = 0.0,
        hang: bool = False,
        drop: bool = False,
        times: int | None = None,
    ) -> Fault:
        """Have calls to the control plane misbehave.

        In force from this call on, until `remove()`, the end of a `with`, or `clear_faults()`.
        Of several that meet one call, every mere delay is waited for and the newest of the
        others answers.

        Args:
            path: Part of the path of the calls that are meant; "" means all.
            method: HTTP method of the calls that are meant; None means any.
            status: Answer with this HTTP status.
            headers: Headers of that answer, `{"Retry-After": "1"}` for one.
            body: Body of that answer; None: an error body in the platform's form.
            delay_seconds: Wait before the answer, whichever it is.
            hang: Never answer.
            drop: Close the connection without an answer.
            times: How many calls it meets; None: every one.
        """
        return self._started_plane().http.add_fault(
            path=path,
            method=method,
            status=status,
            headers=headers or {},
            body=body,
            delay_seconds=delay_seconds,
            hang=hang,
            drop=drop,
            times=times,
        )

    def clear_faults(self) -> None:
        """End all faults."""
        self._started_plane().http.clear_faults()

    @property
    def requests(self) -> list[Request]:
        """The calls that have arrived, oldest first: (method, path, user); the last 10,000."""
        return list(self._started_plane().http.requests)

    def _started(self) -> Running:
        if self._running is None:
            raise LocalLakebaseError("This LocalLakebase is not started.")
        return self._running

    def _started_plane(self) -> ControlPlane:
        return self._started().plane

    def _started_server(self) -> Server:
        return self._started().server
