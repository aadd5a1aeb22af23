"""SQL statements of sessions, each one round trip.

Tables and columns are those of `SQLAlchemySession`; names are unqualified, the connection's
`search_path` says which schema. Statements run in autocommit: each is its own transaction.

Parameters are text, or NULL: types that changed with the value (psycopg sends 50 as a smallint)
would have the statement prepared anew for each of them.
"""

from __future__ import annotations

ALL_ITEMS = """
SELECT message_data FROM agent_messages
WHERE session_id = %(session_id)s
ORDER BY created_at, id
LIMIT (SELECT NULL::bigint)
"""
"""A limit that the planner does not know has it read along the index, which has the order. Without
one it sorts them all: 10,000 items, 4 MB, took 28 ms instead of 11."""

LATEST_ITEMS = """
SELECT message_data FROM agent_messages
WHERE session_id = %(session_id)s
ORDER BY created_at DESC, id DESC
LIMIT %(limit)s::bigint
"""
"""Newest first."""

_THEN_ITEMS = """
UNION ALL (
    SELECT id, message_data FROM agent_messages
    WHERE session_id = %(session_id)s
    ORDER BY created_at DESC, id DESC
    LIMIT (SELECT %(limit)s::bigint)
)
"""
"""Neither an Append nor a Gather above it lets rows of one part overtake each other."""

READ_TURN = f"""
SELECT NULL::bigint AS id, (
    SELECT updated_at::text FROM agent_sessions WHERE session_id = %(session_id)s
) AS message_data
{_THEN_ITEMS}"""
"""One row with the session's version, which has no id, and the items, newest first. A limit of NULL
is all."""

_UNMOVED = """
WITH created AS (
    INSERT INTO agent_sessions (session_id, updated_at)
    SELECT %(session_id)s, LOCALTIMESTAMP + (%(count)s::integer + 99) / 100 * interval '1 us'
    WHERE %(updated_at)s::timestamp IS NULL
    ON CONFLICT (session_id) DO NOTHING
    RETURNING session_id, updated_at
), moved AS (
    UPDATE agent_sessions SET updated_at =
        GREATEST(LOCALTIMESTAMP, updated_at)
        + (1 + (%(count)s::integer + 99) / 100) * interval '1 us'
    WHERE session_id = %(session_id)s
        AND updated_at = %(updated_at)s::timestamp
        AND %(newest)s::bigint IS NOT DISTINCT FROM (
            SELECT id FROM agent_messages
            WHERE session_id = %(session_id)s
            ORDER BY created_at DESC, id DESC
            LIMIT 1
        )
    RETURNING session_id, updated_at
), session AS (
    SELECT * FROM created UNION ALL SELECT * FROM moved
), popped AS (
    DELETE FROM agent_messages USING session
    WHERE id = ANY (string_to_array(%(popped)s, ',')::bigint[])
)"""

TOUCHED = """
WITH session AS (
    INSERT INTO agent_sessions AS known (session_id, updated_at)
    VALUES (%(session_id)s, LOCALTIMESTAMP + (%(count)s::integer + 99) / 100 * interval '1 us')
    ON CONFLICT (session_id) DO UPDATE SET updated_at =
        GREATEST(LOCALTIMESTAMP, known.updated_at)
        + (%(count)s::integer + 99) / 100 * interval '1 us'
    RETURNING session_id, updated_at
)"""
"""The session's row comes first and stays locked to the end, so writers of one session queue.
`updated_at` changes with every write. A write is never dated before what it follows, also when
the server's clock is set back or another server takes over: reads go by date. And 100 items share
a date: few enough that the index on it leads to the latest ones of any conversation, and so many
that a turn has one date, which no other writer's can come between."""

ADDED = """, added AS (
    INSERT INTO agent_messages (session_id, message_data, created_at)
    SELECT session.session_id, added.message_data,
        session.updated_at - (%(count)s::integer - added.position) / 100 * interval '1 us'
    FROM session,
        string_to_table(%(items)s, E'\\n') WITH ORDINALITY AS added (message_data, position)
    ORDER BY added.position
    RETURNING id
)"""

_RECORDED = """, recorded AS (
    INSERT INTO agent_turns AS known (
        session_id, response_id, number, first_item, last_item,
        status, model, trace_id, usage, state
    )
    SELECT session.session_id, %(response_id)s, %(number)s::integer, min(added.id), max(added.id),
        %(status)s, %(model)s, %(trace_id)s, %(usage)s::jsonb, %(state)s
    FROM session LEFT JOIN added ON true
    GROUP BY session.session_id
    ON CONFLICT (response_id, session_id) DO UPDATE SET
        number = coalesce(EXCLUDED.number, known.number),
        first_item = coalesce(known.first_item, EXCLUDED.first_item),
        last_item = coalesce(EXCLUDED.last_item, known.last_item),
        status = EXCLUDED.status,
        model = EXCLUDED.model,
        trace_id = coalesce(EXCLUDED.trace_id, known.trace_id),
        usage = EXCLUDED.usage,
        state = EXCLUDED.state
)"""

_DECLINED = """, declined AS (
    UPDATE agent_turns SET status = 'cancelled', state = NULL FROM session
    WHERE agent_turns.session_id = %(session_id)s
        AND state IS NOT NULL
        AND response_id <> %(response_id)s
)"""
"""Who says something else does not wait for an approval any more."""

