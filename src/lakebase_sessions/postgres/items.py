"""Statements on single items: a page of a conversation, one, and what is added with its ids."""

from __future__ import annotations

from lakebase_sessions.postgres.queries import ADDED, TOUCHED

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

ADD = TOUCHED + ADDED + """
SELECT id FROM added ORDER BY id
"""
