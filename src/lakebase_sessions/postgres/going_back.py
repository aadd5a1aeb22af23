r"""Statements of turns, branches and forks, each one round trip; as in `queries`.

A turn begins at the first item of a record, and where no record is, at each user message behind
something else. `\u` is made harmless before JSON is looked into: Postgres refuses `\u0000` and lone
surrogates, which items may hold.
"""

from __future__ import annotations

from lakebase_sessions.postgres.queries import BOUNDED, TAKEN_OUT

_CONVERSATION = """item AS (
    SELECT 0::bigint AS holder, id, created_at, message_data FROM agent_messages
    WHERE session_id = %(session_id)s
)"""

_ITS_BRANCHES_TOO = """item AS (
    SELECT 0::bigint AS holder, id, created_at, message_data FROM agent_messages
    WHERE session_id = %(session_id)s
    UNION ALL
    SELECT kept.branch_id, kept.id, kept.created_at, kept.message_data
    FROM agent_branches AS branch JOIN agent_branch_items AS kept ON kept.branch_id = branch.id
    WHERE branch.session_id = %(session_id)s
)"""

_ALL_BEGUN = r""", known AS (
    SELECT item.*, record.*, coalesce(max(record.last_item) OVER so_far >= item.id, false)
        AS recorded
    FROM item LEFT JOIN LATERAL (
        SELECT response_id, last_item, status, model, trace_id, usage FROM agent_turns
        WHERE session_id = %(session_id)s
            AND first_item = item.id
            AND coalesce(branch_id, 0) = item.holder
        LIMIT 1
    ) AS record ON true
    WINDOW so_far AS (
        PARTITION BY holder ORDER BY created_at, id ROWS UNBOUNDED PRECEDING
    )
), spoken AS (
    SELECT *, CASE WHEN NOT recorded OR NOT lead(recorded, 1, true) OVER behind THEN
        CASE WHEN replace(message_data, '\u', '\n') IS JSON OBJECT
        THEN (replace(message_data, '\u', '\n')::json ->> 'role') = 'user' END
    END AS users
    FROM known
    WINDOW behind AS (PARTITION BY holder ORDER BY created_at, id)
), begun AS (
    SELECT *, response_id IS NOT NULL
        OR (NOT recorded AND users IS TRUE AND lag(users) OVER behind IS NOT TRUE) AS begins
    FROM spoken
    WINDOW behind AS (PARTITION BY holder ORDER BY created_at, id)
)"""
"""Each item once, and whether a turn begins with it. The record of each is looked up in the index:
a join could become a loop of all turns in a loop of all items. Text is parsed only where there is
no record, and right before that."""

BEGUN = _ALL_BEGUN.replace("PARTITION BY holder ", "")
"""For the conversation alone, which is sorted once then."""

_UTC = "AT TIME ZONE current_setting('TimeZone') AT TIME ZONE 'UTC'"
"""Behind a `timestamp` as upstream writes it."""

_HEAD_LENGTH = 2000
"""Characters of an item that a preview is taken from; an item may be an image."""

TURNS = f"""
WITH {_CONVERSATION}{BEGUN}, numbered AS (
    SELECT *, row_number() OVER behind AS at,
        lead(message_data) OVER behind AS second, lead(message_data, 2) OVER behind AS third
    FROM begun
    WINDOW behind AS (ORDER BY created_at, id)
), turn AS (
    SELECT *, row_number() OVER in_order AS number, lead(at) OVER in_order AS next
    FROM numbered
    WHERE begins
    WINDOW in_order AS (ORDER BY at)
    ORDER BY at DESC
    LIMIT %(limit)s::bigint
)
SELECT number, response_id, created_at {_UTC},
    left(message_data, {_HEAD_LENGTH}),
    left(second, {_HEAD_LENGTH}),
    left(third, {_HEAD_LENGTH}),
    coalesce(next, (
        SELECT count(*) + 1 FROM agent_messages WHERE session_id = %(session_id)s
    )) - at,
    status, model, trace_id, usage
FROM turn
ORDER BY at
"""
"""Oldest first. A limit of NULL is all."""

_TURN = f"""{_CONVERSATION}{BEGUN}, turn AS (
    SELECT id, created_at, response_id, row_number() OVER (ORDER BY created_at, id) AS number
    FROM begun
    WHERE begins
)"""

SEEN = """seen AS MATERIALIZED (
    SELECT updated_at FROM agent_sessions WHERE session_id = %(session_id)s
), """
"""The version that all of the statement sees. A statement that has waited for another writer's lock
gets that one's row, and everything else as it was before."""