TAKEN_OUT = """, branch AS (
    INSERT INTO agent_branches (session_id, after_item)
    SELECT session.session_id, (
        SELECT item.id FROM agent_messages AS item, cut
        WHERE item.session_id = %(session_id)s
            AND (item.created_at, item.id) < (cut.created_at, cut.id)
        ORDER BY item.created_at DESC, item.id DESC
        LIMIT 1
    )
    FROM session, cut
    RETURNING id, after_item
), removed AS (
    DELETE FROM agent_messages AS item USING session, cut
    WHERE item.session_id = %(session_id)s
        AND (item.created_at, item.id) >= (cut.created_at, cut.id)
    RETURNING item.id, item.message_data, item.created_at
), kept AS (
    INSERT INTO agent_branch_items (branch_id, id, message_data, created_at)
    SELECT branch.id, removed.id, removed.message_data, removed.created_at FROM branch, removed
), kept_turns AS (
    UPDATE agent_turns SET branch_id = branch.id, state = NULL,
        status = CASE WHEN state IS NULL THEN status ELSE 'cancelled' END
    FROM branch, cut
    WHERE session_id = %(session_id)s AND branch_id IS NULL AND first_item >= cut.id
)"""
"""Of `session` what stands from `cut` (one row: id, created_at) becomes a branch."""

BRANCHES_KEPT = 50
"""Of one conversation, the latest so many; else somebody who edits a lot fills the database."""
BRANCH_DAYS = 30
"""What nobody has restored for so long is deleted when the next branch is made."""

BOUNDED = f""", outdated AS (
    DELETE FROM agent_branches USING session
    WHERE agent_branches.session_id = %(session_id)s AND (
        agent_branches.created_at < LOCALTIMESTAMP - interval '{BRANCH_DAYS} days'
        OR agent_branches.id <= (
            SELECT id FROM agent_branches WHERE session_id = %(session_id)s
            ORDER BY id DESC OFFSET {BRANCHES_KEPT - 1} LIMIT 1
        )
    )
)"""
"""Behind TAKEN_OUT. A branch that hangs on another one's items is older than that one, so the bound
takes it first."""

_CUT = """, cut AS (
    SELECT id, created_at FROM agent_messages
    WHERE session_id = %(session_id)s AND id = %(cut)s::bigint
)"""

OUTCOME = """
SELECT FROM session
"""

STORE_TURN = _UNMOVED + ADDED + OUTCOME
"""One row if it was stored, none if the session has moved since it was read: the row's
`updated_at` is another one, or the newest item (upstream's `pop_item` leaves the date alone)."""

ADD_ITEMS = TOUCHED + ADDED + OUTCOME

ADD_RECORDED_ITEMS = TOUCHED + ADDED + _RECORDED + _DECLINED + OUTCOME

STORE_RECORDED_TURN = _UNMOVED + ADDED + _RECORDED + _DECLINED + OUTCOME

STORE_EDITED_TURN = _UNMOVED + _CUT + TAKEN_OUT + BOUNDED + ADDED + _RECORDED + OUTCOME
"""In place of what stands from the item `cut`, which becomes a branch."""

RECORD_TURN = """
INSERT INTO agent_turns AS known (
    session_id, response_id, status, model, trace_id, usage, state
)
SELECT session_id, %(response_id)s, %(status)s, %(model)s, %(trace_id)s, %(usage)s::jsonb, %(state)s
FROM agent_sessions
WHERE session_id = %(session_id)s
ON CONFLICT (response_id, session_id) DO UPDATE SET
    status = EXCLUDED.status,
    model = EXCLUDED.model,
    trace_id = coalesce(EXCLUDED.trace_id, known.trace_id),
    usage = EXCLUDED.usage,
    state = EXCLUDED.state
"""
"""The row of a turn alone, which moves nobody's version. One that has stored no items has no
number: the next turn takes its place."""

VERSION = """(
    SELECT concat_ws(
        '/', known.updated_at, latest.first_item, latest.last_item,
        latest.number + (
            SELECT count(*) FROM (
                SELECT number FROM agent_turns
                WHERE session_id = %(session_id)s
                    AND branch_id IS NULL
                    AND first_item < latest.first_item
                ORDER BY first_item DESC
                LIMIT 20
            ) AS before
            WHERE before.number >= latest.number
        )
    )
    FROM agent_sessions AS known
    LEFT JOIN LATERAL (
        SELECT number, first_item, last_item FROM agent_turns AS turn
        WHERE session_id = %(session_id)s
            AND branch_id IS NULL
            AND EXISTS (
                SELECT FROM agent_messages AS item
                WHERE item.session_id = %(session_id)s AND item.id = turn.first_item
            )
        ORDER BY first_item DESC
        LIMIT 1
    ) AS latest ON true
    WHERE known.session_id = %(session_id)s
)"""
"""The session's version, and joined to it because they come in one column, first and last item and
number of the latest turn that has a record. One whose items were popped does not count. Turns that
were stored at the same time have all been given one number; they stand behind each other."""

READ_RECORDED_TURN = f"""
SELECT NULL::bigint AS id, {VERSION} AS message_data
{_THEN_ITEMS}"""
"""As READ_TURN, with that version."""

POP_ITEM = """
DELETE FROM agent_messages WHERE id = (
    SELECT id FROM agent_messages
    WHERE session_id = %(session_id)s
    ORDER BY created_at DESC, id DESC
    LIMIT 1
    FOR UPDATE
)
RETURNING message_data
"""
"""FOR UPDATE: of several who pop at once, each waits and then takes the next row."""

CLEAR_SESSION = """
WITH messages AS (DELETE FROM agent_messages WHERE session_id = %(session_id)s)
DELETE FROM agent_sessions WHERE session_id = %(session_id)s
"""
"""Does not lean on ON DELETE CASCADE: the tables may have been made by somebody's migration."""
