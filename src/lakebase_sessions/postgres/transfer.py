"""The statements of export and load.

An id of an item means nothing in another database. What refers to items (turns, branches) refers
to their number: 1 for the first item of a conversation by id, those of its branches among them.
Moments are UTC, because the tables hold the local time of whoever wrote them.
"""

from __future__ import annotations

PAGE = 100
"""Conversations that are read in one snapshot."""


def _utc(column: str) -> str:
    return (
        f"to_char({column} AT TIME ZONE current_setting('TimeZone') AT TIME ZONE 'UTC', "
        '\'YYYY-MM-DD"T"HH24:MI:SS.US"Z"\')'
    )


def _local(moment: str) -> str:
    return f"({moment}::timestamptz AT TIME ZONE current_setting('TimeZone'))"


_CHOSEN = """
WHERE (%(prefix)s::text IS NULL OR starts_with(session_id, %(prefix)s))
    AND (%(ids)s::json IS NULL OR session_id = ANY (
        ARRAY(SELECT json_array_elements_text(%(ids)s::json))
    ))
"""

COUNT = f"SELECT count(*) FROM agent_sessions {_CHOSEN}"

_PAGE = f"""
{_CHOSEN} AND (%(after)s::text IS NULL OR session_id > %(after)s)
ORDER BY session_id
LIMIT {PAGE}
"""

PLAIN_HEADS = f"""
SELECT session_id, {_utc("created_at")}, {_utc("updated_at")}, NULL, NULL, NULL, NULL,
    (SELECT count(*) FROM agent_messages AS item WHERE item.session_id = known.session_id), 0, 0
FROM agent_sessions AS known {_PAGE}
"""

HEADS = f"""
SELECT known.session_id, {_utc("known.created_at")}, {_utc("known.updated_at")},
    own.title, own.metadata::text, own.forked_from, own.forked_before,
    (SELECT count(*) FROM agent_messages AS item WHERE item.session_id = known.session_id) + (
        SELECT count(*) FROM agent_branch_items AS item JOIN agent_branches AS branch
            ON branch.id = item.branch_id
        WHERE branch.session_id = known.session_id
    ),
    (SELECT count(*) FROM agent_branches AS branch WHERE branch.session_id = known.session_id),
    (SELECT count(*) FROM agent_turns AS turn WHERE turn.session_id = known.session_id)
FROM (SELECT * FROM agent_sessions {_PAGE}) AS known
LEFT JOIN agent_conversations AS own ON own.session_id = known.session_id
ORDER BY known.session_id
"""
"""Each with how many items, branches and turns follow."""

_IDS = "ARRAY(SELECT json_array_elements_text(%(ids)s::json))"

PLAIN_ITEMS = f"""
SELECT session_id, NULL, {_utc("created_at")}, message_data
FROM agent_messages WHERE session_id = ANY ({_IDS})
ORDER BY session_id, id
"""

_BRANCHES = f"""
branch AS (
    SELECT *, row_number() OVER (PARTITION BY session_id ORDER BY id) AS number
    FROM agent_branches WHERE session_id = ANY ({_IDS})
)"""

ITEMS = f"""
WITH {_BRANCHES}
SELECT session_id, number, {_utc("created_at")}, message_data FROM (
    SELECT session_id, NULL::bigint AS number, id, created_at, message_data
    FROM agent_messages WHERE session_id = ANY ({_IDS})
    UNION ALL
    SELECT branch.session_id, branch.number, item.id, item.created_at, item.message_data
    FROM branch JOIN agent_branch_items AS item ON item.branch_id = branch.id
) AS item
ORDER BY session_id, id, number NULLS FIRST
"""

_NUMBERED = f"""
WITH {_BRANCHES}, item AS MATERIALIZED (
    SELECT session_id, branch_id, id,
        row_number() OVER (PARTITION BY session_id ORDER BY id, branch_id NULLS FIRST) AS number
    FROM (
        SELECT session_id, NULL::bigint AS branch_id, id
        FROM agent_messages WHERE session_id = ANY ({_IDS})
        UNION ALL
        SELECT branch.session_id, branch.id, item.id
        FROM branch JOIN agent_branch_items AS item ON item.branch_id = branch.id
    ) AS item
)"""

BRANCHES = f"""{_NUMBERED}
SELECT session_id, number, {_utc("created_at")}, coalesce(
    (
        SELECT max(item.number) FROM item
        WHERE item.session_id = branch.session_id AND item.id = branch.after_item
    ),
    (
        SELECT max(item.number) FROM item
        WHERE item.session_id = branch.session_id AND item.id <= branch.after_item
            AND item.branch_id IS NULL
    )
)
FROM branch
ORDER BY session_id, number
"""
"""One that stood behind an item which is gone stands behind what came before that."""

_OF_TURN = """
    (
        SELECT {which}(item.number) FROM item
        WHERE item.session_id = turn.session_id
            AND item.branch_id IS NOT DISTINCT FROM turn.branch_id
            AND item.id BETWEEN turn.first_item AND turn.last_item
    )
"""

