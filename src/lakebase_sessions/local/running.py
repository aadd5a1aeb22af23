"""What runs while a LocalLakebase is started: the control plane, PostgreSQL, computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lakebase_sessions.local import server
from lakebase_sessions.local.control_plane import ControlPlane
from lakebase_sessions.local.role_api import RoleApi

if TYPE_CHECKING:
    import datetime as dt

    from lakebase_sessions.local.compute import Compute
    from lakebase_sessions.local.identities import Identity, Kind


class Running:
    """Its parts, and what concerns several of them; from construction to `stop()`.

    The arguments are those of `LocalLakebase`.
    """

    def __init__(
        self,
        data: Path | None,
        dsn: str | None,
        *,
        port: int,
        page_size: int,
        version: int,
        token_lifetime_seconds: float,
    ) -> None:
        self._computes: dict[str, Compute] = {}
        # The control plane first: a port that is taken is told before anything is made.
        self.plane = ControlPlane(port=port, page_size=page_size, mint=self._mint)
        identities = self.plane.identities
        try:
            if dsn is None:
                self.server = server.embedded(
                    data,
                    identities,
                    version=version,
                    token_lifetime_seconds=token_lifetime_seconds,
                )
            else:
                self.server = server.given(
                    dsn, identities, token_lifetime_seconds=token_lifetime_seconds
                )
        except BaseException:
            self.plane.http.stop()
            raise
        self.plane.role_api = RoleApi(
            identities, self.server.roles, publish=self.server.tokens.publish
        )

    def stop(self) -> None:
        """Stop all of it, as far as each part can be stopped."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.server.stop)
            stack.callback(self.plane.http.stop)
            for path in list(self._computes):
                stack.callback(self._stop_compute, path)

    def _mint(self, name: str) -> tuple[str, dt.datetime]:
        return self.server.tokens.mint(name)

    # Who is in the workspace

    def add_identity(
        self,
        name: str,
        kind: Kind,
        display_name: str,
        *,
        can_create: bool,
        can_manage: bool,
        role: bool,
    ) -> Identity:
        """Let somebody into the workspace, and Postgres know of it."""
        if role:
            self.server.roles.add(name, kind, can_create=can_create, can_manage=can_manage)
        known = self.plane.identities.add(name, kind, display_name, can_manage=can_manage)
        self.server.tokens.publish()
        return known

    def add_group(self, name: str, members: Iterable[str]) -> None:
        """Add a group or replace its members, and let Postgres know of it."""
        self.plane.identities.add_group(name, members)
        self.server.tokens.check_members(name)
        self.server.tokens.publish()

    def revoke(self, name: str) -> None:
        """Take the database from somebody."""
        self.plane.identities[name].revoked = True
        self.server.tokens.revoke(name)

    # Endpoints

    def add_endpoint(
        self, path: str, hosts: dict[str, str | None], *, endpoint_type: str, state: str
    ) -> None:
        """Add or replace an endpoint."""
        self.plane.resources.add_endpoint(
            path, hosts=hosts, endpoint_type=endpoint_type, state=state
        )
        self._stop_compute(path)

    def add_compute(self, path: str, *, wake_seconds: float) -> Compute:
        """Add or replace an endpoint that has a compute of its own."""
        from lakebase_sessions.local.compute import Compute  # noqa: PLC0415

        resources = self.plane.resources
        compute = Compute(
            self.server.admin,
            self.server.host,
            lambda state, disabled: resources.set_state(path, state, disabled=disabled),
            wake_seconds=wake_seconds,
        )
        try:
            kind = "ENDPOINT_TYPE_READ_WRITE"
            hosts: dict[str, str | None] = {"host": compute.host}
            self.add_endpoint(path, hosts, endpoint_type=kind, state=compute.state)
        except BaseException:
            compute.stop()
            raise
        self._computes[path] = compute
        if self.server.postgres is not None:
            self.server.postgres.remove_after_kill(Path(compute.host))
        return compute

    def remove_endpoint(self, path: str) -> None:
        """Remove an endpoint, and its compute if it has one of its own."""
        self.plane.resources.remove_endpoint(path)
        self._stop_compute(path)

    def _stop_compute(self, path: str) -> None:
        compute = self._computes.pop(path, None)
        if compute is not None:
            compute.stop()
