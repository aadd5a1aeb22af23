"""The statements that list conversations: each a page, in one round trip.

A page is found first, by keys alone, and only then looked at: titles, numbers and first words are
those of its conversations and of no others. Where nothing is filtered, an index on
`agent_sessions` gives its rows in order. Where something is, there are two ways, and the statement
takes the shorter one: few conversations can be meant, so they are sorted and looked through; or
many are, so that some of them are soon met on the way from the newest to the oldest. That way ends
after so many conversations, and the page says where.

Limits that the planner reads are written out: one that is a parameter it takes for a tenth of the
table, and sorts that.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, LiteralString, NamedTuple

from lakebase_sessions.postgres.said import folded, is_users, may_say, plainly_written, said

Order = Literal["updated", "created"]

MOST = 100
"""Conversations on a page, as in OpenAI's listings."""
WALKED = 2000
"""Conversations that one statement looks through for words, where no index leads to them: about
0.1 s."""
PASSED = 20_000
"""Conversations that one statement passes by for their metadata."""
FEW = 2000
"""Candidates of an index that are sorted; of more, some are soon met on the way."""
FEW_SAID = 4000
"""The same of rows of what was said."""
NEAR = 300
"""Conversations that are looked through before the index is: of a word that everybody says it would
give all its rows, only to be told that there are too many."""

GRAMS = "agent_said_grams"
"""The function that the index on what was said is of (postgres/indexes.py)."""


class Listing(NamedTuple):
    """What a listing is by; each combination is a statement of its own.

    Attributes:
        own: This package's tables may be used.
        user: Of one user's conversations.
        metadata: They have it.
        search: Somebody said it; with the collation that folds it.
        grams: An index leads to what was said.
    """

    order: Order = "updated"
    own: bool = True
    user: bool = False
    metadata: bool = False
    search: str | None = None
    grams: bool = False


_DETAILS = """
SELECT page.session_id, to_char(page.key, 'YYYY-MM-DD"T"HH24:MI:SS.US'),
    page.created_at AT TIME ZONE current_setting('TimeZone'),
    page.updated_at AT TIME ZONE current_setting('TimeZone'),
    {own_columns}, opening.words, held.items, held.turns
FROM ({page}) AS page
{own_join}
LEFT JOIN LATERAL (
    SELECT count(*) AS items,
        count(*) FILTER (WHERE begun OR (users AND NOT recorded AND users_before IS NOT TRUE))
            AS turns
    FROM (
        SELECT begun, users, lag(users) OVER behind AS users_before,
            coalesce(max(last_item) OVER behind >= id, false) AS recorded
        FROM (
            SELECT message.id, message.created_at, {is_users} AS users, record.*
            FROM agent_messages AS message {records}
            WHERE message.session_id = page.session_id
        ) AS message
        WINDOW behind AS (ORDER BY created_at, id)
    ) AS message
) AS held ON true
LEFT JOIN LATERAL (
    SELECT left({said}, 1000) AS words FROM agent_messages AS message
    WHERE message.session_id = page.session_id AND {is_users}
    ORDER BY message.created_at, message.id
    LIMIT 1
) AS opening ON true
"""
"""Turns are counted as `session.turns()` does: those that have a record, and elsewhere wherever the
user speaks behind something else."""

_OWN_COLUMNS = "conversation.title, conversation.metadata, conversation.forked_from"
_NO_COLUMNS = "NULL::text, NULL::jsonb, NULL::varchar"

_OWN_JOIN = """
LEFT JOIN {conversations} AS conversation ON conversation.session_id = page.session_id
"""

_RECORDS = """
LEFT JOIN LATERAL (
    SELECT true AS begun, turn.last_item FROM agent_turns AS turn
    WHERE turn.session_id = page.session_id
        AND turn.first_item = message.id
        AND turn.branch_id IS NULL
    LIMIT 1
) AS record ON true
"""
_NO_RECORDS = "CROSS JOIN (SELECT false AS begun, NULL::bigint AS last_item) AS record"

_END = """
UNION ALL (
    SELECT seen.session_id, to_char(seen.key, 'YYYY-MM-DD"T"HH24:MI:SS.US'), NULL, NULL,
        {own_columns}, NULL, NULL, NULL
    FROM ({end}) AS seen
)
"""

_KEYS = "session.session_id, session.created_at, session.updated_at, session.{order}_at AS key"

_SCOPE = """
    (session.{order}_at, session.session_id) < (%(key)s::timestamp, %(last)s)
    AND session.updated_at >= %(since)s::timestamptz AT TIME ZONE current_setting('TimeZone')
    AND session.updated_at < %(before)s::timestamptz AT TIME ZONE current_setting('TimeZone')
"""

USERS = """
    AND split_part(session.session_id, ':', 1) = split_part(%(prefix)s, ':', 1)
    AND starts_with(session.session_id::text, %(prefix)s)
"""
"""The first is what the index is on; the second leaves out an id that is a user's name alone."""

_HAS_METADATA = """
    AND (
        SELECT metadata @> %(metadata)s::jsonb FROM agent_conversations AS described
        WHERE described.session_id = walked.session_id
    )
"""