_REWOUND = f"""
WITH RECURSIVE {SEEN}{_TURN}, cut AS (
    SELECT id, created_at, number FROM turn
    WHERE number = %(before_turn)s::integer OR response_id = %(to_response)s
), session AS (
    UPDATE agent_sessions SET updated_at =
        GREATEST(LOCALTIMESTAMP, agent_sessions.updated_at) + interval '1 us'
    FROM cut
    WHERE session_id = %(session_id)s AND updated_at = (SELECT updated_at FROM seen)
    RETURNING session_id
)"""

_BRANCH_MADE = f"""branch.id, cut.number, LOCALTIMESTAMP {_UTC},
    (SELECT count(*) FROM removed),
    (
        SELECT count(*) FROM turn
        WHERE (turn.created_at, turn.id) >= (cut.created_at, cut.id)
    ),
    ARRAY (
        SELECT left(message_data, {_HEAD_LENGTH}) FROM removed ORDER BY created_at, id LIMIT 3
    ),
    branch.after_item, cut.id
FROM (SELECT) AS one
LEFT JOIN cut ON true
LEFT JOIN session ON true
LEFT JOIN branch ON true
"""

REWIND = f"""{_REWOUND}{TAKEN_OUT}{BOUNDED}
SELECT EXISTS (SELECT FROM seen), cut.id IS NOT NULL, session.session_id IS NOT NULL,
    {_BRANCH_MADE}"""
"""One row: whether the conversation and the turn are there, whether it was done, and the branch."""

REWIND_FOR_GOOD = f"""{_REWOUND}, hanging AS (
    SELECT branch.id FROM cut, agent_branches AS branch
    WHERE branch.session_id = %(session_id)s AND EXISTS (
        SELECT FROM agent_messages AS item
        WHERE item.id = branch.after_item
            AND item.session_id = %(session_id)s
            AND (item.created_at, item.id) >= (cut.created_at, cut.id)
    )
    UNION
    SELECT branch.id
    FROM hanging
    JOIN agent_branches AS branch ON branch.session_id = %(session_id)s
    JOIN LATERAL (
        SELECT FROM agent_branch_items
        WHERE branch_id = hanging.id AND id = branch.after_item
        LIMIT 1
    ) AS held ON true
), removed AS (
    DELETE FROM agent_messages AS item USING session, cut
    WHERE item.session_id = %(session_id)s
        AND (item.created_at, item.id) >= (cut.created_at, cut.id)
), removed_turns AS (
    DELETE FROM agent_turns USING session, cut
    WHERE agent_turns.session_id = %(session_id)s
        AND branch_id IS NULL
        AND first_item >= cut.id
), removed_branches AS (
    DELETE FROM agent_branches USING session
    WHERE agent_branches.id IN (SELECT id FROM hanging)
)
SELECT EXISTS (SELECT FROM seen), EXISTS (SELECT FROM cut), EXISTS (SELECT FROM session)
"""

_HUNG = """hung AS MATERIALIZED (
    SELECT branch.id, branch.created_at, coalesce(place.holder, 0) AS holder,
        CASE
            WHEN branch.after_item IS NULL OR place.holder IS NOT NULL THEN branch.after_item
            ELSE (
                SELECT max(id) FILTER (WHERE id < branch.after_item) FROM agent_messages
                WHERE session_id = %(session_id)s
            )
        END AS after_item
    FROM agent_branches AS branch
    LEFT JOIN LATERAL (
        SELECT 0::bigint AS holder FROM agent_messages
        WHERE session_id = %(session_id)s AND id = branch.after_item
        UNION ALL
        SELECT other.id FROM agent_branches AS other, LATERAL (
            SELECT FROM agent_branch_items
            WHERE branch_id = other.id AND id = branch.after_item
            LIMIT 1
        ) AS held
        WHERE other.session_id = %(session_id)s
        LIMIT 1
    ) AS place ON true
    WHERE branch.session_id = %(session_id)s
)"""
"""The branches, each with the item it hangs behind and the branch that holds it; 0 is the
conversation. Behind an item that is nowhere any more it hangs at the one before that."""

