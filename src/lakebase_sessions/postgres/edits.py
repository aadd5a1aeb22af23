"""The statement that reads a conversation of which turns may be replaced; as in `queries`."""

from __future__ import annotations

from lakebase_sessions.postgres.going_back import BEGUN
from lakebase_sessions.postgres.queries import VERSION

READ_RESENT_TURN = f"""
WITH asked AS MATERIALIZED (
    SELECT %(limit)s::bigint IS NULL OR EXISTS (
        SELECT FROM (
            SELECT message_data FROM agent_messages
            WHERE session_id = %(session_id)s
            ORDER BY created_at, id
            LIMIT 10
        ) AS first
        WHERE position(%(opening)s IN message_data) > 0
    ) AS whole
), item AS (
    SELECT 0::bigint AS holder, id, created_at, message_data FROM agent_messages
    WHERE session_id = %(session_id)s AND %(turn)s::numeric IS NOT NULL
){BEGUN}, turn AS MATERIALIZED (
    SELECT id, created_at, row_number() OVER (ORDER BY created_at, id) AS number
    FROM begun
    WHERE begins
), cut AS (
    SELECT id, created_at FROM turn WHERE number = %(turn)s::numeric
), reach AS MATERIALIZED (
    SELECT CASE WHEN NOT whole THEN %(limit)s::bigint + (
        SELECT count(*) FROM agent_messages AS item, cut
        WHERE item.session_id = %(session_id)s
            AND (item.created_at, item.id) >= (cut.created_at, cut.id)
    ) END AS items
    FROM asked
)
SELECT NULL::bigint AS id, {VERSION} AS message_data, NULL::bigint AS last_item,
    (SELECT items FROM reach) AS items,
    (SELECT id FROM cut) AS cut,
    (SELECT count(*) FROM turn) AS turns
UNION ALL (
    SELECT id, message_data, (
        SELECT last_item FROM agent_turns
        WHERE session_id = %(session_id)s AND first_item = item.id AND branch_id IS NULL
        LIMIT 1
    ), NULL, NULL, NULL
    FROM agent_messages AS item
    WHERE session_id = %(session_id)s
    ORDER BY created_at DESC, id DESC
    LIMIT (SELECT items FROM reach)
)
"""
"""As READ_RECORDED_TURN. With the version: how many items were to be read (NULL is all), the first
item of turn number `turn`, and how many turns there are; the latter two only with a `turn`. With
each item: the last item of the turn whose record begins with it. All are read where one of the
first rows has the words `opening`: a client may have resent them all. Else what turn number `turn`
leaves, and `limit` items before that.

The record of each item is looked up in the index, as in `going_back`: joined, where the tables had
not been analyzed yet, 10,000 items took 7.8 s instead of 0.04."""
