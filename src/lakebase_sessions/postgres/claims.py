"""Statements about who runs a turn of a conversation: claims, and the line of those who wait.

One row a conversation, so that of several who come at once its lock decides: `INSERT … ON CONFLICT
DO UPDATE` sees the row as it is once the lock is there, whatever the statement's snapshot shows.
Only the server's clock counts: `clock_timestamp()`, because a statement may have waited for a lock.
"""

from __future__ import annotations

from functools import cache
from typing import LiteralString

from lakebase_sessions.postgres import queries

_CLAIMED = """
WITH seen AS (
    SELECT changes FROM agent_claims WHERE session_id = %(session_id)s
), claimed AS (
    INSERT INTO agent_claims AS known (session_id, holder, since, expires_at)
    VALUES (
        %(session_id)s, %(holder)s, clock_timestamp(), clock_timestamp() + %(lease)s::interval
    )
    ON CONFLICT (session_id) DO UPDATE SET
        (holder, since, expires_at, waiting, seen_at, changes) = (
            SELECT
                CASE WHEN mine THEN EXCLUDED.holder ELSE known.holder END,
                CASE
                    WHEN mine AND known.holder IS DISTINCT FROM EXCLUDED.holder
                    THEN clock_timestamp() ELSE known.since
                END,
                CASE
                    WHEN mine
                    THEN clock_timestamp() + %(lease)s::interval ELSE known.expires_at
                END,
                CASE WHEN mine AND first = EXCLUDED.holder THEN tickets[2:] ELSE tickets END,
                CASE WHEN mine AND first = EXCLUDED.holder THEN times[2:] ELSE times END,
                known.changes + 1
            FROM (
                SELECT coalesce(array_agg(ticket ORDER BY place), '{}') AS tickets,
                    coalesce(array_agg(seen_at ORDER BY place), '{}') AS times,
                    (array_agg(ticket ORDER BY place))[1] AS first
                FROM (
                    SELECT ticket, place, CASE
                        WHEN ticket = EXCLUDED.holder THEN clock_timestamp() ELSE seen_at
                    END AS seen_at
                    FROM unnest(known.waiting, known.seen_at)
                        WITH ORDINALITY AS line (ticket, seen_at, place)
                    WHERE ticket = EXCLUDED.holder
                        OR line.seen_at > clock_timestamp() - %(lost)s::interval
                    UNION ALL
                    SELECT EXCLUDED.holder, NULL, clock_timestamp()
                    WHERE %(waits)s::boolean
                        AND EXCLUDED.holder <> ALL (known.waiting)
                        AND known.holder IS DISTINCT FROM EXCLUDED.holder
                ) AS line
            ) AS line,
            LATERAL (
                SELECT known.holder IS NOT DISTINCT FROM EXCLUDED.holder OR (
                    (known.holder IS NULL OR known.expires_at < clock_timestamp())
                    AND coalesce(first, EXCLUDED.holder) = EXCLUDED.holder
                ) AS mine
            ) AS verdict
        )
    RETURNING holder, since, waiting, changes
), swept AS (
    DELETE FROM agent_claims WHERE session_id = ANY (ARRAY(
        SELECT session_id FROM agent_claims
        WHERE expires_at < now() - interval '1 hour' AND session_id <> %(session_id)s
        LIMIT 10
        FOR UPDATE SKIP LOCKED
    ))
), told AS (
    SELECT CASE
        WHEN holder IS DISTINCT FROM %(holder)s THEN concat(
            array_position(waiting, %(holder)s), '/',
            CASE WHEN holder IS NOT NULL THEN extract(epoch FROM since) END
        )
        WHEN changes <> coalesce((SELECT changes FROM seen), 0) + 1 THEN 'again'
    END AS told
    FROM claimed
)"""
"""Whoever waits and has not asked for a while has lost its place. What dead workers left is removed
by others, of whom none waits for another."""

_BEGIN_IF_CLAIMED = """
SELECT item.*, told.told FROM told LEFT JOIN LATERAL (SELECT * FROM ("""
_END_IF_CLAIMED = """) AS item WHERE told.told IS NULL OFFSET 0) AS item ON true
"""
"""OFFSET 0 keeps the condition where it is, so that nothing is read for one who is refused."""


@cache
def claiming(read: LiteralString) -> LiteralString:
    """A statement that claims the conversation and has what `read` reads, of `queries` or `edits`.

    Behind its columns is NULL, if the conversation is claimed by now. Else there is one row that
    ends in the place in line and since when somebody else runs, or in READ_AGAIN. Repeating it
    changes nothing.
    """
    return _CLAIMED + _BEGIN_IF_CLAIMED + read + _END_IF_CLAIMED


NOTHING = "SELECT"
"""A `read` of nobody who has to see what is there."""

READ_AGAIN = "again"
"""The claim is there, but somebody has changed its row since the statement took its snapshot, which
may lack what they stored. Only a whole turn between the snapshot and the claim goes unnoticed here;
storing notices."""

RENEW_CLAIM = """
UPDATE agent_claims SET expires_at = clock_timestamp() + %(lease)s::interval
WHERE session_id = %(session_id)s AND holder = %(holder)s
RETURNING true
"""
"""No row: somebody else has it."""

_GIVEN_UP = """given_up AS (
    DELETE FROM agent_claims
    WHERE session_id = %(session_id)s AND holder = %(holder)s AND waiting = '{}'
    RETURNING session_id
), passed_on AS (
    UPDATE agent_claims SET
        holder = nullif(holder, %(holder)s),
        expires_at = CASE holder WHEN %(holder)s THEN clock_timestamp() ELSE expires_at END,
        (waiting, seen_at) = (
            SELECT coalesce(array_agg(ticket ORDER BY place), '{}'),
                coalesce(array_agg(line.seen_at ORDER BY place), '{}')
            FROM unnest(waiting, agent_claims.seen_at)
                WITH ORDINALITY AS line (ticket, seen_at, place)
            WHERE ticket <> %(holder)s
        ),
        changes = changes + 1
    WHERE session_id = %(session_id)s
        AND (holder = %(holder)s OR %(holder)s = ANY (waiting))
        AND NOT EXISTS (SELECT FROM given_up)
)"""
"""By the claim's holder, or by one who waits. Somebody may get in line between the snapshot and
the lock: then the row is not deleted, and the update, which looks at neither, passes it on."""

GIVE_UP_CLAIM = "\nWITH " + _GIVEN_UP + "\nSELECT\n"


@cache
def giving_up(write: LiteralString) -> LiteralString:
    """A statement of `queries` that gives up the claim too, whatever its outcome is."""
    head = write.removesuffix(queries.OUTCOME)
    return head + ", " + _GIVEN_UP + queries.OUTCOME


CLEAR_CLAIMED_SESSION = """
WITH claim AS (DELETE FROM agent_claims WHERE session_id = %(session_id)s), messages AS (
    DELETE FROM agent_messages WHERE session_id = %(session_id)s
)
DELETE FROM agent_sessions WHERE session_id = %(session_id)s
"""