BRANCHES = f"""
WITH {_HUNG}, {_ITS_BRANCHES_TOO}{_ALL_BEGUN}, numbered AS (
    SELECT holder, id, begins, left(message_data, {_HEAD_LENGTH}) AS head,
        row_number() OVER so_far AS at,
        count(*) FILTER (WHERE begins) OVER so_far AS turns
    FROM begun
    WINDOW so_far AS (PARTITION BY holder ORDER BY created_at, id ROWS UNBOUNDED PRECEDING)
), told AS (
    SELECT holder, id, at, turns, CASE WHEN holder > 0 AND at <= 3 THEN head END AS head
    FROM numbered
    WHERE holder > 0 OR id IN (SELECT after_item FROM hung)
), counted AS (
    SELECT holder, count(*) AS items, max(turns) AS turns,
        array_agg(head ORDER BY at) FILTER (WHERE at <= 3) AS heads,
        min(id) FILTER (WHERE at = 1) AS first_item
    FROM told
    WHERE holder > 0
    GROUP BY holder
)
SELECT hung.id, hung.created_at {_UTC}, hung.holder, coalesce((
        SELECT turns FROM told WHERE told.holder = hung.holder AND told.id = hung.after_item
    ), 0),
    counted.items, counted.turns, counted.heads, hung.after_item, counted.first_item
FROM hung JOIN counted ON counted.holder = hung.id
ORDER BY hung.id DESC
"""
"""Latest first, each with its holder and the number of turns in that up to where it hangs."""

BRANCH_ITEMS = """
SELECT item.id, item.message_data
FROM agent_branches AS branch JOIN agent_branch_items AS item ON item.branch_id = branch.id
WHERE branch.session_id = %(session_id)s AND branch.id = %(branch)s::bigint
ORDER BY item.created_at, item.id
"""

RESTORE = f"""
WITH RECURSIVE {SEEN}{_HUNG}, {_TURN}, chain AS (
    SELECT id, holder, after_item, NULL::bigint AS up_to FROM hung WHERE id = %(branch)s::bigint
    UNION ALL
    SELECT parent.id, parent.holder, parent.after_item, chain.after_item
    FROM chain JOIN hung AS parent ON parent.id = chain.holder
), part AS MATERIALIZED (
    SELECT chain.id, chain.up_to, last.created_at AS up_to_date, EXISTS (
        SELECT FROM agent_branch_items AS rest
        WHERE rest.branch_id = chain.id AND (rest.created_at, rest.id) > (last.created_at, last.id)
    ) AS stays
    FROM chain LEFT JOIN agent_branch_items AS last
        ON last.branch_id = chain.id AND last.id = chain.up_to
), base AS (
    SELECT item.id, item.created_at
    FROM (SELECT after_item FROM chain WHERE holder = 0) AS root
    LEFT JOIN agent_messages AS item
        ON item.session_id = %(session_id)s AND item.id = root.after_item
), cut AS (
    SELECT item.id, item.created_at, 1 + (
        SELECT count(*) FROM turn WHERE (turn.created_at, turn.id) < (item.created_at, item.id)
    ) AS number
    FROM base, LATERAL (
        SELECT id, created_at FROM agent_messages
        WHERE session_id = %(session_id)s
            AND (base.id IS NULL OR (created_at, id) > (base.created_at, base.id))
        ORDER BY created_at, id
        LIMIT 1
    ) AS item
), session AS (
    UPDATE agent_sessions SET updated_at =
        GREATEST(LOCALTIMESTAMP, agent_sessions.updated_at) + interval '1 us'
    WHERE session_id = %(session_id)s
        AND updated_at = (SELECT updated_at FROM seen)
        AND EXISTS (SELECT FROM chain)
    RETURNING session_id
){TAKEN_OUT}, returned AS (
    INSERT INTO agent_messages (id, session_id, message_data, created_at)
    SELECT item.id, session.session_id, item.message_data, item.created_at
    FROM session, part, agent_branch_items AS item
    WHERE item.branch_id = part.id
        AND (part.up_to IS NULL OR (item.created_at, item.id) <= (part.up_to_date, part.up_to))
), returned_turns AS (
    UPDATE agent_turns SET branch_id = NULL FROM session, part
    WHERE agent_turns.session_id = %(session_id)s
        AND branch_id = part.id
        AND (part.up_to IS NULL OR first_item <= part.up_to)
), left_branch AS (
    DELETE FROM agent_branch_items AS item USING session, part
    WHERE item.branch_id = part.id
        AND part.stays
        AND (item.created_at, item.id) <= (part.up_to_date, part.up_to)
), moved AS (
    UPDATE agent_branches SET after_item = part.up_to FROM session, part
    WHERE agent_branches.id = part.id AND part.stays
), emptied AS (
    DELETE FROM agent_branches USING session, part
    WHERE agent_branches.id = part.id AND NOT part.stays
)
SELECT EXISTS (SELECT FROM chain), session.session_id IS NOT NULL,
    {_BRANCH_MADE}"""