TURNS = f"""{_NUMBERED}
SELECT session_id, response_id, branch, number, first,
    CASE WHEN first IS NOT NULL THEN last END,
    created_at, status, model, trace_id, usage, state
FROM (
    SELECT turn.session_id, turn.response_id, branch.number AS branch, turn.number,
        CASE WHEN turn.first_item IS NOT NULL
            THEN coalesce(first.number, {_OF_TURN.format(which="min")}) END AS first,
        CASE WHEN turn.first_item IS NOT NULL
            THEN coalesce(last.number, {_OF_TURN.format(which="max")}) END AS last,
        {_utc("turn.created_at")} AS created_at, turn.status, turn.model, turn.trace_id,
        turn.usage::text, turn.state
    FROM agent_turns AS turn
    LEFT JOIN branch ON branch.id = turn.branch_id
    LEFT JOIN item AS first ON first.session_id = turn.session_id AND first.id = turn.first_item
        AND first.branch_id IS NOT DISTINCT FROM turn.branch_id
    LEFT JOIN item AS last ON last.session_id = turn.session_id AND last.id = turn.last_item
        AND last.branch_id IS NOT DISTINCT FROM turn.branch_id
    WHERE turn.session_id = ANY ({_IDS})
) AS turn
ORDER BY session_id, first NULLS FIRST, created_at, response_id
"""
"""Where its first or last item is gone, what is left of it counts. A turn without items, as of a
run that failed, is not looked for among all of them."""

LOCK = f"""
SELECT FROM agent_sessions WHERE session_id = ANY ({_IDS}) ORDER BY session_id FOR UPDATE
"""
"""As every other writer does first: two who lock in different orders block each other."""
REMOVE_ITEMS = f"DELETE FROM agent_messages WHERE session_id = ANY ({_IDS})"
REMOVE = f"DELETE FROM agent_sessions WHERE session_id = ANY ({_IDS})"
"""In statements of their own: the tables may have been made without a cascade."""

INSERT_HEADS = f"""
INSERT INTO agent_sessions (session_id, created_at, updated_at)
SELECT head ->> 'session_id', {_local("(head ->> 'created_at')")},
    {_local("(head ->> 'updated_at')")}
FROM json_array_elements(%(heads)s::json) AS head
ON CONFLICT (session_id) DO NOTHING
RETURNING session_id
"""

INSERT_CONVERSATIONS = """
INSERT INTO agent_conversations (session_id, title, metadata, forked_from, forked_before)
SELECT head ->> 'session_id', head ->> 'title', coalesce(head -> 'metadata', '{}')::jsonb,
    head ->> 'forked_from', (head ->> 'forked_before')::integer
FROM json_array_elements(%(heads)s::json) AS head
"""

INSERT_BRANCHES = f"""
INSERT INTO agent_branches (session_id, created_at)
SELECT branch ->> 'session_id', {_local("(branch ->> 'created_at')")}
FROM json_array_elements(%(branches)s::json) WITH ORDINALITY AS listed (branch, position)
ORDER BY position
RETURNING id
"""

HANG_BRANCHES = """
UPDATE agent_branches SET after_item = (branch ->> 'after')::bigint
FROM json_array_elements(%(branches)s::json) AS branch
WHERE id = (branch ->> 'id')::bigint
"""

_LISTED = """
WITH listed AS (
    SELECT * FROM ROWS FROM (
        json_array_elements_text(%(ids)s::json),
        json_array_elements_text(%(branches)s::json),
        json_array_elements_text(%(moments)s::json),
        json_array_elements_text(%(texts)s::json)
    ) WITH ORDINALITY AS listed (session_id, branch_id, moment, message_data, position)
), item AS MATERIALIZED (
    SELECT *, nextval(pg_get_serial_sequence('agent_messages', 'id')) AS id
    FROM (SELECT * FROM listed ORDER BY position) AS listed
), stored AS (
    INSERT INTO agent_messages (id, session_id, message_data, created_at)
    SELECT id, session_id, message_data, {moment} FROM item WHERE branch_id IS NULL
)"""

INSERT_PLAIN_ITEMS = (
    _LISTED.format(moment=_local("moment")) + "SELECT id FROM item ORDER BY position"
)

INSERT_ITEMS = (
    _LISTED.format(moment=_local("moment"))
    + f""", kept AS (
    INSERT INTO agent_branch_items (branch_id, id, message_data, created_at)
    SELECT branch_id::bigint, id, message_data, {_local("moment")}
    FROM item WHERE branch_id IS NOT NULL
)
SELECT id FROM item ORDER BY position
"""
)

INSERT_TURNS = f"""
INSERT INTO agent_turns (
    session_id, response_id, branch_id, number, first_item, last_item,
    created_at, status, model, trace_id, usage, state
)
SELECT turn ->> 'session_id', turn ->> 'response_id', (turn ->> 'branch_id')::bigint,
    (turn ->> 'number')::integer, (turn ->> 'first')::bigint, (turn ->> 'last')::bigint,
    {_local("(turn ->> 'created_at')")}, turn ->> 'status', turn ->> 'model',
    turn ->> 'trace_id', coalesce(turn -> 'usage', '{{}}')::jsonb, turn ->> 'state'
FROM json_array_elements(%(turns)s::json) AS turn
"""
