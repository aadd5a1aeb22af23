"""Who is in the workspace of a local Lakebase, and their tokens for it."""

from __future__ import annotations

import hmac
import secrets
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lakebase_sessions.errors import LocalLakebaseError

if TYPE_CHECKING:
    from lakebase_sessions.local.http_server import Body


@dataclass
class User:
    """Someone with a token for the workspace."""

    name: str
    workspace_token: str = field(repr=False)
    revoked: bool = False


class Identities:
    """The users of the workspace, by name."""

    def __init__(self) -> None:
        self._users: dict[str, User] = {}

    def __getitem__(self, name: str) -> User:
        """Return a user.

        Raises:
            LocalLakebaseError: There is no such user.
        """
        try:
            return self._users[name]
        except KeyError:
            raise LocalLakebaseError(f"There is no user {name!r}; add_user() makes one.") from None

    def add_user(self, name: str) -> User:
        """Return the user of that name, who is new or, if somebody was revoked, has a new token."""
        user = self._users.get(name)
        if user is None or user.revoked:
            user = self._users[name] = User(name, workspace_token=f"dapi{secrets.token_hex(16)}")
        return user

    def of_token(self, authorization: str | None) -> str | None:
        """Return whose workspace token the Authorization header of a request carries."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        for user in list(self._users.values()):
            if hmac.compare_digest(user.workspace_token.encode(), token.strip().encode()):
                return user.name
        return None


def me(user: str) -> Body:
    """Return a user as SCIM describes whoever asks."""
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_DNS, user).int % 10**16),
        "userName": user,
        "displayName": user,
        "active": True,
        "emails": [{"type": "work", "value": user, "primary": True}],
        "groups": [{"display": "users", "type": "direct"}],
    }