_WAS_SAID = """
    AND (
        SELECT true FROM agent_messages AS message
        WHERE {rows} AND {perhaps} AND strpos({folded}, (SELECT folded FROM needle)) > 0
        LIMIT 1
    )
"""
_ALL_ROWS = "message.session_id = walked.session_id"
_CANDIDATES = "message.id = ANY (walked.ids)"

_WITH_METADATA = """
    SELECT session_id, NULL::integer AS id FROM agent_conversations
    WHERE metadata @> %(metadata)s::jsonb
    LIMIT {few} + 1
"""

_WITH_GRAMS = """
    SELECT session_id, id FROM agent_messages
    WHERE NOT (SELECT enough FROM seen)
        AND {grams}(message_data) @> (SELECT grams FROM needle)
    LIMIT {few} + 1
"""

_SEEN = """
    SELECT count(*) >= %(limit)s::bigint
        OR (SELECT count(*) < {near} FROM ({walk}) AS walked) AS enough
    FROM near
"""
"""A page, or all that there is, as of a user with few conversations."""

_FOUND = """
    SELECT count(*) <= {few} {sure} AS few, count(*) > {few} {unsure} AS many FROM candidate
"""

_WALK = """
    SELECT {keys} FROM agent_sessions AS session
    WHERE {scope}
    ORDER BY key DESC, session_id DESC
    LIMIT {bound}
"""

_SORT = """
    SELECT {keys}, ids
    FROM (
        SELECT session_id, array_agg(id) AS ids FROM candidate
        WHERE (SELECT few FROM found)
        GROUP BY session_id
    ) AS candidate
    CROSS JOIN LATERAL (
        SELECT * FROM agent_sessions WHERE session_id = candidate.session_id OFFSET 0
    ) AS session
    WHERE {scope}
    ORDER BY key DESC, session_id DESC
    OFFSET 0
"""
"""OFFSET 0 is what the planner does not look behind: it would join all sessions, or look through
all that are sorted before it takes the first."""

_SURE = "AND NOT (SELECT enough FROM seen) AND (SELECT grams FROM needle) IS NOT NULL"
_UNSURE = "OR NOT (SELECT enough FROM seen) AND (SELECT grams FROM needle) IS NULL"
"""Of less than three bytes there are no grams, and so no candidates."""

_FIRST = """
    SELECT session_id, created_at, updated_at, key FROM ({walked}) AS walked
    WHERE true {conditions}
    ORDER BY key DESC, session_id DESC
    LIMIT %(limit)s::bigint
"""


@cache
def page_of(listing: Listing) -> LiteralString:
    """The statement for a page.

    Parameters: `limit`; `key` and `last`, behind which it begins; `since` and `before`; and, as the
    listing has them, `prefix`, `metadata`, `words` and `item`, which is an item that says them.

    Its last row may have a key and no conversation: so far it has looked, and no further.
    """
    scope = (_SCOPE + (USERS if listing.user else "")).format(order=listing.order)
    keys = _KEYS.format(order=listing.order)
    if not listing.metadata and listing.search is None:
        return _finished(listing, _first(listing, _WALK, keys=keys, scope=scope, bound=MOST + 1))

    bound = PASSED if listing.search is None else WALKED
    tables: dict[str, str] = {}
    if listing.search is not None:
        words = folded("%(words)s::text", listing.search)
        grams = f", {GRAMS}(%(item)s) AS grams" if listing.grams else ""
        plain = plainly_written("%(words)s::text")
        tables["needle"] = f"SELECT {words} AS folded, {plain} AS plain{grams}"
    if listing.grams:
        tables["near"] = _first(listing, _WALK, keys=keys, scope=scope, bound=NEAR)
        walk = _WALK.format(keys=keys, scope=scope, bound=NEAR)
        tables["seen"] = _SEEN.format(near=NEAR, walk=walk)
        tables["candidate"] = _WITH_GRAMS.format(grams=GRAMS, few=FEW_SAID)
        tables["found"] = _FOUND.format(few=FEW_SAID, sure=_SURE, unsure=_UNSURE)
    elif listing.metadata:
        tables["candidate"] = _WITH_METADATA.format(few=FEW)
        tables["found"] = _FOUND.format(few=FEW, sure="", unsure="")
    if "found" in tables:
        far = scope + " AND (SELECT many FROM found)"
        page = (
            f"({_first(listing, _SORT, keys=keys, scope=scope)}) UNION ALL "
            f"({_first(listing, _WALK, keys=keys, scope=far, bound=bound)})"
        )
        if "near" in tables:
            page += " UNION ALL (SELECT * FROM near WHERE (SELECT enough FROM seen))"
    else:
        far = scope
        page = _first(listing, _WALK, keys=keys, scope=scope, bound=bound)
    with_ = ", ".join(f"{name} AS MATERIALIZED ({query})" for name, query in tables.items())
    walk = _WALK.format(keys=keys, scope=far, bound=bound)
    end = f"SELECT * FROM ({walk}) AS walked OFFSET {bound - 1}"
    return _finished(listing, page, f"WITH {with_}" if with_ else "", end)


