"""Statements of turns that wait for an approval, each one round trip; as in `queries`."""

from __future__ import annotations

CLAIM = """
WITH locked AS (
    SELECT session_id FROM agent_sessions WHERE session_id = %(session_id)s FOR UPDATE
), claimed AS (
    UPDATE agent_turns SET status = 'in_progress' FROM locked
    WHERE agent_turns.session_id = %(session_id)s
        AND branch_id IS NULL
        AND state IS NOT NULL
        AND status = 'waiting'
        AND last_item = (
            SELECT id FROM agent_messages
            WHERE session_id = %(session_id)s
            ORDER BY created_at DESC, id DESC
            LIMIT 1
        )
        AND string_to_array(%(answered)s, ',') <@ ARRAY (
            SELECT approval ->> 'id'
            FROM json_array_elements(
                CASE WHEN state IS JSON OBJECT THEN state::json -> 'approvals' END
            ) AS approval
        )
    RETURNING response_id, number, last_item, state, usage, model
), moved AS (
    UPDATE agent_sessions SET updated_at =
        GREATEST(LOCALTIMESTAMP, agent_sessions.updated_at) + interval '1 us'
    FROM claimed
    WHERE agent_sessions.session_id = %(session_id)s
    RETURNING updated_at
)
SELECT claimed.response_id, claimed.number, claimed.last_item, claimed.state,
    moved.updated_at::text, claimed.usage, claimed.model
FROM claimed, moved
"""
"""One row if this conversation ends in a turn that waits for all of these answers; none otherwise,
and none to who comes second. The state stays in the row until the turn is stored, but a turn in
progress is not handed out.

The session's row is locked first, as by every write. It is moved only by who got the turn: a run
that has read the conversation meanwhile must not store behind a tool that was approved, and who
comes second must not be in the way of the first."""

RELEASE = """
UPDATE agent_turns SET status = 'waiting'
WHERE session_id = %(session_id)s
    AND response_id = %(response_id)s
    AND status = 'in_progress'
    AND state IS NOT NULL
"""
"""As if it had not been claimed."""
