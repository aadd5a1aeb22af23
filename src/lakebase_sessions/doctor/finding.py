"""From the environment to a token: the steps that the workspace answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lakebase_sessions.doctor.step import Step, failed, ok, warning
from lakebase_sessions.errors import check_running
from lakebase_sessions.workspace.target import Address, Target

if TYPE_CHECKING:
    from lakebase_sessions.workspace.api import Token, Workspace
    from lakebase_sessions.workspace.settings import Settings

SHORT_LIFE_SECONDS = 300.0
"""The platform's shortest; what lives shorter is renewed all the time."""

NEXT = {
    "environment": "export LAKEBASE_INSTANCE_NAME=<name>  # `lakebase-sessions doctor --help` "
    "names the other ways",
    "workspace login": "databricks auth describe",
    "identity": "databricks current-user me",
    "target": "databricks database list-database-instances; databricks postgres list-projects",
}
"""What to run where a step fails."""


def environment(settings: Settings) -> Step:
    """Which variable has won."""
    source = "--lakebase" if settings.source == "argument" else settings.source
    seen = f"{source} names '{Address.parse(settings.target).value}'"
    if settings.ignored:
        seen += f"; ignored: {', '.join(settings.ignored)}"
    if settings.schema:
        seen += f"; schema '{settings.schema}'"
    return ok("environment", seen)


def compute(target: Target, workspace: Workspace) -> Step:
    """Whether it runs, sleeps, or was put out of use."""
    name, check = target.name, check_running(target.name)
    if not target.is_endpoint:
        instance = workspace.instance(name)
        state = instance.state.value if instance.state else "unknown"
        if state == "STOPPED":
            start = (
                f"databricks database update-database-instance {name} stopped "
                """--json '{"stopped": false}'"""
            )
            return failed("compute", f"instance '{name}' is STOPPED", start)
        if state == "DELETING":
            return failed("compute", f"instance '{name}' is being deleted", NEXT["target"])
        seen = f"instance '{name}' is {state}"
        return ok("compute", seen) if state == "AVAILABLE" else warning("compute", seen, check)
    status = workspace.endpoint(name).status
    state = status.current_state.value if status and status.current_state else "unknown"
    if status and status.disabled:
        return failed(
            "compute",
            f"'{name}' is disabled, and no connection can wake it",
            f"databricks postgres update-endpoint {name} spec.disabled "
            """--json '{"spec": {"disabled": false}}'""",
        )
    if state in ("IDLE", "INIT"):
        return warning(
            "compute",
            f"'{name}' is {state}: it is scaled to zero, and the first connection wakes it and "
            "waits for that",
        )
    seen = f"'{name}' is {state}"
    return ok("compute", seen) if state == "ACTIVE" else warning("compute", seen, check)


def token(held: Token) -> Step:
    """A database token, of which nothing but its life is shown."""
    seen = f"one that lives {held.lifetime_seconds / 60:.0f} min"
    if held.lifetime_seconds < SHORT_LIFE_SECONDS - 1:
        return warning("token", f"{seen}, less than the platform's shortest", "date -u")
    return ok("token", seen)