"""One row: whether the branch is there, whether it was done, and the branch of what it swapped out.

A branch that hangs in another one brings what it stood behind there; the rest of that one stays a
branch. Its rows come back as they were, so that records and other branches know them. There are no
more branches than before, so nothing has to be bounded."""

_BEFORE_CUT = """agent_messages AS item LEFT JOIN cut ON true
    WHERE item.session_id = %(session_id)s
        AND (cut.id IS NULL OR (item.created_at, item.id) < (cut.created_at, cut.id))"""

FORK = f"""
WITH {SEEN}{_TURN}, cut AS (
    SELECT id, created_at FROM turn
    WHERE %(before_turn)s::integer IS NOT NULL AND number = %(before_turn)s::integer
        AND id = coalesce(%(first_item)s::bigint, id)
), session AS (
    INSERT INTO agent_sessions (session_id, updated_at)
    SELECT %(fork)s, GREATEST(LOCALTIMESTAMP, seen.updated_at) FROM seen
    WHERE %(before_turn)s::integer IS NULL OR EXISTS (SELECT FROM cut)
    ON CONFLICT (session_id) DO NOTHING
    RETURNING session_id
), copied AS (
    INSERT INTO agent_messages (session_id, message_data, created_at)
    SELECT session.session_id, item.message_data, item.created_at
    FROM session, {_BEFORE_CUT}
    ORDER BY item.created_at, item.id
    RETURNING id
), old AS (
    SELECT array_agg(id::bigint ORDER BY id) AS ids, array_agg(at ORDER BY id) AS places
    FROM (
        SELECT item.id, row_number() OVER (ORDER BY item.created_at, item.id) AS at
        FROM {_BEFORE_CUT}
    ) AS placed
), new AS (
    SELECT array_agg(id::bigint ORDER BY id) AS ids FROM copied
), copied_turns AS (
    INSERT INTO agent_turns (
        session_id, response_id, number, first_item, last_item,
        created_at, status, model, trace_id, usage
    )
    SELECT session.session_id, response_id, number,
        (SELECT ids FROM new)[
            (SELECT places FROM old)[width_bucket(first_item, (SELECT ids FROM old))]
        ],
        (SELECT ids FROM new)[
            (SELECT places FROM old)[width_bucket(last_item, (SELECT ids FROM old))]
        ],
        created_at,
        CASE WHEN status IN ('in_progress', 'waiting') THEN 'cancelled' ELSE status END,
        model, trace_id, usage
    FROM session, agent_turns
    WHERE agent_turns.session_id = %(session_id)s
        AND branch_id IS NULL
        AND (SELECT ids FROM old)[width_bucket(first_item, (SELECT ids FROM old))] = first_item
), described AS (
    INSERT INTO agent_conversations (session_id, title, metadata, forked_from, forked_before)
    SELECT session.session_id, source.title, coalesce(source.metadata, '{{}}'),
        %(session_id)s, %(before_turn)s::integer
    FROM session LEFT JOIN agent_conversations AS source
        ON source.session_id = %(session_id)s
)
SELECT EXISTS (SELECT FROM seen),
    %(before_turn)s::integer IS NULL OR EXISTS (SELECT FROM cut),
    EXISTS (SELECT FROM session)
"""
"""One row: whether the conversation and the turn are there, and whether the new id was free. Where
`first_item` is given, the turn has to begin with that.

New ids are given in order, so the n-th copied item has the n-th of them. They are found by search
in a sorted array: a join could become a loop of all turns in a loop of all items. What runs or
waits for an approval does so in the conversation it began in: an approval has to count once."""

USAGE = """
SELECT used.model,
    coalesce(sum((used.counts ->> 'requests')::bigint), 0)::bigint,
    coalesce(sum((used.counts ->> 'input_tokens')::bigint), 0)::bigint,
    coalesce(sum((used.counts ->> 'output_tokens')::bigint), 0)::bigint,
    coalesce(sum((used.counts ->> 'total_tokens')::bigint), 0)::bigint,
    coalesce(sum((used.counts ->> 'cached_tokens')::bigint), 0)::bigint,
    coalesce(sum((used.counts ->> 'reasoning_tokens')::bigint), 0)::bigint
FROM agent_turns, jsonb_each(usage) AS used (model, counts)
WHERE session_id = %(session_id)s
GROUP BY used.model
ORDER BY used.model
"""
