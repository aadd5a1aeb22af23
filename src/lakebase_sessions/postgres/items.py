"""Statements on single items: a page of a conversation, one, and what is added with its ids."""

from __future__ import annotations

from lakebase_sessions.postgres.queries import ADDED, OUTCOME, TOUCHED

PAGE = """
SELECT known.there, item.id, item.message_data
FROM (
    SELECT EXISTS (
        SELECT FROM agent_messages
        WHERE session_id = %(session_id)s AND id = %(after)s::bigint
    ) OR %(after)s::bigint IS NULL AS there
    FROM agent_sessions WHERE session_id = %(session_id)s
) AS known
LEFT JOIN LATERAL (
    SELECT id, message_data, created_at FROM agent_messages
    WHERE session_id = %(session_id)s AND known.there
        AND (created_at, id) > (
            coalesce(
                (SELECT created_at FROM agent_messages WHERE id = %(after)s::bigint), '-infinity'
            ),
            coalesce(%(after)s::bigint, 0)
        )
    ORDER BY created_at, id
    LIMIT %(limit)s::bigint
) AS item ON true
ORDER BY item.created_at, item.id
"""
"""Oldest first. No row if there is no such conversation; else each row says whether the item
`after` is one of its, and one of NULLs if there are no more."""

PAGE_BACKWARDS = """
SELECT known.there, item.id, item.message_data
FROM (
    SELECT EXISTS (
        SELECT FROM agent_messages
        WHERE session_id = %(session_id)s AND id = %(after)s::bigint
    ) OR %(after)s::bigint IS NULL AS there
    FROM agent_sessions WHERE session_id = %(session_id)s
) AS known
LEFT JOIN LATERAL (
    SELECT id, message_data, created_at FROM agent_messages
    WHERE session_id = %(session_id)s AND known.there
        AND (created_at, id) < (
            coalesce(
                (SELECT created_at FROM agent_messages WHERE id = %(after)s::bigint), 'infinity'
            ),
            coalesce(%(after)s::bigint, 9223372036854775807)
        )
    ORDER BY created_at DESC, id DESC
    LIMIT %(limit)s::bigint
) AS item ON true
ORDER BY item.created_at DESC, item.id DESC
"""
"""Newest first."""

ONE = """
SELECT id, message_data FROM agent_messages
WHERE session_id = %(session_id)s AND id = %(item)s::bigint
"""

REMOVE = """
WITH moved AS (
    UPDATE agent_sessions SET updated_at = GREATEST(LOCALTIMESTAMP, updated_at + interval '1 us')
    WHERE session_id = %(session_id)s
        AND EXISTS (
            SELECT FROM agent_messages
            WHERE session_id = %(session_id)s AND id = %(item)s::bigint
        )
    RETURNING session_id
)
DELETE FROM agent_messages USING moved
WHERE agent_messages.session_id = moved.session_id AND id = %(item)s::bigint
RETURNING id
"""
"""`updated_at` moves, so that a turn which has read the item is in conflict."""

ADD = (
    TOUCHED
    + ADDED
    + """
SELECT id FROM added ORDER BY id
"""
)

_CREATED = """
WITH session AS (
    INSERT INTO agent_sessions (session_id, updated_at)
    VALUES (%(session_id)s, LOCALTIMESTAMP + (%(count)s::integer + 99) / 100 * interval '1 us')
    ON CONFLICT (session_id) DO NOTHING
    RETURNING session_id, updated_at
)"""

_DESCRIBED = """, described AS (
    INSERT INTO agent_conversations (session_id, title, metadata)
    SELECT session_id, %(title)s, %(metadata)s::jsonb FROM session
)"""

CREATE = _CREATED + ADDED + OUTCOME
"""No row if there is one already."""

CREATE_DESCRIBED = _CREATED + _DESCRIBED + ADDED + OUTCOME

FIND_RESPONSE = """
SELECT turn.session_id, turn.number
FROM agent_turns AS turn JOIN agent_sessions AS session USING (session_id)
WHERE turn.response_id = %(response_id)s AND turn.branch_id IS NULL AND turn.number IS NOT NULL
    AND starts_with(turn.session_id, %(prefix)s)
ORDER BY session.created_at
LIMIT 1
"""
"""A fork has the turns of what it was forked from: the original is older."""
