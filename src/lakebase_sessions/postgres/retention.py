"""The statements that delete conversations which have not been used for long."""

from __future__ import annotations

from functools import cache
from typing import LiteralString

from lakebase_sessions.postgres.listing import USERS

_OLD = """
    FROM agent_sessions AS session
    WHERE session.updated_at < %(until)s::timestamptz AT TIME ZONE current_setting('TimeZone')
    {unused} {users}
"""

_UNUSED = """
    AND NOT EXISTS (
        SELECT FROM agent_turns AS turn
        WHERE turn.session_id = session.session_id
            AND turn.created_at >= %(until)s::timestamptz AT TIME ZONE current_setting('TimeZone')
    )
    AND NOT EXISTS (
        SELECT FROM agent_claims AS claim
        WHERE claim.session_id = session.session_id
            AND claim.holder IS NOT NULL
            AND claim.expires_at > clock_timestamp()
    )
"""
"""A turn that has stored nothing but its record, and one that has claimed the conversation."""

_COUNT = """
SELECT count(*), coalesce(sum(held.items), 0)
FROM (SELECT session.session_id {old}) AS old
CROSS JOIN LATERAL (
    SELECT count(*) AS items FROM agent_messages AS message
    WHERE message.session_id = old.session_id AND %(items)s::boolean
) AS held
"""

_PRUNE = """
WITH old AS MATERIALIZED (
    SELECT session.session_id, session.updated_at {old}
        AND session.updated_at >= %(since)s::timestamp
    ORDER BY session.updated_at
    LIMIT %(batch)s::bigint
    FOR UPDATE SKIP LOCKED
), items AS (
    DELETE FROM agent_messages WHERE session_id = ANY (ARRAY(SELECT session_id FROM old))
    RETURNING id
), gone AS (
    DELETE FROM agent_sessions WHERE session_id = ANY (ARRAY(SELECT session_id FROM old))
    RETURNING session_id
) {claims}
SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM items), max(updated_at)::text FROM old
"""
"""Locked first: who writes has the lock and is passed by, and whoever has written since the
statement began is looked at again and is not old any more. Each begins where the last one ended, or
it would walk past all that was deleted before."""

_CLAIMS = """, claims AS (
    DELETE FROM agent_claims WHERE session_id = ANY (ARRAY(SELECT session_id FROM old))
)"""


@cache
def count(*, own: bool, user: bool) -> LiteralString:
    """How many conversations there are to prune, and, if `items`, how many items they have."""
    return _COUNT.format(old=_old(own=own, user=user))


@cache
def prune(*, own: bool, user: bool) -> LiteralString:
    """Prune at most `batch` conversations, from `since` on."""
    return _PRUNE.format(old=_old(own=own, user=user), claims=_CLAIMS if own else "")


def _old(*, own: bool, user: bool) -> str:
    return _OLD.format(unused=_UNUSED if own else "", users=USERS if user else "")