def _first(listing: Listing, way: str, **blanks: Any) -> str:
    """The first conversations on a way that are as they should be."""
    conditions = _HAS_METADATA if listing.metadata else ""
    if listing.search is not None:
        text = folded(said("message.message_data"), listing.search)
        rows = _CANDIDATES if way is _SORT and listing.grams else _ALL_ROWS
        perhaps = may_say("message.message_data", "(SELECT plain FROM needle)")
        conditions += _WAS_SAID.format(rows=rows, perhaps=perhaps, folded=text)
    return _FIRST.format(walked=way.format(**blanks), conditions=conditions)


def _finished(
    listing: Listing,
    page: str,
    tables: str = "",
    end: str = "",
    *,
    conversations: str = "agent_conversations",
) -> LiteralString:
    details = _DETAILS.format(
        page=page,
        own_columns=_OWN_COLUMNS if listing.own else _NO_COLUMNS,
        own_join=_OWN_JOIN.format(conversations=conversations) if listing.own else "",
        records=_RECORDS if listing.own else _NO_RECORDS,
        said=said("message.message_data"),
        is_users=is_users("message.message_data"),
    )
    if end:
        end = _END.format(end=end, own_columns=_NO_COLUMNS)
    return f"{tables} ({details} ORDER BY page.key DESC, page.session_id DESC) {end}"


_ONE = """
    SELECT session.session_id, created_at, updated_at, updated_at AS key
    FROM {source} AS session
    WHERE session.session_id = %(session_id)s
"""

_UPDATED = """
WITH described AS (
    INSERT INTO agent_conversations AS known (session_id, title, metadata)
    SELECT session_id, %(title)s, coalesce(%(metadata)s::jsonb, '{}') FROM agent_sessions
    WHERE session_id = %(session_id)s
    ON CONFLICT (session_id) DO UPDATE SET
        title = CASE WHEN %(titled)s::boolean THEN EXCLUDED.title ELSE known.title END,
        metadata = coalesce(%(metadata)s::jsonb, known.metadata)
    RETURNING session_id, title, metadata, forked_from
)"""


@cache
def one(*, own: bool) -> LiteralString:
    """The statement for the conversation `session_id`."""
    return _finished(Listing(own=own), _ONE.format(source="agent_sessions"))


@cache
def updated() -> LiteralString:
    """The statement that sets `title`, if `titled`, and `metadata`, if it is not NULL.

    No row if there is no such conversation. When it was last used stays as it is.
    """
    source = "described JOIN agent_sessions USING (session_id)"
    page = _ONE.format(source=f"(SELECT * FROM {source})")
    return _finished(Listing(), page, _UPDATED, conversations="described")


_COUNT = """
SELECT count(*) FROM agent_sessions AS session {joined}
WHERE session.updated_at >= %(since)s::timestamptz AT TIME ZONE current_setting('TimeZone')
    AND session.updated_at < %(before)s::timestamptz AT TIME ZONE current_setting('TimeZone')
    {users} {has}
"""


@cache
def count(*, user: bool, metadata: bool) -> LiteralString:
    """The statement for how many conversations there are."""
    return _COUNT.format(
        joined="JOIN agent_conversations USING (session_id)" if metadata else "",
        users=USERS if user else "",
        has="AND metadata @> %(metadata)s::jsonb" if metadata else "",
    )


TITLE = """
INSERT INTO agent_conversations AS known (session_id, title)
SELECT session_id, %(title)s FROM agent_sessions WHERE session_id = %(session_id)s
ON CONFLICT (session_id) DO UPDATE SET title = EXCLUDED.title WHERE known.title IS NULL
"""
"""Of a conversation that has none: somebody may have set one meanwhile."""

_DELETE = """
WITH {claims} messages AS (DELETE FROM agent_messages WHERE session_id = %(session_id)s)
DELETE FROM agent_sessions WHERE session_id = %(session_id)s
RETURNING session_id
"""
_CLAIM = "claim AS (DELETE FROM agent_claims WHERE session_id = %(session_id)s),"

_DELETE_USERS = """
WITH {claims} gone AS MATERIALIZED (
    SELECT session.session_id FROM agent_sessions AS session
    WHERE true {users}
    ORDER BY session.session_id
    LIMIT %(limit)s::bigint
    FOR UPDATE
), messages AS (
    DELETE FROM agent_messages USING gone WHERE agent_messages.session_id = gone.session_id
)
DELETE FROM agent_sessions USING gone WHERE agent_sessions.session_id = gone.session_id
RETURNING agent_sessions.session_id
"""
_USERS_CLAIMS = """claims AS (
    DELETE FROM agent_claims WHERE starts_with(session_id::text, %(prefix)s)
),"""
"""Of conversations that are not there yet, too."""


@cache
def delete(*, own: bool) -> LiteralString:
    """The statement that deletes the conversation `session_id`: one row if it was there."""
    return _DELETE.format(claims=_CLAIM if own else "")


@cache
def delete_users(*, own: bool) -> LiteralString:
    """The statement that deletes at most `limit` conversations of a user, a row for each."""
    return _DELETE_USERS.format(claims=_USERS_CLAIMS if own else "", users=USERS)
