"""Every SQL statement of this package, each one round trip.

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
"""

LATEST_ITEMS = """
SELECT message_data FROM agent_messages
WHERE session_id = %(session_id)s
ORDER BY created_at DESC, id DESC
LIMIT %(limit)s::bigint
"""
"""Newest first."""

ADD_ITEMS = """
WITH session AS (
    INSERT INTO agent_sessions AS known (session_id, updated_at)
    VALUES (%(session_id)s, LOCALTIMESTAMP + (%(count)s::integer + 99) / 100 * interval '1 us')
    ON CONFLICT (session_id) DO UPDATE SET updated_at =
        GREATEST(LOCALTIMESTAMP, known.updated_at)
        + (%(count)s::integer + 99) / 100 * interval '1 us'
    RETURNING session_id, updated_at
)
INSERT INTO agent_messages (session_id, message_data, created_at)
SELECT session.session_id, added.message_data,
    session.updated_at - (%(count)s::integer - added.position) / 100 * interval '1 us'
FROM session,
    string_to_table(%(items)s, E'\\n') WITH ORDINALITY AS added (message_data, position)
ORDER BY added.position
"""
"""The session's row comes first and stays locked to the end, so writers of one session queue.
`updated_at` changes with every write. A write is never dated before what it follows, also when
the server's clock is set back or another server takes over: reads go by date. And 100 items share
a date: few enough that the index on it leads to the latest ones of any conversation, and so many
that a turn has one date, which no other writer's can come between."""

READ_TURN = """
SELECT item.id, item.message_data, session.updated_at::text
FROM (
    SELECT (SELECT updated_at FROM agent_sessions WHERE session_id = %(session_id)s) AS updated_at
) AS session
LEFT JOIN LATERAL (
    SELECT id, message_data, created_at FROM agent_messages
    WHERE session_id = %(session_id)s
    ORDER BY created_at DESC, id DESC
    LIMIT %(limit)s::bigint
) AS item ON true
ORDER BY item.created_at DESC, item.id DESC
"""
"""Newest first, each with the session's version; one row of NULLs and the version if no item is
there. A limit of NULL is all."""

STORE_TURN = """
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
), added AS (
    INSERT INTO agent_messages (session_id, message_data, created_at)
    SELECT session.session_id, added.message_data,
        session.updated_at - (%(count)s::integer - added.position) / 100 * interval '1 us'
    FROM session,
        string_to_table(%(items)s, E'\\n') WITH ORDINALITY AS added (message_data, position)
    ORDER BY added.position
)
SELECT FROM session
"""
"""One row if it was stored, none if the session has moved since it was read: the row's
`updated_at` is another one, or the newest item (upstream's `pop_item` leaves the date alone)."""

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

TABLES_EXIST = """
SELECT to_regclass('agent_sessions') IS NOT NULL AND to_regclass('agent_messages') IS NOT NULL
"""
"""Needs no privilege, not even when the schema is missing."""

CREATE_TABLES = """
SELECT pg_advisory_xact_lock({lock});
{create_schema}
CREATE TABLE IF NOT EXISTS agent_sessions (
    session_id varchar NOT NULL PRIMARY KEY,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL,
    updated_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL
);
CREATE TABLE IF NOT EXISTS agent_messages (
    id serial NOT NULL PRIMARY KEY,
    session_id varchar NOT NULL REFERENCES agent_sessions (session_id) ON DELETE CASCADE,
    message_data text NOT NULL,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL
);
CREATE INDEX IF NOT EXISTS idx_agent_messages_session_time
    ON agent_messages (session_id, created_at);
"""
"""One transaction, sent as one string. The lock makes the workers of a deployment queue, because
`IF NOT EXISTS` alone fails when two come at once. A test compares the result with upstream's."""

CREATE_SCHEMA = "CREATE SCHEMA IF NOT EXISTS {schema};"

CREATE_LOCK = 0x6C616B6562617365
"""`lakebase` in ASCII: a key for the advisory lock that nobody else uses by accident."""
