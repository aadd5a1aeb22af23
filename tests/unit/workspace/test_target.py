"""What was configured -> which Lakebase: every form of address, and what it matches."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest
from databricks.sdk.service.database import DatabaseInstance, DatabaseInstanceState
from databricks.sdk.service.postgres import (
    Endpoint,
    EndpointHosts,
    EndpointStatus,
    EndpointStatusState,
    EndpointType,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lakebase_sessions import (
    ConfigurationError,
    LakebaseUnavailable,
    PermissionDenied,
    TargetNotFound,
    resolve_lakebase_instance_name,
)
from lakebase_sessions.workspace.target import Address, Kind, Target, resolve, same_host

if TYPE_CHECKING:
    from lakebase_sessions.workspace.api import Workspace

UUID = "0c1d2e3f-aaaa-bbbb-cccc-0123456789ab"
ZONES = {
    "AWS": "database.cloud.databricks.com",
    "AWS staging": "database.staging.cloud.databricks.com",
    "Azure": "database.azuredatabricks.net",
    "GCP": "database.gcp.databricks.com",
}
ENDPOINT_ZONES = {
    "AWS": "database.us-east-1.cloud.databricks.com",
    "AWS staging": "database.us-west-2.staging.cloud.databricks.com",
    "Azure": "database.westeurope.azuredatabricks.net",
    "GCP": "database.us-central1.gcp.databricks.com",
}
HOSTNAMES = [
    *(f"instance-{UUID}.{zone}" for zone in ZONES.values()),
    *(f"instance-ro-{UUID}.{zone}" for zone in ZONES.values()),
    *(f"ep-cool-sun-1a2b.{zone}" for zone in ENDPOINT_ZONES.values()),
    *(f"ep-cool-sun-1a2b-ro.{zone}" for zone in ENDPOINT_ZONES.values()),
    *(f"ep-cool-sun-1a2b-pooler.{zone}" for zone in ENDPOINT_ZONES.values()),
    *(f"ep-cool-sun-1a2b-ro-pooler.{zone}" for zone in ENDPOINT_ZONES.values()),
    "ep-abc-123.databricks.com",
    "10.0.0.7",
    "pg.corp_internal.example",
]
BRANCH = "projects/shop/branches/main"
PRIMARY = f"{BRANCH}/endpoints/primary"
REPLICA = f"{BRANCH}/endpoints/replica"


class TestHostnames:
    @pytest.mark.parametrize("hostname", HOSTNAMES)
    @pytest.mark.parametrize(
        "form",
        [
            "{}",
            "  {}\n",
            "{}.",
            "{}:5432",
            "{}.:5432",
            "{}/",
            "https://{}",
            "https://{}:443/",
            "HTTPS://{}/sql?o=1#x",
            "postgresql://{}/databricks_postgres",
            "postgresql://{}:5432/databricks_postgres?sslmode=require",
            "postgresql://user:secret@{}:5432/db?sslmode=require",
            "postgresql://zo%C3%AB%40example.com:s%40cret@{}/db",
            "postgres://user:s@cret@{}/db?options=-c%20search_path@x",
            "jdbc:postgresql://{}:5432/db?user=u&password=secret",
        ],
    )
    def test_what_is_forgiven(self, form: str, hostname: str) -> None:
        assert Address.parse(form.format(hostname)) == Address(Kind.HOSTNAME, hostname)

    @pytest.mark.parametrize("hostname", HOSTNAMES)
    def test_upper_case(self, hostname: str) -> None:
        assert Address.parse(hostname.upper()) == Address(Kind.HOSTNAME, hostname)

    @pytest.mark.parametrize("path", ["/tmp/lakebase", "/var/run/postgresql/", "/a b/Ü"])
    def test_a_socket_directory(self, path: str) -> None:
        assert Address.parse(path) == Address(Kind.HOSTNAME, path.rstrip("/"))

    @pytest.mark.parametrize("path", ["/", "//", " / "])
    def test_the_root_directory_is_none(self, path: str) -> None:
        with pytest.raises(ConfigurationError):
            Address.parse(path)


class TestInstanceNames:
    @pytest.mark.parametrize(
        "name", ["a", "my-lake", "My-Lake", "7", "0-prod", "x" * 63, "projects", "ep-abc-123"]
    )
    def test_they_are_taken_as_they_are(self, name: str) -> None:
        assert Address.parse(name) == Address(Kind.INSTANCE, name)
        assert Address.parse(f"  {name}\n") == Address(Kind.INSTANCE, name)

    @pytest.mark.parametrize(
        "name",
        [
            "",
            "   ",
            "x" * 64,
            "-lake",
            "my lake",
            "my_lake",
            "my\nlake",
            "my\tlake",
            "my\x00lake",
            "läke",
            "ﬁ",
            "a/b",
            "a/../b?x",
            "../b",
            "..",
            "a..b",
            "a?b=c",
            "a#b",
            "a%2Fb",
            "a&b",
            "a;b",
            "'; DROP TABLE x",
            "Projects/shop/branches/main",
        ],
    )
    def test_what_is_no_name_never_reaches_a_url(self, name: str) -> None:
        with pytest.raises(ConfigurationError, match="names no Lakebase") as raised:
            Address.parse(name)
        for form in ("instance name", "a hostname", "projects/<project>/branches/<branch>"):
            assert form in str(raised.value)
        assert str(raised.value).isprintable()


class TestPaths:
    @pytest.mark.parametrize(
        ("text", "kind"),
        [
            (BRANCH, Kind.BRANCH),
            (f" {BRANCH}/ ", Kind.BRANCH),
            (f"projects/{'x' * 63}/branches/b", Kind.BRANCH),
            ("projects/a/branches/b-1", Kind.BRANCH),
            (PRIMARY, Kind.ENDPOINT),
            (f"{PRIMARY}/", Kind.ENDPOINT),
        ],
    )
    def test_good_ones(self, text: str, kind: Kind) -> None:
        assert Address.parse(text) == Address(kind, text.strip().rstrip("/"))

    @pytest.mark.parametrize(
        "text",
        [
            "projects/",
            "projects/shop",
            "projects/shop/branches",
            "projects/shop/branches/",
            "projects//branches/main",
            f"{BRANCH}/endpoints",
            f"{PRIMARY}/more",
            "projects/Shop/branches/main",
            "projects/1shop/branches/main",
            "projects/shop/branches/ma_in",
            f"projects/{'x' * 64}/branches/main",
            "projects/shop/branches/../main",
            f"{BRANCH}/endpoints/..",
            f"{PRIMARY}?x=1",
            f"{PRIMARY}#x",
            f"{PRIMARY}%2F",
            f"{BRANCH}\n/endpoints/x",
        ],
    )
    def test_bad_ones(self, text: str) -> None:
        with pytest.raises(ConfigurationError, match="names no Lakebase"):
            Address.parse(text)


class TestSecrets:
    @pytest.mark.parametrize(
        "text",
        [
            "postgresql://user:s3cret@bad host:5432/db?sslmode=require",
            "postgresql://user:s3cret@/db",
            "postgresql://user:s3cret@",
            "postgresql://user:s3/cr@s3cret@[::1]:5432/db",
            "user:s3cret@bad host",
            "projects/shop:s3cret@x",
            "postgresql://bad host/db?user=u&password=s3cret",
            "postgresql:///db?user=u&password=s3cret",
            "jdbc:postgresql://bad host:5432/db?password=s3cret&user=me@example.com",
            "host=ep-1.database.x.cloud.databricks.com user=u password=s3cret",
            "password='s3cret' host=x",
            "postgresql://user:s3cret",
        ],
    )
    def test_an_error_never_shows_a_password(self, text: str) -> None:
        with pytest.raises(ConfigurationError) as raised:
            Address.parse(text)
        assert "s3cret" not in str(raised.value)
        assert raised.value.__cause__ is None
        assert raised.value.__context__ is None

    def test_nor_the_whole_of_a_long_text(self) -> None:
        with pytest.raises(ConfigurationError) as raised:
            Address.parse("x" * 10_000)
        assert len(str(raised.value)) < 500


texts = (
    st.text(st.characters())
    | st.text("abAZ09-_.:/@?#%[] \t\n\x00\\é", max_size=80)
    | st.lists(
        st.sampled_from(
            [
                "projects/",
                "shop",
                "/branches/",
                "main",
                "/endpoints/",
                "..",
                "/",
                "https://",
                "@",
                "ep-a-1",
                "instance-",
                ".database.",
                "databricks.com",
                ":5432",
                "?x",
                "#",
                "%2f",
                " ",
                "\n",
                "A",
                "-pooler",
                "-ro",
                "x" * 62,
            ]
        ),
        max_size=8,
    ).map("".join)
)
SAFE = {
    Kind.INSTANCE: re.compile(r"[A-Za-z0-9-]{1,63}"),
    Kind.HOSTNAME: re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+|/.*[^/]", re.DOTALL),
    Kind.BRANCH: re.compile(r"projects/[a-z][a-z0-9-]*/branches/[a-z][a-z0-9-]*"),
    Kind.ENDPOINT: re.compile(
        r"projects/[a-z][a-z0-9-]*/branches/[a-z][a-z0-9-]*/endpoints/[a-z][a-z0-9-]*"
    ),
}


@settings(deadline=None, max_examples=500)
@example("a/../b?x")
@example("https://a/../b")
@given(texts)
def test_any_text_is_an_address_that_is_safe_in_a_url_or_a_configuration_error(text: str) -> None:
    """A hostname is only ever compared; the other three become part of a path."""
    try:
        address = Address.parse(text)
    except ConfigurationError as error:
        str(error).encode("utf-8")
        return
    assert SAFE[address.kind].fullmatch(address.value)
    if not address.value.startswith("/"):
        assert Address.parse(address.value) == address


@settings(deadline=None)
@given(texts, st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=12, max_size=20))
def test_no_error_shows_the_password_of_a_connection_string(host: str, password: str) -> None:
    try:
        Address.parse(f"postgresql://user:pw{password}@{host}/db")
    except ConfigurationError as error:
        message = str(error)
    else:
        message = ""
    assert f"pw{password}" not in message


# --- finding what an address stands for --------------------------------------------------------


def instance(name: str, read_write: str | None, read_only: str | None = None) -> DatabaseInstance:
    return DatabaseInstance(
        name=name,
        read_write_dns=read_write,
        read_only_dns=read_only,
        state=DatabaseInstanceState.AVAILABLE if read_write else DatabaseInstanceState.STOPPED,
    )


def endpoint(path: str, hosts: EndpointHosts | None, *, read_only: bool = False) -> Endpoint:
    kind = EndpointType.ENDPOINT_TYPE_READ_ONLY if read_only else None
    return Endpoint(
        name=path,
        status=EndpointStatus(
            hosts=hosts,
            endpoint_type=kind or EndpointType.ENDPOINT_TYPE_READ_WRITE,
            current_state=EndpointStatusState.ACTIVE if hosts else EndpointStatusState.INIT,
        ),
    )


@dataclass
class WorkspaceInMemory:
    """Answers as `Workspace` does, from lists."""

    all_instances: list[DatabaseInstance] = field(default_factory=list)
    all_endpoints: list[Endpoint] = field(default_factory=list)
    refuse: dict[str, Exception] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def _asked(self, what: str) -> None:
        self.asked.append(what)
        if error := self.refuse.get(what):
            raise error

    def instance(self, name: str) -> DatabaseInstance:
        self._asked(f"instance {name}")
        for found in self.all_instances:
            if found.name == name:
                return found
        raise TargetNotFound("no such instance")

    def instances(self) -> Iterator[DatabaseInstance]:
        self._asked("instances")
        yield from self.all_instances

    def endpoint(self, path: str) -> Endpoint:
        self._asked(path)
        for found in self.all_endpoints:
            if found.name == path:
                return found
        raise TargetNotFound("no such endpoint")

    def _parents(self, parts: int) -> list[str]:
        names = ["/".join((found.name or "").split("/")[:parts]) for found in self.all_endpoints]
        return list(dict.fromkeys(names))

    def projects(self) -> Iterator[str]:
        self._asked("projects")
        yield from self._parents(2)

    def branches(self, project: str) -> Iterator[str]:
        self._asked(f"{project}/branches")
        yield from (name for name in self._parents(4) if name.startswith(f"{project}/"))

    def endpoints(self, branch: str) -> Iterator[Endpoint]:
        self._asked(f"{branch}/endpoints")
        yield from (x for x in self.all_endpoints if (x.name or "").startswith(f"{branch}/"))

    def resolve(self, text: str) -> Target:
        return resolve(Address.parse(text), cast("Workspace", self))


ZONE = ENDPOINT_ZONES["AWS"]
PRIMARY_HOST = f"ep-cool-sun-1a2b.{ZONE}"
REPLICA_HOST = f"ep-cool-sun-3c4d-ro.{ZONE}"
ON_AWS = Target("on-aws", f"instance-{UUID}.{ZONES['AWS']}")


@pytest.fixture
def workspace() -> WorkspaceInMemory:
    return WorkspaceInMemory(
        [
            instance("on-aws", ON_AWS.host, f"instance-ro-{UUID}.{ZONES['AWS']}"),
            instance("on-azure", f"Instance-{UUID}.{ZONES['Azure']}."),
            instance("upgraded", f"ep-old-lake-77.{ZONE}"),
            instance("asleep", None),
        ],
        [
            endpoint(REPLICA, EndpointHosts(read_only_host=REPLICA_HOST), read_only=True),
            endpoint(
                PRIMARY,
                EndpointHosts(
                    host=PRIMARY_HOST,
                    read_only_host=f"ep-cool-sun-1a2b-ro.{ZONE}",
                    read_write_pooled_host=f"ep-cool-sun-1a2b-pooler.{ZONE}",
                    read_only_pooled_host=f"ep-cool-sun-1a2b-ro-pooler.{ZONE}",
                ),
            ),
            endpoint("projects/new/branches/main/endpoints/primary", None),
        ],
    )


class TestResolve:
    @pytest.mark.parametrize(
        ("text", "name", "host"),
        [
            ("on-aws", *("on-aws", ON_AWS.host)),
            (f"instance-{UUID}.{ZONES['AWS']}", *("on-aws", ON_AWS.host)),
            (f"instance-ro-{UUID}.{ZONES['AWS']}", *("on-aws", ON_AWS.host)),
            (f"ep-old-lake-77.{ZONE}", "upgraded", f"ep-old-lake-77.{ZONE}"),
            (f"ep-old-lake-77-pooler.{ZONE}", "upgraded", f"ep-old-lake-77.{ZONE}"),
            ("ep-old-lake-77.databricks.com", "upgraded", f"ep-old-lake-77.{ZONE}"),
            (PRIMARY, PRIMARY, PRIMARY_HOST),
            (BRANCH, PRIMARY, PRIMARY_HOST),
            (REPLICA, PRIMARY, PRIMARY_HOST),
            (PRIMARY_HOST, PRIMARY, PRIMARY_HOST),
            (REPLICA_HOST, PRIMARY, PRIMARY_HOST),
            (f"ep-cool-sun-1a2b-ro.{ZONE}", PRIMARY, PRIMARY_HOST),
            (f"ep-cool-sun-1a2b-pooler.{ZONE}", PRIMARY, PRIMARY_HOST),
            (f"ep-cool-sun-1a2b-ro-pooler.{ZONE}", PRIMARY, PRIMARY_HOST),
            ("ep-cool-sun-1a2b.databricks.com", PRIMARY, PRIMARY_HOST),
            ("ep-cool-sun-1a2b-pooler.databricks.com", PRIMARY, PRIMARY_HOST),
        ],
    )
    def test_every_form_leads_to_the_read_write_host(
        self, workspace: WorkspaceInMemory, text: str, name: str, host: str
    ) -> None:
        assert workspace.resolve(text) == Target(name, host)

    def test_a_host_that_the_platform_wrote_in_another_way(
        self, workspace: WorkspaceInMemory
    ) -> None:
        assert workspace.resolve(f"instance-{UUID}.{ZONES['Azure']}").name == "on-azure"

    def test_the_shorthand_needs_the_whole_first_label(self, workspace: WorkspaceInMemory) -> None:
        with pytest.raises(TargetNotFound):
            workspace.resolve("ep-old-lake-7.databricks.com")

    def test_a_name_takes_one_question(self, workspace: WorkspaceInMemory) -> None:
        workspace.resolve("on-aws")
        assert workspace.asked == ["instance on-aws"]

    def test_an_instances_host_needs_no_projects(self, workspace: WorkspaceInMemory) -> None:
        workspace.resolve(ON_AWS.host)
        assert workspace.asked == ["instances"]

    def test_a_miss_says_what_was_looked_at_and_what_came_near(
        self, workspace: WorkspaceInMemory
    ) -> None:
        wanted = f"ep-cool-sun-1a2c.{ZONE}"
        with pytest.raises(TargetNotFound, match=f"Unable to resolve hostname '{wanted}'") as e:
            workspace.resolve(wanted)
        assert "looked at 4 instances and 3 endpoints" in str(e.value)
        assert f"Nearest: {PRIMARY_HOST}" in str(e.value)

    def test_a_missing_name_does_too(self, workspace: WorkspaceInMemory) -> None:
        with pytest.raises(TargetNotFound, match="no Lakebase instance 'on-aw'") as raised:
            workspace.resolve("on-aw")
        assert "looked at 4 instances and 3 endpoints" in str(raised.value)
        assert "Nearest: on-aws" in str(raised.value)

    def test_a_refusal_does_not_end_the_search(self, workspace: WorkspaceInMemory) -> None:
        workspace.refuse["instances"] = PermissionDenied("Not for you: instances.")
        workspace.refuse["projects/new/branches"] = PermissionDenied("Not for you: new.")
        assert workspace.resolve(PRIMARY_HOST).name == PRIMARY
        with pytest.raises(TargetNotFound, match="looked at 0 instances and 2 endpoints") as raised:
            workspace.resolve("ep-x.databricks.com")
        assert "Not looked at: Not for you: instances. Not for you: new." in str(raised.value)

    def test_an_outage_does(self, workspace: WorkspaceInMemory) -> None:
        """It is not known then whether the Lakebase exists."""
        workspace.refuse["projects"] = LakebaseUnavailable("down")
        with pytest.raises(LakebaseUnavailable):
            workspace.resolve(PRIMARY_HOST)

    @pytest.mark.parametrize(
        ("text", "command"),
        [
            ("asleep", "databricks database get-database-instance asleep"),
            (
                "projects/new/branches/main/endpoints/primary",
                "databricks postgres get-endpoint projects/new/branches/main/endpoints/primary",
            ),
        ],
    )
    def test_no_address_yet(self, workspace: WorkspaceInMemory, text: str, command: str) -> None:
        with pytest.raises(LakebaseUnavailable, match=r"has no address \(state: ") as raised:
            workspace.resolve(text)
        assert command in str(raised.value)

    def test_a_branch_that_only_reads(self, workspace: WorkspaceInMemory) -> None:
        del workspace.all_endpoints[1]
        for text in (BRANCH, REPLICA, REPLICA_HOST):
            with pytest.raises(TargetNotFound, match="no read-write endpoint") as raised:
                workspace.resolve(text)
            assert f"databricks postgres list-endpoints {BRANCH}" in str(raised.value)

    def test_a_change_to_the_read_write_endpoint_is_logged(
        self, workspace: WorkspaceInMemory, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, "lakebase_sessions.workspace.target"):
            workspace.resolve(REPLICA)
        assert f"'{REPLICA}' only reads; using '{PRIMARY}'" in caplog.text


class TestResolveInstanceName:
    @pytest.mark.parametrize("text", ["my-lake", " my-lake ", f"{BRANCH}/", PRIMARY])
    def test_names_and_paths_need_no_workspace(
        self, text: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATABRICKS_HOST", "http://127.0.0.1:1")  # nobody answers there
        assert resolve_lakebase_instance_name(text) == text.strip().rstrip("/")

    def test_nor_does_nonsense(self) -> None:
        with pytest.raises(ConfigurationError):
            resolve_lakebase_instance_name("a/../b?x")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("ep-a-1.x.com", "EP-A-1.X.COM.", True),
        ("ep-a-1-pooler.x.com", "ep-a-1.x.com", True),
        ("ep-a-1-ro.x.com", "ep-a-1.x.com", False),
        ("ep-a-1.x.com", "ep-a-1.y.com", False),
        ("/tmp/lakebase", "/tmp/lakebase", True),
    ],
)
def test_same_host(one: str, other: str, same: bool) -> None:
    assert same_host(one, other) is same
    assert same_host(other, one) is same
