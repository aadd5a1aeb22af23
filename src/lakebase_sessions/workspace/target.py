"""What was configured -> which Lakebase: instance name, hostname, branch or endpoint.

The forms of address are in docs/addresses.md. Reading one (`Address.parse`) is pure; finding
what it stands for (`resolve`) asks the workspace and blocks.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from lakebase_sessions.errors import (
    ConfigurationError,
    LakebaseSessionsError,
    LakebaseUnavailable,
    PermissionDenied,
    TargetNotFound,
    check_running,
)

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.service.postgres import Endpoint

    from lakebase_sessions.workspace.api import Token, Workspace

logger = logging.getLogger(__name__)

CALL_TIMEOUT_SECONDS = 10.0
"""Bound of one call to the workspace, and of one attempt to connect to Postgres."""

_ID = r"[a-z][a-z0-9-]{0,62}"
_BRANCH_PATH = re.compile(rf"projects/{_ID}/branches/{_ID}")
_ENDPOINT_PATH = re.compile(rf"projects/{_ID}/branches/{_ID}/endpoints/{_ID}")
_INSTANCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
_HOSTNAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*)(\.[a-z0-9_]([a-z0-9_-]*))+")
_SHORTHAND = re.compile(r"(ep-[a-z0-9-]+)\.databricks\.com")


class Kind(Enum):
    """The forms in which a Lakebase is named."""

    INSTANCE = "instance name"
    HOSTNAME = "hostname"
    BRANCH = "branch path"
    ENDPOINT = "endpoint path"


@dataclass(frozen=True, slots=True)
class Address:
    """A Lakebase as it was named, in a form that is safe to put into a URL."""

    kind: Kind
    value: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read any form that the platform hands out.

        Of a hostname, scheme, user, port, path, upper case, a trailing dot and blanks are
        forgiven: `"https://Instance-0c1d.database.cloud.databricks.com:5432/"` is fine. A path
        that begins with a slash is a Unix socket directory, which `lakebase-sessions local`
        hands out as a host.

        Raises:
            ConfigurationError: It is none of these.
        """
        text = text.strip()
        if text.startswith("projects/"):
            path = text.rstrip("/")
            if _ENDPOINT_PATH.fullmatch(path):
                return cls(Kind.ENDPOINT, path)
            if _BRANCH_PATH.fullmatch(path):
                return cls(Kind.BRANCH, path)
        elif text.startswith("/"):
            if directory := text.rstrip("/"):
                return cls(Kind.HOSTNAME, directory)
        else:
            host = _host_of(text)
            if _HOSTNAME.fullmatch(host.lower()):
                return cls(Kind.HOSTNAME, host.lower())
            if _INSTANCE_NAME.fullmatch(host):
                return cls(Kind.INSTANCE, host)
        # A connection string may hold a password anywhere.
        shown = "This connection string" if re.search("[@=?]|://", text) else ascii(text[:100])
        raise ConfigurationError(
            f"{shown} names no Lakebase. It must be an instance name (letters, digits and "
            "hyphens, at most 63), a hostname, projects/<project>/branches/<branch>, or "
            "projects/<project>/branches/<branch>/endpoints/<endpoint>."
        )


def _host_of(text: str) -> str:
    """The host in `text`, if it is a URL or a host with a port; else `text` as it is."""
    # Not urlsplit: it drops line breaks and whatever follows a slash, and so lets anything pass.
    _scheme, is_url, rest = text.partition("://")
    if is_url:
        authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
        if "@" in rest[len(authority) :].partition("=")[0]:
            return text  # a password that was not encoded: what stands before it is no host
        text = authority.rpartition("@")[2]
    return re.sub(r":\d*$", "", text.rstrip("/")).rstrip(".")


