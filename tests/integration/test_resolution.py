"""Which Lakebase is meant: asked of a real control plane over HTTP, by the real SDK."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from lakebase_sessions import (
    ConfigurationError,
    Lakebase,
    LakebaseUnavailable,
    MissingConfiguration,
    TargetNotFound,
    default_lakebase,
    resolve_lakebase_instance_name,
    session_for,
)
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.workspace.api import Workspace
from lakebase_sessions.workspace.target import Address, resolve

UUID = "0c1d2e3f-aaaa-bbbb-cccc-0123456789ab"
AWS = "database.cloud.databricks.com"
STAGING = "database.staging.cloud.databricks.com"
AZURE = "database.azuredatabricks.net"
GCP = "database.gcp.databricks.com"
ENDPOINT = "projects/shop/branches/main/endpoints/primary"
REPLICA = "projects/shop/branches/main/endpoints/replica"
EP_ZONE = "database.us-east-1.cloud.databricks.com"
EP_AZURE_ZONE = "database.westus.azuredatabricks.net"


@pytest.fixture(scope="module")
def workspace_with_much(local_for_run: LocalLakebase) -> Iterator[LocalLakebase]:
    """Instances and projects beyond one page, in every zone."""
    local = local_for_run
    names = []
    for zone, name in [
        (AWS, "on-aws"),
        (STAGING, "on-staging"),
        (AZURE, "on-azure"),
        (GCP, "on-gcp"),
    ]:
        local.add_instance(
            name,
            read_write_dns=f"instance-{name}-{UUID}.{zone}",
            read_only_dns=f"instance-ro-{name}-{UUID}.{zone}",
        )
        names.append(name)
    local.add_instance("upgraded", read_write_dns=f"ep-old-lake-77.{EP_ZONE}")
    local.add_instance("asleep", read_write_dns="", read_only_dns="", state="STOPPED")
    names += ["upgraded", "asleep"]
    for number in range(120):  # more than a page holds
        local.add_instance(f"filler-{number}", read_write_dns=f"instance-f{number}.{AWS}")
        names.append(f"filler-{number}")
    endpoints = {
        ENDPOINT: {
            "host": f"ep-cool-sun-1.{EP_ZONE}",
            "read_only_host": f"ep-cool-sun-1-ro.{EP_ZONE}",
            "read_write_pooled_host": f"ep-cool-sun-1-pooler.{EP_ZONE}",
        },
        "projects/blue/branches/dev/endpoints/primary": {"host": f"ep-blue-fox-2.{EP_AZURE_ZONE}"},
    }
    for path, hosts in endpoints.items():
        local.add_endpoint(path, **hosts)
    local.add_endpoint(
        REPLICA, host=f"ep-warm-moon-3.{EP_ZONE}", endpoint_type="ENDPOINT_TYPE_READ_ONLY"
    )
    yield local
    for name in names:
        local.remove_instance(name)
    for path in (*endpoints, REPLICA):
        local.remove_endpoint(path)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (f"instance-on-aws-{UUID}.{AWS}", "on-aws"),
        (f"instance-on-staging-{UUID}.{STAGING}", "on-staging"),
        (f"instance-on-azure-{UUID}.{AZURE}", "on-azure"),
        (f"instance-on-gcp-{UUID}.{GCP}", "on-gcp"),
        (f"instance-ro-on-azure-{UUID}.{AZURE}", "on-azure"),
        (f"  HTTPS://Instance-ON-AWS-{UUID}.{AWS.upper()}.:5432/ ", "on-aws"),
        (f"postgresql://me:secret@instance-on-gcp-{UUID}.{GCP}:5432/db?sslmode=require", "on-gcp"),
        (f"instance-f119.{AWS}", "filler-119"),
        (f"ep-old-lake-77.{EP_ZONE}", "upgraded"),
        (f"ep-cool-sun-1.{EP_ZONE}", ENDPOINT),
        (f"ep-cool-sun-1-ro.{EP_ZONE}", ENDPOINT),
        (f"ep-cool-sun-1-pooler.{EP_ZONE}", ENDPOINT),
        (f"ep-blue-fox-2.{EP_AZURE_ZONE}", "projects/blue/branches/dev/endpoints/primary"),
        ("ep-cool-sun-1.databricks.com", ENDPOINT),
        (f"ep-warm-moon-3.{EP_ZONE}", ENDPOINT),
        ("any-name", "any-name"),
        (ENDPOINT, ENDPOINT),
        ("projects/shop/branches/main", "projects/shop/branches/main"),
    ],
)
def test_every_form_of_address(workspace_with_much: LocalLakebase, given: str, name: str) -> None:
    client = workspace_with_much.workspace_client()
    assert resolve_lakebase_instance_name(given, client) == name


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("on-azure", f"instance-on-azure-{UUID}.{AZURE}"),
        (f"instance-ro-on-azure-{UUID}.{AZURE}", f"instance-on-azure-{UUID}.{AZURE}"),
        (f"ep-cool-sun-1-pooler.{EP_ZONE}", f"ep-cool-sun-1.{EP_ZONE}"),
        (f"ep-cool-sun-1-ro.{EP_ZONE}", f"ep-cool-sun-1.{EP_ZONE}"),
        (f"ep-warm-moon-3.{EP_ZONE}", f"ep-cool-sun-1.{EP_ZONE}"),
        (REPLICA, f"ep-cool-sun-1.{EP_ZONE}"),
        ("projects/shop/branches/main", f"ep-cool-sun-1.{EP_ZONE}"),
    ],
)
def test_the_host_writes_and_is_not_pooled(
    workspace_with_much: LocalLakebase, given: str, host: str
) -> None:
    """Read-only and pooled forms lead to the read-write host: sessions write, with tokens."""
    workspace = Workspace(workspace_with_much.workspace_client(), call_timeout_seconds=10)
    assert resolve(Address.parse(given), workspace).host == host


def test_a_miss_says_what_was_looked_at(workspace_with_much: LocalLakebase) -> None:
    wrong = f"instance-on-azur-{UUID}.{AZURE}"
    with pytest.raises(TargetNotFound) as caught:
        resolve_lakebase_instance_name(wrong, workspace_with_much.workspace_client())
    message = str(caught.value)
    assert message.startswith(f"Unable to resolve hostname '{wrong}'")
    assert "looked at 127 instances and 4 endpoints" in message
    assert f"instance-on-azure-{UUID}.{AZURE}" in message, "the nearest is named"
    assert isinstance(caught.value, ValueError), "as the template raised it"


def test_an_unknown_instance_says_which_are_near(workspace_with_much: LocalLakebase) -> None:
    workspace = Workspace(workspace_with_much.workspace_client(), call_timeout_seconds=10)
    with pytest.raises(TargetNotFound, match=r"no Lakebase instance 'on-azzure'.*on-azure"):
        resolve(Address.parse("on-azzure"), workspace)


@pytest.mark.parametrize("path", ["/api/2.0/postgres/projects", "/api/2.0/database/instances"])
def test_what_may_not_be_listed_is_said(workspace_with_much: LocalLakebase, path: str) -> None:
    """One of the two products denied or absent does not hide the other."""
    with workspace_with_much.fault(path, status=403), pytest.raises(TargetNotFound) as caught:
        resolve_lakebase_instance_name(
            f"instance-zzz.{AWS}", workspace_with_much.workspace_client()
        )
    assert "Not looked at:" in str(caught.value)


def test_a_branch_without_a_writer(workspace_with_much: LocalLakebase) -> None:
    local = workspace_with_much
    path = "projects/reader/branches/main"
    local.add_endpoint(
        f"{path}/endpoints/ro", host=f"ep-r.{EP_ZONE}", endpoint_type="ENDPOINT_TYPE_READ_ONLY"
    )
    workspace = Workspace(local.workspace_client(), call_timeout_seconds=10)
    with pytest.raises(TargetNotFound, match="no read-write endpoint"):
        resolve(Address.parse(path), workspace)
    local.remove_endpoint(f"{path}/endpoints/ro")


def test_an_instance_that_is_off(workspace_with_much: LocalLakebase) -> None:
    workspace = Workspace(workspace_with_much.workspace_client(), call_timeout_seconds=10)
    with pytest.raises(LakebaseUnavailable) as caught:
        resolve(Address.parse("asleep"), workspace)
    assert "STOPPED" in str(caught.value)
    assert "databricks database get-database-instance asleep" in str(caught.value)


@pytest.mark.parametrize("name", ["a/../b?x", "../../etc", "a b", "a%2Fb", "projects/x", "a\nb"])
def test_no_name_leaves_its_url(local: LocalLakebase, name: str) -> None:
    """What is not a name is refused before any call is made."""
    before = len(local.requests)
    with pytest.raises(ConfigurationError, match="names no Lakebase"):
        Lakebase(name, workspace_client=local.workspace_client())
    calls = [call for call in local.requests[before:] if "well-known" not in call.path]
    assert calls == []


async def test_every_variable_leads_to_a_session(
    environ: dict[str, str], local: LocalLakebase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Name, host, path, branch pair, PGHOST: each alone is enough."""
    endpoint = "projects/local/branches/production/endpoints/primary"
    for number, variables in enumerate(
        [
            {"LAKEBASE_INSTANCE_NAME": "local"},
            {"LAKEBASE_INSTANCE_NAME": local.host},  # value_from: a database resource
            {"LAKEBASE_INSTANCE_NAME": endpoint},
            {"LAKEBASE_AUTOSCALING_ENDPOINT": endpoint},  # value_from: a postgres resource
            {
                "LAKEBASE_AUTOSCALING_PROJECT": "local",
                "LAKEBASE_AUTOSCALING_BRANCH": "production",
            },
            {"LAKEBASE_AUTOSCALING_BRANCH": "projects/local/branches/production"},
            {},  # PGHOST alone
        ]
    ):
        monkeypatch.delenv("LAKEBASE_INSTANCE_NAME", raising=False)
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            async with Lakebase() as lakebase:
                session = session_for(session_id="s", lakebase=lakebase)
                await session.add_items([{"role": "user", "content": "again"}])
                assert len(await session.get_items()) == number + 1, variables
                assert lakebase.database == environ["PGDATABASE"]


async def test_pgdatabase_of_another_server_does_not_count(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A laptop's own PGHOST and PGDATABASE say nothing about the Lakebase."""
    monkeypatch.setenv("PGHOST", "localhost.example.com")
    async with Lakebase() as lakebase:
        assert lakebase.database == "databricks_postgres"


async def test_which_variable_won_is_logged_once(
    environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lakebase_sessions")
    for number in range(3):
        await session_for(session_id=str(number)).get_items()
    lines = [line for line in caplog.messages if "from LAKEBASE_INSTANCE_NAME" in line]
    assert len(lines) == 1
    assert "ignored: PGHOST" in lines[0]


def test_no_configuration_at_all(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LAKEBASE_INSTANCE_NAME", "PGHOST"):
        monkeypatch.delenv(name)
    with pytest.raises(
        MissingConfiguration, match="LAKEBASE_INSTANCE_NAME environment variable is required"
    ) as caught:
        session_for("s")
    for other in ("LAKEBASE_AUTOSCALING_ENDPOINT", "LAKEBASE_AUTOSCALING_BRANCH", "PGHOST", ".env"):
        assert other in str(caught.value)


def test_the_default_lakebase_is_one(environ: dict[str, str]) -> None:
    assert default_lakebase() is default_lakebase()
