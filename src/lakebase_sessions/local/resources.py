"""The Lakebases of a workspace: instances, projects, branches, endpoints, as it describes them."""

from __future__ import annotations

import re
import uuid

from lakebase_sessions.errors import LocalLakebaseError
from lakebase_sessions.local.http_server import ApiError, Body

_ENDPOINT = re.compile(r"(?P<branch>(?P<project>projects/[^/]+)/branches/[^/]+)/endpoints/[^/]+")


class Resources:
    """Instances by name and endpoints by path, in the order in which they were added.

    Args:
        page_size: Most items on a page.
    """

    def __init__(self, *, page_size: int) -> None:
        self._page_size = page_size
        self._instances: dict[str, Body] = {}
        self._endpoints: dict[str, Body] = {}

    # Instances

    def add_instance(
        self,
        name: str,
        *,
        read_write_dns: str,
        read_only_dns: str,
        state: str,
        version: int,
        creator: str,
    ) -> None:
        """Add or replace a provisioned instance."""
        described = {
            "name": name,
            "uid": str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
            "state": state,
            "pg_version": f"PG_VERSION_{version}",
            "creator": creator,
            "read_write_dns": read_write_dns,
            "read_only_dns": read_only_dns,
        }
        self._instances[name] = {key: value for key, value in described.items() if value}

    def remove_instance(self, name: str) -> None:
        """Remove an instance. One that is not there is fine."""
        self._instances.pop(name, None)

    def instance(self, name: str) -> Body:
        """Return an instance, or raise the platform's 404."""
        if name not in self._instances:
            message = f"Database instance '{name}' does not exist."
            raise ApiError(404, message, "RESOURCE_DOES_NOT_EXIST")
        return self._instances[name]

    def instance_by_uid(self, uid: str) -> Body:
        """Return an instance, or raise the platform's 404."""
        for instance in list(self._instances.values()):
            if instance["uid"] == uid:
                return instance
        message = f"Database instance with uid '{uid}' does not exist."
        raise ApiError(404, message, "RESOURCE_DOES_NOT_EXIST")

    def instances(self, query: dict[str, str]) -> Body:
        """Return a page of instances."""
        return self.page("database_instances", list(self._instances.values()), query)

    # Projects, branches, endpoints

    def add_endpoint(
        self, path: str, *, hosts: dict[str, str | None], endpoint_type: str, state: str
    ) -> None:
        """Add or replace an autoscaling endpoint."""
        status = {
            "endpoint_type": endpoint_type,
            "current_state": state,
            "hosts": {name: host for name, host in hosts.items() if host},
        }
        parent = {"parent": _match(path)["branch"]}
        self._endpoints[path] = _resource(path, status) | parent

    def set_state(self, path: str, state: str, *, disabled: bool) -> None:
        """Change what is known of an endpoint's compute. One that is not there is fine."""
        endpoint = self._endpoints.get(path)
        if endpoint is not None:
            status = endpoint["status"] | {"current_state": state, "disabled": disabled}
            self._endpoints[path] = endpoint | {"status": status}

    def remove_endpoint(self, path: str) -> None:
        """Remove an endpoint. One that is not there is fine."""
        self._endpoints.pop(path, None)

    def endpoint(self, path: object) -> Body:
        """Return an endpoint, or raise what the platform answers to one that it cannot find."""
        if not isinstance(path, str) or not _ENDPOINT.fullmatch(path):
            message = "endpoint must be projects/{id}/branches/{id}/endpoints/{id}."
            raise ApiError(400, message, "INVALID_PARAMETER_VALUE")
        if path not in self._endpoints:
            raise ApiError(404, f"'{path}' does not exist.")
        return self._endpoints[path]

    def resource(self, name: str, query: dict[str, str]) -> Body:
        """Return a project, a branch or an endpoint, or a page of children."""
        projects, branches = {}, {}
        endpoints = dict(self._endpoints)
        for path in endpoints:
            match = _match(path)
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
            return self.page(kind, children, query)
        if name not in known:
            raise ApiError(404, f"'{name}' does not exist.")
        return known[name]

    def page(self, key: str, items: list[Body], query: dict[str, str]) -> Body:
        """Return the page of `items` that a query asks for."""
        try:
            size = int(query.get("page_size") or 0)
            offset = int(query.get("page_token") or 0)
        except ValueError:
            size = offset = -1
        if size < 0 or offset < 0:
            message = "page_size or page_token is invalid."
            raise ApiError(400, message, "INVALID_PARAMETER_VALUE")
        end = offset + min(size or self._page_size, self._page_size)
        # As the platform leaves out what is empty, so does this.
        body: Body = {key: items[offset:end]} if items[offset:end] else {}
        if end < len(items):
            body["next_page_token"] = str(end)
        return body


def _match(path: str) -> re.Match[str]:
    match = _ENDPOINT.fullmatch(path)
    if match is None:
        raise LocalLakebaseError(
            f"{path!r} is not an endpoint; one looks like "
            "projects/PROJECT/branches/BRANCH/endpoints/ENDPOINT."
        )
    return match


def _resource(path: str, status: Body) -> Body:
    return {"name": path, "uid": str(uuid.uuid5(uuid.NAMESPACE_URL, path)), "status": status}
