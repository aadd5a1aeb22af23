"""Who is in the workspace of a local Lakebase: users, service principals, groups, their tokens."""

from __future__ import annotations

import base64
import hmac
import re
import secrets
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from lakebase_sessions.errors import LocalLakebaseError
from lakebase_sessions.local.http_server import ApiError

if TYPE_CHECKING:
    from lakebase_sessions.local.http_server import Body

Kind = Literal["USER", "SERVICE_PRINCIPAL", "GROUP"]

EVERYBODY = "users"
"""The group that everybody in a workspace is in."""
OAUTH_TOKEN_SECONDS = 3600
_SCHEMA = "urn:ietf:params:scim:schemas:core:2.0:{}"
_FILTER = re.compile(
    r"""(?P<name>\w+)\s+eq\s+(?P<quote>["']?)(?P<value>.*)(?P=quote)""", re.IGNORECASE
)


class ServicePrincipal(NamedTuple):
    """What a program logs in with, as `DATABRICKS_CLIENT_ID` and `DATABRICKS_CLIENT_SECRET`."""

    client_id: str
    client_secret: str

    def __repr__(self) -> str:
        return f"ServicePrincipal(client_id={self.client_id!r})"


@dataclass
class Identity:
    """A user or a service principal."""

    name: str
    """The user name, or the application id; and the name of the Postgres role."""
    kind: Kind
    display_name: str
    secret: str = field(repr=False)
    """A user's token for the workspace, or a service principal's client secret."""
    can_manage: bool = False
    revoked: bool = False


class _Token(NamedTuple):
    owner: str
    expires_at: float


