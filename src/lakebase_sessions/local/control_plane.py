"""The workspace's side of a local Lakebase: the REST calls that the Databricks SDK makes.

Which call means what. Whom and what there is is the business of `identities.py` and
`resources.py`, how a call arrives that of `http_server.py`, Postgres that of `roles.py`: a
credential comes from the function it is given.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

from lakebase_sessions.local.http_server import ApiError, Body, Call, HttpServer
from lakebase_sessions.local.identities import OAUTH_TOKEN_SECONDS, Identities
from lakebase_sessions.local.resources import Resources
from lakebase_sessions.local.role_api import RoleApi
from lakebase_sessions.local.session_stores import SessionStores

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
        self.session_stores = SessionStores()
        self.http = HttpServer(port, self)
        self.mint = mint
        self.role_api: RoleApi | None = None
        """Answers the calls about roles, as soon as there is a server that has some."""

    def user_of(self, call: Call) -> str | None:
        """Return whose workspace token a call carries."""
        return self.identities.owner(call.authorization)

    def answer(self, call: Call, user: str | None) -> Body:
        """Return the body of the answer to a call, or raise what it fails with."""
        if (found := self._for_anybody(call)) is not None:
            return found
        if user is None:
            raise ApiError(401, "Credential was not sent or is not a known workspace token.")
        match call.method, call.path.removeprefix("/api/2.0/").split("/"):
            case "GET", ["preview", "scim", "v2", "Me"]:
                return self.identities.me(user)
            case "GET", [
                "preview",
                "scim",
                "v2",
                "Users" | "ServicePrincipals" | "Groups" as kind,
                *ids,
            ] if len(ids) < 2:
                return self.identities.scim(kind, ids[0] if ids else None, call.query)
            case method, ["database", "instances", name, "roles", *rest] if len(rest) < 2:
                return self._instance_roles(method, name, rest, call, user)
            case method, [
                "postgres",
                "projects",
                project,
                "branches",
                branch,
                "roles" | "operations" as kind,
                *rest,
            ] if len(rest) < 2:
                path = f"projects/{project}/branches/{branch}"
                return self._branch_roles(method, path, [kind, *rest], call, user)
            case "GET", ["database", "instances"]:
                return self.resources.instances(call.query)
            case "GET", ["database", "instances:findByUid"]:
                return self.resources.instance_by_uid(call.query.get("uid", ""))
            case "GET", ["database", "instances", name]:
                return self.resources.instance(name)
            case "POST", ["database", "credentials"]:
                return self._provisioned_credential(user, call.json())
            case "POST", ["postgres", "credentials"]:
                return self._autoscaling_credential(user, call.json())
            case "GET", ["postgres", *parts]:
                return self.resources.resource("/".join(parts), call.query)
        return self._managed(call)

    def _managed(self, call: Call) -> Body:
        stores, _, rest = call.path.removeprefix("/api/2.0/agents/").partition("/")
        if stores == "session-stores":
            answer = self.session_stores.answer(call, rest.split("/") if rest else [])
            if answer is not None:
                return answer
        raise _no_api(call)

    def _for_anybody(self, call: Call) -> Body | None:
        """Return the answer to a call that needs no token."""
        match call.method, call.path:
            case "GET", "/.well-known/databricks-config":  # without it the SDK logs a warning
                return {"oidc_endpoint": f"{self.http.url}/oidc", "workspace_id": "1"}
            case "GET", "/oidc/.well-known/oauth-authorization-server":
                return {
                    "authorization_endpoint": f"{self.http.url}/oidc/v1/authorize",
                    "token_endpoint": f"{self.http.url}/oidc/v1/token",
                }
            case "POST", "/oidc/v1/token":
                return self._access_token(call)
        return None

    def _instance_roles(
        self, method: str, instance: str, rest: list[str], call: Call, user: str
    ) -> Body:
        self.resources.instance(instance)
        match method, rest, self.role_api:
            case "POST", [], RoleApi() as api:
                return api.create_in_instance(instance, call.json(), user)
            case "GET", [], RoleApi() as api:
                roles = api.in_instance(instance)
                return self.resources.page("database_instance_roles", roles, call.query)
            case "GET", [name], RoleApi() as api:
                return api.get_in_instance(instance, name)
            case "DELETE", [name], RoleApi() as api:
                return api.delete_in_instance(name, call.query, user)
        raise _no_api(call)

    def _branch_roles(
        self, method: str, branch: str, rest: list[str], call: Call, user: str
    ) -> Body:
        self.resources.resource(branch, {})
        match method, rest, self.role_api:
            case "POST", ["roles"], RoleApi() as api:
                return api.create(branch, call.query, call.json(), user)
            case "GET", ["roles"], RoleApi() as api:
                return self.resources.page("roles", api.in_branch(branch), call.query)
            case "GET", ["roles", role_id], RoleApi() as api:
                return api.get(branch, role_id)
            case "DELETE", ["roles", role_id], RoleApi() as api:
                return api.delete(branch, role_id, call.query, user)
            case "GET", ["operations", id_], RoleApi() as api:
                return api.operation(f"{branch}/operations/{id_}")
        raise _no_api(call)

    def _access_token(self, call: Call) -> Body:
        if call.form().get("grant_type") != "client_credentials":
            message = "Only the grant type client_credentials is supported"
            body = {"error": "unsupported_grant_type", "error_description": message}
            raise ApiError(400, message, body=body)
        return {
            "access_token": self.identities.log_in(call.authorization),
            "token_type": "Bearer",
            "scope": "all-apis",
            "expires_in": OAUTH_TOKEN_SECONDS,
        }

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


def _no_api(call: Call) -> ApiError:
    message = f"No API found for '{call.method} {call.path}'"
    return ApiError(404, message, "ENDPOINT_NOT_FOUND")


def _rfc3339(moment: dt.datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
