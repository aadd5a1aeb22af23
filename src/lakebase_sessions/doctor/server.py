"""The server's version, clock, distance and room, and what its conversations look like."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lakebase_sessions.doctor.step import Step, failed, ok, warning

if TYPE_CHECKING:
    from lakebase_sessions.access.objects import Object
    from lakebase_sessions.postgres.connection import Connection

OLDEST_VERSION = 140000
"""`string_to_table` came with PostgreSQL 14."""
SKEW_SECONDS = 30.0
"""From here on logins by OAuth may be refused, and times in logs mislead."""
FAR_MILLISECONDS = 20.0
"""A round trip within a region takes 1 to 5."""
ROUND_TRIPS = {"atomic": 2, "plain": 3}
"""What a turn of the Agents SDK takes, without tools."""
SAMPLES = 5

_ROOM = """
SELECT current_setting('max_connections')::int
        - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true)::int, 0),
    (SELECT sum(numbackends) FROM pg_stat_database)::int - 1,
    (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user),
    (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database())
"""

_LATEST = """
SELECT (
    SELECT count(*) FROM (
        SELECT FROM {messages} m
        WHERE m.session_id = s.session_id AND message_data LIKE '%%"role": "user"%%' LIMIT 2
    ) AS said
) FROM (SELECT session_id FROM {sessions} ORDER BY updated_at DESC LIMIT 20) AS s
"""
FEW = 5
"""So many conversations say nothing yet about clients."""


async def version(connection: Connection) -> Step:
    """Whether its SQL is new enough."""
    number = connection.info.server_version
    seen = f"PostgreSQL {connection.info.parameter_status('server_version')}"
    if number < OLDEST_VERSION:
        return failed(
            "server version", f"{seen}; 14 is the oldest that is supported", "SELECT version();"
        )
    return ok("server version", seen)


async def clock(connection: Connection) -> Step:
    """How far this machine's clock is from the server's."""
    before = time.time()
    cursor = await connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
    row = await cursor.fetchone()
    there = float(row[0]) if row else before
    skew = (before + time.time()) / 2 - there
    if abs(skew) > SKEW_SECONDS:
        way = "ahead of" if skew > 0 else "behind"
        return warning(
            "clock",
            f"this machine's is {abs(skew):.0f} s {way} the server's. Sessions do not mind; "
            "logins by OAuth may",
            "timedatectl status",
        )
    return ok("clock", f"within {abs(skew):.1f} s of the server's")


async def round_trip(connection: Connection) -> Step:
    """How far it is, and what that makes of a turn."""
    samples = []
    for _ in range(SAMPLES):
        began = time.perf_counter()
        await connection.execute("SELECT 1")
        samples.append((time.perf_counter() - began) * 1000)
    milliseconds = statistics.median(samples)
    turns = ", ".join(
        f"{milliseconds * count:.1f} ms {kind}" for kind, count in ROUND_TRIPS.items()
    )
    seen = f"{milliseconds:.1f} ms; a turn costs {turns}"
    if milliseconds > FAR_MILLISECONDS:
        return warning(
            "round trip", f"{seen}. Is this process in the Lakebase's region?", "SELECT 1;"
        )
    return ok("round trip", seen)


async def room(connection: Connection, *, pool: int, workers: int) -> Step:
    """Whether all the connections that may be opened find room."""
    cursor = await connection.execute(_ROOM)
    row = await cursor.fetchone()
    limit, used, of_role, of_database = row or (0, 0, None, None)
    least = min(each for each in (limit, of_role, of_database) if each is not None)
    wanted = pool * workers
    room_for = max((least - used) // workers, 1)
    seen = f"up to {wanted} ({pool} a worker, {workers}) of {least}, of which {used} are in use"
    if wanted > least - used:
        return warning(
            "connections",
            f"{seen}: under load some are refused. Lower pool_size and max_overflow, use fewer "
            "workers, or raise the capacity",
            f"lakebase-sessions doctor --workers {workers} --pool-size {room_for}",
        )
    return ok("connections", seen)


async def conversations(connection: Connection, objects: Sequence[Object]) -> Step:
    """Whether anybody comes back to a conversation."""
    names = {each.bare_name: each.name for each in objects if each.kind == "TABLE"}
    statement = _LATEST.format(messages=names["agent_messages"], sessions=names["agent_sessions"])
    cursor = await connection.execute(statement.encode(), {})
    turns = [row[0] for row in await cursor.fetchall()]
    if len(turns) >= FEW and max(turns) <= 1:
        return warning(
            "conversations",
            f"none of the latest {len(turns)} has a second message of its user: the agent cannot "
            "remember, because requests come with another session id each, or with none",
            'curl ... -d \'{"custom_inputs": {"session_id": "<id of the first answer>"}, ...}\'',
        )
    again = sum(count > 1 for count in turns)
    return ok("conversations", f"{again} of the latest {len(turns)} have more than one turn")
