"""The workspace's side of a local Lakebase: the REST calls that the Databricks SDK makes.

Which call means what. Whom and what there is is the business of `identities.py` and
`resources.py`, how a call arrives that of `http_server.py`, Postgres that of `roles.py`: a
credential comes from the function it is given.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable

from lakebase_sessions.local import identities
from lakebase_sessions.local.http_server import ApiError, Body, HttpServer
from lakebase_sessions.local.identities import Identities
from lakebase_sessions.local.resources import Resources

Mint = Callable[[str], tuple[str, dt.datetime]]


class ControlPlane:
    """Answers as a workspace does, through an HTTP server on this machine (`http`).

    Args:
        port: Port to listen on; 0 takes a free one.
        page_size: Most items on a page.
        mint: User name -> (database token, when it expires).
    """

    def __init__(self, *, port: int, page_size: int, mint: Mint) -> None:
        self.identities = Identities()
        self.resources = Resources(page_size=page_size)
        self.http = HttpServer(port, self)
        self.mint = mint

    def user_of(self, authorization: str | None) -> str | None:
        """Return whose workspace token a request carries."""
        return self.identities.of_token(authorization)

    def answer(
        self, method: str, path: str, query: dict[str, str], user: str | None, content: bytes
    ) -> Body:
        """Return the body of the answer to a call, or raise what it fails with."""
        if (method, path) == ("GET", "/.well-known/databricks-config"):
            # The one call without a token. The SDK logs a warning where it is missing.
            return {"oidc_endpoint": f"{self.http.url}/oidc", "workspace_id": "1"}
        if user is None:
            raise ApiError(401, "Credential was not sent or is not a known workspace token.")
        match method, path.removeprefix("/api/2.0/").split("/"):
            case "GET", ["preview", "scim", "v2", "Me"]:
                return identities.me(user)
            case "GET", ["database", "instances"]:
                return self.resources.instances(query)
            case "GET", ["database", "instances:findByUid"]:
                return self.resources.instance_by_uid(query.get("uid", ""))
            case "GET", ["database", "instances", name]:
                return self.resources.instance(name)
            case "POST", ["database", "credentials"]:
                return self._provisioned_credential(user, _json_object(content))
            case "POST", ["postgres", "credentials"]:
                return self._autoscaling_credential(user, _json_object(content))
            case "GET", ["postgres", *parts]:
                return self.resources.resource("/".join(parts), query)
        raise ApiError(404, f"No API found for '{method} {path}'", "ENDPOINT_NOT_FOUND")

    def _provisioned_credential(self, user: str, body: Body) -> Body:
        names = body.get("instance_names")
        if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
            message = "instance_names must name at least one database instance."
            raise ApiError(400, message, "INVALID_PARAMETER_VALUE")
        for name in names:
            self.resources.instance(name)
        token, expires = self._credential(user)
        return {"token": token, "expiration_time": _rfc3339(expires)}

    def _autoscaling_credential(self, user: str, body: Body) -> Body:
        self.resources.endpoint(body.get("endpoint"))
        token, expires = self._credential(user)
        return {"token": token, "expire_time": _rfc3339(expires)}

    def _credential(self, user: str) -> tuple[str, dt.datetime]:
        if self.identities[user].revoked:
            raise ApiError(403, f"{user} may not use this database instance.")
        return self.mint(user)


def _json_object(content: bytes) -> Body:
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ApiError(400, "The body is not a JSON object.", "MALFORMED_REQUEST")
    return body


def _rfc3339(moment: dt.datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