@dataclass(frozen=True, slots=True)
class Target:
    """A Lakebase that was found.

    Attributes:
        name: The instance's name or the endpoint's path; what tokens are asked for with.
        host: Where its Postgres listens, read-write, without a pooler.
    """

    name: str
    host: str

    @property
    def is_endpoint(self) -> bool:
        """Whether it is an autoscaling endpoint, and not a provisioned instance."""
        return self.name.startswith("projects/")

    def token(self, workspace: Workspace) -> Token:
        """A new database token."""
        if self.is_endpoint:
            return workspace.endpoint_token(self.name)
        return workspace.instance_token(self.name)


def resolve(address: Address, workspace: Workspace) -> Target:
    """Find what `address` stands for. Blocks.

    A read-only or pooled hostname leads to the read-write host of the same Lakebase: sessions
    write, and the pooler takes no tokens.

    Raises:
        TargetNotFound: Nothing has that name; the message says what was looked at.
        LakebaseUnavailable: It has no address yet, or the workspace does not answer.
        PermissionDenied: The workspace refused to say.
    """
    match address.kind:
        case Kind.INSTANCE:
            return _instance(address.value, workspace)
        case Kind.ENDPOINT:
            return _read_write(workspace.endpoint(address.value), workspace)
        case Kind.BRANCH:
            return _branch(address.value, workspace)
        case Kind.HOSTNAME:
            return _search(address.value, workspace)


def resolve_lakebase_instance_name(
    name_or_hostname: str, workspace_client: WorkspaceClient | None = None
) -> str:
    """The name of the Lakebase that a name or hostname stands for. Blocks.

    The name is an instance's name, or, for a host of an autoscaling project, the endpoint's path
    (`projects/…/branches/…/endpoints/…`), which everything here takes in place of a name. A name
    or a path is returned as it is, without asking the workspace.

    Args:
        name_or_hostname: Any form the platform hands out.
        workspace_client: Whose identity to use; None logs in as the SDK finds it.

    Raises:
        ConfigurationError: It is no form of address at all.
        TargetNotFound: `Unable to resolve hostname '…'`: what was looked at, and what came near.
    """
    address = Address.parse(name_or_hostname)
    if address.kind is not Kind.HOSTNAME:
        return address.value
    from lakebase_sessions.workspace.api import Workspace  # noqa: PLC0415 - loads the SDK

    workspace = Workspace(workspace_client, call_timeout_seconds=CALL_TIMEOUT_SECONDS)
    return resolve(address, workspace).name


def _instance(name: str, workspace: Workspace) -> Target:
    try:
        instance = workspace.instance(name)
    except TargetNotFound as error:
        looked = _Looked()
        for _ in looked.everywhere(workspace):
            pass
        raise TargetNotFound(
            f"There is no Lakebase instance '{name}': {looked.summary(name)} Set "
            "LAKEBASE_INSTANCE_NAME to an instance's name, or to an endpoint's path for an "
            "autoscaling project."
        ) from error
    host = instance.read_write_dns or instance.read_only_dns
    state = instance.state.value if instance.state else "unknown"
    return Target(name=name, host=_required(host, name, state))


def _branch(path: str, workspace: Workspace) -> Target:
    endpoints = list(workspace.endpoints(path))
    for endpoint in endpoints:
        if not _is_read_only(endpoint):
            return _endpoint(endpoint)
    raise TargetNotFound(
        f"The branch '{path}' has no read-write endpoint ({len(endpoints)} looked at). Create "
        f"one, or name another branch: `databricks postgres list-endpoints {path}`."
    )


def _read_write(endpoint: Endpoint, workspace: Workspace) -> Target:
    """`endpoint`, or, if that one only reads, the one of its branch that writes."""
    if not _is_read_only(endpoint):
        return _endpoint(endpoint)
    branch = (endpoint.name or "").partition("/endpoints/")[0]
    target = _branch(branch, workspace)
    logger.info("'%s' only reads; using '%s' of the same branch.", endpoint.name, target.name)
    return target


def _endpoint(endpoint: Endpoint) -> Target:
    status = endpoint.status
    name = endpoint.name or ""
    state = status.current_state.value if status and status.current_state else "unknown"
    host = status.hosts.host if status and status.hosts else None
    return Target(name=name, host=_required(host, name, state))


