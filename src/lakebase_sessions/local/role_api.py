"""The REST calls about Postgres roles, of both APIs: `postgres` and `database`.

All instances and branches of a local Lakebase share one PostgreSQL, so they have the same roles.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lakebase_sessions.errors import LocalLakebaseError
from lakebase_sessions.local.http_server import ApiError, Body

if TYPE_CHECKING:
    from lakebase_sessions.local.identities import Identities, Kind
    from lakebase_sessions.local.roles import Role, Roles

_ROLE_ID = re.compile("[a-z0-9][a-z0-9-]{2,61}[a-z0-9]")
_KINDS = ("USER", "SERVICE_PRINCIPAL", "GROUP")
_SUPERUSER = "DATABRICKS_SUPERUSER"
_INVALID = "INVALID_PARAMETER_VALUE"


class RoleApi:
    """Answers calls about roles.

    Args:
        identities: Who is in the workspace.
        roles: The roles of the server.
        publish: Called when a role has come or gone.
    """

    def __init__(
        self, identities: Identities, roles: Roles, *, publish: Callable[[], None]
    ) -> None:
        self._identities = identities
        self._roles = roles
        self._publish = publish
        self._operations: dict[str, Body] = {}

    # The API of projects

    def create(self, branch: str, query: dict[str, str], body: Body, user: str) -> Body:
        """Create a role in a branch, or with `replace_existing` change it."""
        spec, role_id = body.get("spec"), query.get("role_id")
        if not isinstance(spec, dict):
            raise ApiError(400, "spec is required.", _INVALID)
        name, memberships = spec.get("postgres_role"), spec.get("membership_roles") or []
        if not isinstance(name, str) or not name:
            raise ApiError(400, "spec.postgres_role is required.", _INVALID)
        if role_id is not None and not _ROLE_ID.fullmatch(role_id):
            message = "role_id must be 4-63 lowercase letters, numbers and hyphens."
            raise ApiError(400, message, _INVALID)
        if not set(memberships) <= {_SUPERUSER}:
            raise ApiError(400, f"membership_roles may name {_SUPERUSER}.", _INVALID)
        attributes, superuser = _attributes(spec), _SUPERUSER in memberships
        known = (
            self._by_id(role_id) if role_id and query.get("replace_existing") == "true" else None
        )
        if known is not None:
            self._check_permission(user, known.name, more=bool(attributes or superuser))
            self._roles.change(known.name, attributes, superuser=superuser)
            name = known.name
        else:
            kind = spec.get("identity_type")
            if kind is None and spec.get("auth_method") != "NO_LOGIN":
                # It would have a password that the platform makes and reveals.
                raise ApiError(501, "A local Lakebase makes no roles with a password.")
            self._create(name, kind, role_id, attributes, superuser=superuser, user=user)
        return self._operation(branch, self._described(branch, self._by_name(name)))

    def get(self, branch: str, role_id: str) -> Body:
        """Return a role of a branch."""
        return self._described(branch, self._existing(branch, role_id))

    def in_branch(self, branch: str) -> list[Body]:
        """Return the roles of a branch."""
        return [self._described(branch, role) for role in self._roles.all()]

    def delete(self, branch: str, role_id: str, query: dict[str, str], user: str) -> Body:
        """Drop a role of a branch."""
        self._drop(self._existing(branch, role_id), query.get("reassign_owned_to"), user)
        return self._operation(branch, {})

    def operation(self, name: str) -> Body:
        """Return what has become of an operation: it is done."""
        if name not in self._operations:
            raise ApiError(404, f"'{name}' does not exist.")
        return {"name": name, "done": True, "response": self._operations[name]}

    def _operation(self, branch: str, response: Body) -> Body:
        name = f"{branch}/operations/{uuid.uuid4()}"
        self._operations[name] = response
        return {"name": name, "done": False}

    def _existing(self, branch: str, role_id: str) -> Role:
        role = self._by_id(role_id)
        if role is None:
            raise ApiError(404, f"'{branch}/roles/{role_id}' does not exist.")
        return role

    @staticmethod
    def _described(branch: str, role: Role) -> Body:
        oauth, none = "LAKEBASE_OAUTH_V1", "NO_LOGIN"
        password = "PG_PASSWORD_SCRAM_SHA_256"  # noqa: S105 the name of a method
        status: Body = {
            "role_id": role.role_id,
            "postgres_role": role.name,
            "auth_method": oauth if role.kind else password if role.can_login else none,
            "attributes": role.attributes,
        }
        if role.kind:
            status["identity_type"] = role.kind
        if role.superuser:
            status["membership_roles"] = [_SUPERUSER]
        return {"name": f"{branch}/roles/{role.role_id}", "parent": branch, "status": status}

    # The API of instances

    def create_in_instance(self, instance: str, body: Body, user: str) -> Body:
        """Create a role in an instance."""
        name, kind = body.get("name"), body.get("identity_type")
        if not isinstance(name, str) or not name:
            raise ApiError(400, "name is required.", _INVALID)
        if kind == "PG_ONLY":
            raise ApiError(501, "A local Lakebase makes no roles with a password.")
        if kind not in _KINDS:
            raise ApiError(400, f"identity_type must be one of {', '.join(_KINDS)}.", _INVALID)
        superuser = body.get("membership_role") == _SUPERUSER
        self._create(name, kind, None, _attributes(body), superuser=superuser, user=user)
        return self._described_in_instance(instance, self._by_name(name))

    def get_in_instance(self, instance: str, name: str) -> Body:
        """Return a role of an instance."""
        return self._described_in_instance(instance, self._by_name(name))

    def in_instance(self, instance: str) -> list[Body]:
        """Return the roles of an instance."""
        return [self._described_in_instance(instance, role) for role in self._roles.all()]

    def delete_in_instance(self, name: str, query: dict[str, str], user: str) -> Body:
        """Drop a role of an instance."""
        try:
            role = self._by_name(name)
        except ApiError:
            if query.get("allow_missing") == "true":
                return {}
            raise
        self._drop(role, query.get("reassign_owned_to"), user)
        return {}

    @staticmethod
    def _described_in_instance(instance: str, role: Role) -> Body:
        body: Body = {
            "name": role.name,
            "instance_name": instance,
            "identity_type": role.kind or "PG_ONLY",
            "effective_attributes": role.attributes,
        }
        return body | ({"membership_role": _SUPERUSER} if role.superuser else {})

    # Both

    def _create(
        self,
        name: str,
        kind: Kind | None,
        role_id: str | None,
        attributes: dict[str, bool],
        *,
        superuser: bool,
        user: str,
    ) -> None:
        self._check_permission(user, name, more=bool(attributes or superuser))
        identity = None
        if kind is not None:
            identity = self._identities.find(name)
            if identity is None or identity[0] != kind:
                message = f"{kind} '{name}' does not exist in the workspace."
                raise ApiError(400, message, _INVALID)
        if any(role.name == name or role.role_id == role_id for role in self._roles.all()):
            raise ApiError(409, f"Role '{name}' already exists.", "ALREADY_EXISTS")
        try:
            self._roles.create(
                name, identity, role_id=role_id, attributes=attributes, superuser=superuser
            )
        except LocalLakebaseError as exc:
            raise ApiError(400, str(exc), _INVALID) from exc
        self._publish()

    def _drop(self, role: Role, reassign_to: str | None, user: str) -> None:
        from psycopg import errors  # noqa: PLC0415

        self._check_permission(user, None, more=True)
        if reassign_to is not None:
            wanted = reassign_to.rpartition("/")[2]
            names = {r.role_id: r.name for r in self._roles.all()}
            reassign_to = names.get(wanted, reassign_to)
            if reassign_to not in names.values():
                raise ApiError(400, f"Role '{reassign_to}' does not exist.", _INVALID)
        try:
            self._roles.drop(role.name, reassign_to=reassign_to)
        except errors.DependentObjectsStillExist as exc:
            detail = exc.diag.message_detail or ""
            message = f"{exc.diag.message_primary}: {detail} Set reassign_owned_to."
            raise ApiError(400, message, "BAD_REQUEST") from exc
        self._publish()

    def _check_permission(self, user: str, name: str | None, *, more: bool) -> None:
        """With CAN MANAGE anything; without it, a plain role for oneself."""
        if not self._identities[user].can_manage and (name != user or more):
            message = f"{user} does not have CAN MANAGE on this database."
            raise ApiError(403, message)

    def _by_id(self, role_id: str) -> Role | None:
        return next((role for role in self._roles.all() if role.role_id == role_id), None)

    def _by_name(self, name: str) -> Role:
        for role in self._roles.all():
            if role.name == name:
                return role
        raise ApiError(404, f"Role '{name}' does not exist.", "RESOURCE_DOES_NOT_EXIST")


def _attributes(holder: dict[str, Any]) -> dict[str, bool]:
    from lakebase_sessions.local.roles import ATTRIBUTES  # noqa: PLC0415

    given = holder.get("attributes") or {}
    return {name: bool(given[name]) for name in ATTRIBUTES if name in given}
