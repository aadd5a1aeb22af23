"""Statements on single items: a page of a conversation, one, and what is added with its ids."""

from __future__ import annotations

from lakebase_sessions.postgres.going_back import BEGUN, SEEN
from lakebase_sessions.postgres.queries import ADDED, OUTCOME

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

_REMOVED = f"""
WITH {SEEN}gone AS (
    SELECT id, created_at FROM agent_messages
    WHERE session_id = %(session_id)s AND id = %(item)s::bigint
), session AS (
    UPDATE agent_sessions
    SET updated_at = GREATEST(LOCALTIMESTAMP, agent_sessions.updated_at + interval '1 us')
    FROM gone
    WHERE session_id = %(session_id)s AND updated_at = (SELECT updated_at FROM seen)
    RETURNING session_id
), removed AS (
    DELETE FROM agent_messages USING session WHERE id = %(item)s::bigint
)"""

_RENUMBERED = f""", heir AS (
    SELECT next.id
    FROM (
        SELECT item.id FROM agent_messages AS item, gone
        WHERE item.session_id = %(session_id)s
            AND (item.created_at, item.id) > (gone.created_at, gone.id)
        ORDER BY item.created_at, item.id
        LIMIT 1
    ) AS next
    WHERE EXISTS (
        SELECT FROM agent_turns
        WHERE session_id = %(session_id)s AND branch_id IS NULL
            AND first_item = %(item)s::bigint AND next.id BETWEEN first_item AND last_item
    ) AND NOT EXISTS (
        SELECT FROM agent_turns
        WHERE session_id = %(session_id)s AND branch_id IS NULL AND first_item = next.id
    )
), item AS (
    SELECT 0::bigint AS holder, created_at, message_data,
        CASE WHEN id = (SELECT id FROM heir) THEN %(item)s::bigint ELSE id END AS id
    FROM agent_messages
    WHERE session_id = %(session_id)s AND id <> %(item)s::bigint
){BEGUN}, turn AS (
    SELECT id, row_number() OVER (ORDER BY created_at, id) AS number FROM begun WHERE begins
), renumbered AS (
    UPDATE agent_turns AS record SET
        number = turn.number,
        first_item = CASE
            WHEN first_item = %(item)s::bigint THEN (SELECT heir.id FROM heir) ELSE first_item
        END
    FROM session, turn
    WHERE record.session_id = session.session_id AND branch_id IS NULL
        AND first_item = turn.id
        AND (first_item = %(item)s::bigint OR record.number <> turn.number)
), emptied AS (
    UPDATE agent_turns SET number = NULL, first_item = NULL, last_item = NULL FROM session
    WHERE agent_turns.session_id = session.session_id AND branch_id IS NULL
        AND first_item = %(item)s::bigint
        AND NOT EXISTS (SELECT FROM heir)
), uncertain AS (
    UPDATE agent_turns SET number = NULL FROM session
    WHERE agent_turns.session_id = session.session_id AND branch_id IS NOT NULL
        AND NOT EXISTS (
            SELECT FROM agent_turns AS around
            WHERE around.session_id = %(session_id)s AND around.branch_id IS NULL
                AND %(item)s::bigint BETWEEN around.first_item AND around.last_item
                AND (around.first_item <> %(item)s::bigint OR EXISTS (SELECT FROM heir))
        )
)"""
"""The record of a turn that has lost its first item begins with its next one, here called by the
id of the one that is gone: so the turns are counted as they will be. One that has lost its last is
that of a run which stored nothing. Where there may be fewer turns now, those of branches do not
know theirs any more."""

_DONE = """
SELECT EXISTS (SELECT FROM gone), EXISTS (SELECT FROM session)
"""

REMOVE = _REMOVED + _DONE
"""One row: whether the item is there, and whether it was removed; it was not if somebody else wrote
meanwhile. `updated_at` moves, so that a turn which has read the item is in conflict."""

REMOVE_RECORDED = _REMOVED + _RENUMBERED + _DONE

THERE = """
SELECT FROM agent_sessions WHERE session_id = %(session_id)s
"""

ADD = f"""
WITH session AS (
    UPDATE agent_sessions SET updated_at =
        GREATEST(LOCALTIMESTAMP, updated_at) + (%(count)s::integer + 99) / 100 * interval '1 us'
    WHERE session_id = %(session_id)s
    RETURNING session_id, updated_at
){ADDED}
SELECT id FROM added ORDER BY id
"""
"""No row if there is no such conversation."""

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

_ITS = "(SELECT session_id FROM found)"

FIND_RESPONSE = f"""
WITH found AS MATERIALIZED (
    SELECT turn.session_id, turn.first_item
    FROM agent_turns AS turn JOIN agent_sessions AS session USING (session_id)
    WHERE turn.response_id = %(response_id)s AND turn.branch_id IS NULL
        AND starts_with(turn.session_id, %(prefix)s)
        AND EXISTS (
            SELECT FROM agent_messages AS item
            WHERE item.session_id = turn.session_id AND item.id = turn.first_item
        )
    ORDER BY session.created_at
    LIMIT 1
), item AS (
    SELECT 0::bigint AS holder, id, created_at, message_data FROM agent_messages
    WHERE session_id = {_ITS}
){BEGUN.replace("%(session_id)s", _ITS)}, turn AS (
    SELECT id, row_number() OVER (ORDER BY created_at, id) AS number FROM begun WHERE begins
)
SELECT found.session_id, turn.number FROM found JOIN turn ON turn.id = found.first_item
"""
"""A fork has the turns of what it was forked from: the original is older. The turn is counted, as
by who goes back to it: a record's number is what it was when the turn was stored."""