def _required(host: str | None, name: str, state: str) -> str:
    if host and isinstance(host, str):  # the SDK passes on whatever the answer holds
        return host
    raise LakebaseUnavailable(
        f"Lakebase '{name}' has no address (state: {state}). Start it, or wait until it has "
        f"started: `{check_running(name)}`."
    )


def _is_read_only(endpoint: Endpoint) -> bool:
    kind = endpoint.status.endpoint_type if endpoint.status else None
    return kind is not None and "READ_ONLY" in kind.value


def _search(hostname: str, workspace: Workspace) -> Target:
    looked = _Looked()
    for hosts, found in looked.everywhere(workspace):
        if _matches(hostname, hosts):
            return found if isinstance(found, Target) else _read_write(found, workspace)
    raise TargetNotFound(
        f"Unable to resolve hostname '{hostname}': {looked.summary(hostname)} Verify the "
        "hostname, or use the instance name or the endpoint's path directly."
    )


def same_host(one: str, other: str) -> bool:
    """Whether two hosts are the same but for case, a final dot or the pooler."""
    return _direct(one) == _direct(other)


def _matches(hostname: str, hosts: list[str]) -> bool:
    if _direct(hostname) in hosts:
        return True
    # The documentation's shorthand leaves the zone out; the first label is unique.
    shorthand = _SHORTHAND.fullmatch(_direct(hostname))
    return shorthand is not None and any(host.partition(".")[0] == shorthand[1] for host in hosts)


def _direct(host: str) -> str:
    """`host` in the form in which hosts are compared: no case, no final dot, no pooler."""
    label, dot, zone = host.lower().rstrip(".").partition(".")
    return label.removesuffix("-pooler") + dot + zone


@dataclass(slots=True)
class _Looked:
    """A walk over everything this identity may see, and what to say if it was in vain."""

    instances: int = 0
    endpoints: int = 0
    names: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def everywhere(self, workspace: Workspace) -> Iterator[tuple[list[str], Target | Endpoint]]:
        """Each Lakebase with its hosts, instances first: they take one call for a hundred."""
        try:
            for instance in workspace.instances():
                self.instances += 1
                read_write, read_only = instance.read_write_dns, instance.read_only_dns
                yield (
                    self._known(instance.name, read_write, read_only),
                    Target(instance.name, read_write or read_only or ""),
                )
        except (PermissionDenied, TargetNotFound, ConfigurationError) as error:
            self._skip(error)
        try:
            for project in workspace.projects():
                try:
                    for branch in workspace.branches(project):
                        for endpoint in workspace.endpoints(branch):
                            self.endpoints += 1
                            hosts = endpoint.status.hosts if endpoint.status else None
                            every = hosts and (
                                hosts.host,
                                hosts.read_only_host,
                                hosts.read_write_pooled_host,
                                hosts.read_only_pooled_host,
                            )
                            yield self._known(endpoint.name, *(every or ())), endpoint
                except (PermissionDenied, TargetNotFound) as error:
                    self._skip(error)  # gone since, or not ours to see
        except (PermissionDenied, TargetNotFound, ConfigurationError) as error:
            self._skip(error)

    def summary(self, wanted: str) -> str:
        """How much was looked at, what came nearest, and what could not be looked at."""
        text = f"looked at {self.instances} instances and {self.endpoints} endpoints."
        near = difflib.get_close_matches(wanted, self.names, n=3, cutoff=0.5)
        if near:
            text += f" Nearest: {', '.join(near)}."
        if self.refused:
            text += f" Not looked at: {' '.join(self.refused[:3])}"
        return text

    def _known(self, name: str | None, *hosts: str | None) -> list[str]:
        known = [host for host in hosts if host]
        self.names += [name or "", *known]
        return [_direct(host) for host in known]

    def _skip(self, error: LakebaseSessionsError) -> None:
        # Some workspaces have only one of the two products, and some identities see only one.
        self.refused.append(str(error))