class Identities:
    """Everybody in the workspace, by name; and the groups."""

    def __init__(self) -> None:
        self._identities: dict[str, Identity] = {}
        self._groups: dict[str, list[str]] = {}
        self._tokens: dict[str, _Token] = {}

    def __getitem__(self, name: str) -> Identity:
        """Return a user or a service principal.

        Raises:
            LocalLakebaseError: There is nobody of that name.
        """
        try:
            return self._identities[name]
        except KeyError:
            raise LocalLakebaseError(f"There is no user {name!r}; add_user() makes one.") from None

    def add(self, name: str, kind: Kind, display_name: str, *, can_manage: bool) -> Identity:
        """Return the identity of that name: a new one, or who is there already.

        Whoever was revoked comes back with another secret.
        """
        check_name(name)
        if name == EVERYBODY or name in self._groups:
            raise LocalLakebaseError(f"{name!r} is a group of the workspace.")
        known = self._identities.get(name)
        if known is None or known.revoked:
            self._forget_tokens(name)
            secret = f"{'dapi' if kind == 'USER' else 'dose'}{secrets.token_hex(16)}"
            known = self._identities[name] = Identity(name, kind, display_name, secret)
            if kind == "USER":
                self._tokens[secret] = _Token(name, float("inf"))
        known.can_manage = can_manage
        return known

    def _forget_tokens(self, name: str) -> None:
        for token in [token for token, known in self._tokens.items() if known.owner == name]:
            del self._tokens[token]

    def add_group(self, name: str, members: Iterable[str]) -> None:
        """Add a group, or replace its members."""
        check_name(name)
        if name == EVERYBODY or name in self._identities:
            raise LocalLakebaseError(f"{name!r} is in the workspace already.")
        self._groups[name] = [self[member].name for member in members]

    # Tokens

    def owner(self, authorization: str) -> str | None:
        """Return whose token an Authorization header carries."""
        scheme, _, token = authorization.partition(" ")
        known = self._tokens.get(token.strip())
        if scheme.lower() != "bearer" or known is None or known.expires_at < time.time():
            return None
        return known.owner

    def log_in(self, authorization: str) -> str:
        """Return a new token for the client credentials in an Authorization header."""
        scheme, _, encoded = authorization.partition(" ")
        try:
            text = base64.b64decode(encoded, validate=True).decode()
        except ValueError:
            text = ""
        client_id, _, secret = text.partition(":")
        known = self._identities.get(client_id)
        if (
            scheme.lower() != "basic"
            or known is None
            or known.kind != "SERVICE_PRINCIPAL"
            or not hmac.compare_digest(known.secret.encode(), secret.encode())
        ):
            body = {
                "error": "invalid_client",
                "error_description": "Client authentication failed",
            }
            raise ApiError(401, "Client authentication failed", body=body)
        now = time.time()
        for old in [old for old, token in self._tokens.items() if token.expires_at < now]:
            del self._tokens[old]
        token = f"eyJ{secrets.token_urlsafe(48)}"
        self._tokens[token] = _Token(client_id, now + OAUTH_TOKEN_SECONDS)
        return token

    # What the workspace knows of them

    def find(self, name: str) -> tuple[Kind, str] | None:
        """Return the kind and the id of a user, a service principal or a group."""
        if name in self._identities:
            return self._identities[name].kind, id_of(name)
        if name == EVERYBODY or name in self._groups:
            return "GROUP", _group_id(name)
        return None

    def everybody(self) -> dict[str, tuple[Kind, str]]:
        """Return kind and id of all, by name."""
        names = [*self._identities, EVERYBODY, *self._groups]
        return {name: found for name in names if (found := self.find(name))}

    def groups_of(self, name: str) -> list[str]:
        """Return the groups that somebody is in."""
        groups = dict(self._groups)
        return [EVERYBODY, *(group for group, members in groups.items() if name in members)]

    # SCIM

    def me(self, name: str) -> Body:
        """Return whoever asks."""
        return self._describe(self[name])

    def scim(self, kind: str, id_: str | None, query: dict[str, str]) -> Body:
        """Return `Users`, `ServicePrincipals` or `Groups`: one by its id, or a page."""
        if kind == "Groups":
            found = [self._describe_group(name) for name in (EVERYBODY, *self._groups)]
        else:
            wanted = "USER" if kind == "Users" else "SERVICE_PRINCIPAL"
            everybody = list(self._identities.values())
            found = [self._describe(known) for known in everybody if known.kind == wanted]
        if id_ is None:
            return _page(_filtered(found, query.get("filter")), query)
        for body in found:
            if body["id"] == id_:
                return body
        raise ApiError(404, f"{kind.removesuffix('s')} with id {id_} not found.")

    def _describe(self, known: Identity) -> Body:
        body: Body = {
            "id": id_of(known.name),
            "displayName": known.display_name,
            "active": True,
            "groups": [
                {"display": group, "value": _group_id(group), "type": "direct"}
                for group in self.groups_of(known.name)
            ],
        }
        if known.kind == "USER":
            emails = [{"type": "work", "value": known.name, "primary": True}]
            return body | {
                "schemas": [_SCHEMA.format("User")],
                "userName": known.name,
                "emails": emails,
            }
        return body | {
            "schemas": [_SCHEMA.format("ServicePrincipal")],
            "userName": known.name,  # what `Me` calls it
            "applicationId": known.name,
        }

    def _describe_group(self, name: str) -> Body:
        members = [*self._identities] if name == EVERYBODY else self._groups[name]
        return {
            "id": _group_id(name),
            "displayName": name,
            "schemas": [_SCHEMA.format("Group")],
            "members": [
                {"display": self[member].display_name, "value": id_of(member)} for member in members
            ],
            "meta": {"resourceType": "WorkspaceGroup"},
        }


def check_name(name: str) -> None:
    """Raise where a name could not be a role or a database."""
    # Postgres would cut a longer name short, and two of them could become one.
    if not name or "\0" in name or len(name.encode(errors="replace")) > 63:
        raise LocalLakebaseError(
            f"{name!r} cannot be a user, a group or a database: a name in Postgres has 1 to 63 "
            "bytes."
        )


def id_of(name: str) -> str:
    """Return the id by which the workspace knows a user or a service principal."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, name).int % 10**16)


def _group_id(name: str) -> str:
    return id_of(f"group {name}")


def _filtered(found: list[Body], expression: str | None) -> list[Body]:
    if expression is None:
        return found
    match = _FILTER.fullmatch(expression.strip())
    if match is None:
        raise ApiError(400, f"The local Lakebase does not know the filter {expression!r}.")
    name, value = match["name"].lower(), match["value"]
    return [
        body
        for body in found
        if any(key.lower() == name and str(known) == value for key, known in body.items())
    ]


def _page(found: list[Body], query: dict[str, str]) -> Body:
    try:
        start = max(int(query.get("startIndex", 1)), 1)
        count = max(int(query.get("count", 100)), 0)
    except ValueError:
        raise ApiError(400, "startIndex or count is invalid.", "INVALID_PARAMETER_VALUE") from None
    page = found[start - 1 : start - 1 + count]
    return {
        "schemas": ["urn:ietf:params:scim:api:messages:2.0:ListResponse"],
        "totalResults": len(found),
        "startIndex": start,
        "itemsPerPage": len(page),
        "Resources": page,
    }
