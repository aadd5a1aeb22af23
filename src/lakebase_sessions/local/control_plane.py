"""The workspace's side of a local Lakebase: the REST calls that the Databricks SDK makes.

What it knows (instances, endpoints, users) and what it answers (pages, credentials, the
platform's error bodies). How a call arrives is the business of `http_server.py`, Postgres that
of `roles.py`: a credential comes from the function it is given.
"""

from __future__ import annotations

import datetime as dt
import hmac
import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from lakebase_sessions.errors import LocalLakebaseError
from lakebase_sessions.local.http_server import ApiError, Body, HttpServer

Mint = Callable[[str], tuple[str, dt.datetime]]

_ENDPOINT = re.compile(r"(?P<branch>(?P<project>projects/[^/]+)/branches/[^/]+)/endpoints/[^/]+")


@dataclass
class User:
    """Someone with a token for the workspace."""

    name: str
    workspace_token: str = field(repr=False)
    revoked: bool = False


class ControlPlane:
    """Answers as a workspace does, through an HTTP server on this machine (`http`).

    Args:
        port: Port to listen on; 0 takes a free one.
        page_size: Most items on a page.
        mint: User name -> (database token, when it expires).
    """

    def __init__(self, *, port: int, page_size: int, mint: Mint) -> None:
        self.page_size = page_size
        self.mint = mint
        self.users: dict[str, User] = {}
        self.instances: dict[str, Body] = {}
        self.endpoints: dict[str, Body] = {}
        self.http = HttpServer(port, self)

    def user_of(self, authorization: str | None) -> str | None:
        """Return whose workspace token a request carries."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        for user in list(self.users.values()):
            if hmac.compare_digest(user.workspace_token.encode(), token.strip().encode()):
                return user.name
        return None

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
                return _me(user)
            case "GET", ["database", "instances"]:
                return self._page("database_instances", list(self.instances.values()), query)
            case "GET", ["database", "instances:findByUid"]:
                return self._instance_by_uid(query.get("uid", ""))
            case "GET", ["database", "instances", name]:
                return self._instance(name)
            case "POST", ["database", "credentials"]:
                return self._provisioned_credential(user, _json_object(content))
            case "POST", ["postgres", "credentials"]:
                return self._autoscaling_credential(user, _json_object(content))
            case "GET", ["postgres", *parts]:
                return self._resource("/".join(parts), query)
        raise ApiError(404, f"No API found for '{method} {path}'", "ENDPOINT_NOT_FOUND")

    def _instance(self, name: str) -> Body:
        if name not in self.instances:
            message = f"Database instance '{name}' does not exist."
            raise ApiError(404, message, "RESOURCE_DOES_NOT_EXIST")
        return self.instances[name]

    def _instance_by_uid(self, uid: str) -> Body:
        for instance in list(self.instances.values()):
            if instance["uid"] == uid:
                return instance
        message = f"Database instance with uid '{uid}' does not exist."
        raise ApiError(404, message, "RESOURCE_DOES_NOT_EXIST")

    def _resource(self, name: str, query: dict[str, str]) -> Body:
        """Answer for projects, branches and endpoints: one of them, or a page of children."""
        projects, branches = {}, {}
        endpoints = dict(self.endpoints)
        for path in endpoints:
            match = _match_endpoint(path)
            project, branch = match["project"], match["branch"]
            projects[project] = _resource(project, {"display_name": project.split("/")[-1]})
            branches[branch] = _resource(branch, {"current_state": "READY", "default": True})
        known = projects | branches | endpoints
        parent, _, kind = name.rpartition("/")
        if (kind == "projects" and not parent) or (
            kind in ("branches", "endpoints") and parent.count("/") in (1, 3)
        ):
            if parent and parent not in known:
                raise ApiError(404, f"'{parent}' does not exist.")
            depth = name.count("/") + 1
            children = [
                known[path]
                for path in known
                if path.startswith(f"{name}/") and path.count("/") == depth
            ]
            return self._page(kind, children, query)
        if name not in known:
            raise ApiError(404, f"'{name}' does not exist.")
        return known[name]

    def _page(self, key: str, items: list[Body], query: dict[str, str]) -> Body:
        try:
            size = int(query.get("page_size") or 0)
            offset = int(query.get("page_token") or 0)
        except ValueError:
            size = offset = -1
        if size < 0 or offset < 0:
            message = "page_size or page_token is invalid."
            raise ApiError(400, message, "INVALID_PARAMETER_VALUE")
        end = offset + min(size or self.page_size, self.page_size)
        # As the platform leaves out what is empty, so does this.
        body: Body = {key: items[offset:end]} if items[offset:end] else {}
        if end < len(items):
            body["next_page_token"] = str(end)
        return body

    def _provisioned_credential(self, user: str, body: Body) -> Body:
        names = body.get("instance_names")
        if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
            message = "instance_names must name at least one database instance."
            raise ApiError(400, message, "INVALID_PARAMETER_VALUE")
        for name in names:
            self._instance(name)
        token, expires = self._mint(user)
        return {"token": token, "expiration_time": _rfc3339(expires)}

    def _autoscaling_credential(self, user: str, body: Body) -> Body:
        endpoint = body.get("endpoint")
        if not isinstance(endpoint, str) or not _ENDPOINT.fullmatch(endpoint):
            message = "endpoint must be projects/{id}/branches/{id}/endpoints/{id}."
            raise ApiError(400, message, "INVALID_PARAMETER_VALUE")
        if endpoint not in self.endpoints:
            raise ApiError(404, f"'{endpoint}' does not exist.")
        token, expires = self._mint(user)
        return {"token": token, "expire_time": _rfc3339(expires)}

    def _mint(self, user: str) -> tuple[str, dt.datetime]:
        if self.users[user].revoked:
            raise ApiError(403, f"{user} may not use this database instance.")
        return self.mint(user)


def instance(
    name: str, *, read_write_dns: str, read_only_dns: str, state: str, version: int, creator: str
) -> Body:
    """Return a provisioned instance as the platform describes it."""
    described = {
        "name": name,
        "uid": str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
        "state": state,
        "pg_version": f"PG_VERSION_{version}",
        "creator": creator,
        "read_write_dns": read_write_dns,
        "read_only_dns": read_only_dns,
    }
    return {key: value for key, value in described.items() if value}


def endpoint(path: str, *, hosts: dict[str, str | None], endpoint_type: str, state: str) -> Body:
    """Return an autoscaling endpoint as the platform describes it."""
    match = _match_endpoint(path)
    return _resource(
        path,
        {
            "endpoint_type": endpoint_type,
            "current_state": state,
            "hosts": {name: host for name, host in hosts.items() if host},
        },
    ) | {"parent": match["branch"]}


def _match_endpoint(path: str) -> re.Match[str]:
    match = _ENDPOINT.fullmatch(path)
    if match is None:
        raise LocalLakebaseError(
            f"{path!r} is not an endpoint; one looks like "
            "projects/PROJECT/branches/BRANCH/endpoints/ENDPOINT."
        )
    return match


def _resource(path: str, status: Body) -> Body:
    return {"name": path, "uid": str(uuid.uuid5(uuid.NAMESPACE_URL, path)), "status": status}


def _me(user: str) -> Body:
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_DNS, user).int % 10**16),
        "userName": user,
        "displayName": user,
        "active": True,
        "emails": [{"type": "work", "value": user, "primary": True}],
        "groups": [{"display": "users", "type": "direct"}],
    }


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
