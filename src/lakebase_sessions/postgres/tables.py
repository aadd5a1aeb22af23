"""The tables: upstream's two, and beside them those of this package.

Ours hold what upstream's have no place for: one row a turn, one a conversation, and what was taken
out of a conversation. They go with the conversation, whoever deletes it (ON DELETE CASCADE), and a
conversation needs none of them: upstream's class reads and writes beside them.
"""

from __future__ import annotations

from lakebase_sessions.postgres.indexes import LISTING

UPSTREAMS = ("agent_sessions", "agent_messages")
"""Without these there is no session."""

OWN = (
    "agent_turns",
    "agent_conversations",
    "agent_branches",
    "agent_branch_items",
    "agent_claims",
)
"""Without these there is nothing but the sessions."""

STATE = """
SELECT to_regclass('agent_sessions') IS NOT NULL AND to_regclass('agent_messages') IS NOT NULL,
    (
        SELECT bool_and(to_regclass(own) IS NOT NULL)
        FROM unnest(string_to_array(%(own)s, ',')) AS own
    ),
    (
        SELECT bool_and(has_table_privilege(to_regclass(own), privilege))
        FROM unnest(string_to_array(%(own)s, ',')) AS own,
            unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS privilege
    )
"""
"""Whether upstream's are there, ours are there, and ours may be used. Needs no privilege, not even
when the schema is missing."""

_UPSTREAMS = """
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
""" + "".join(f"{index.create(only_missing=True)};\n" for index in LISTING)

_OWN = """
CREATE TABLE IF NOT EXISTS agent_conversations (
    session_id varchar NOT NULL PRIMARY KEY
        REFERENCES agent_sessions (session_id) ON DELETE CASCADE,
    title text,
    metadata jsonb DEFAULT '{}' NOT NULL,
    forked_from varchar,
    forked_before integer
);
CREATE INDEX IF NOT EXISTS idx_agent_conversations_metadata
    ON agent_conversations USING gin (metadata jsonb_path_ops);
CREATE TABLE IF NOT EXISTS agent_branches (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    session_id varchar NOT NULL REFERENCES agent_sessions (session_id) ON DELETE CASCADE,
    after_item bigint,
    created_at timestamp DEFAULT LOCALTIMESTAMP NOT NULL
);
CREATE INDEX IF NOT EXISTS idx_agent_branches_session ON agent_branches (session_id, id);
CREATE TABLE IF NOT EXISTS agent_branch_items (
    branch_id bigint NOT NULL REFERENCES agent_branches (id) ON DELETE CASCADE,
    id bigint NOT NULL,
    message_data text NOT NULL,
    created_at timestamp NOT NULL,
    PRIMARY KEY (branch_id, id)
);
CREATE TABLE IF NOT EXISTS agent_turns (
    session_id varchar NOT NULL REFERENCES agent_sessions (session_id) ON DELETE CASCADE,
    response_id varchar NOT NULL,
    branch_id bigint REFERENCES agent_branches (id) ON DELETE CASCADE,
    number integer,
    first_item bigint,
    last_item bigint,
    created_at timestamp DEFAULT LOCALTIMESTAMP NOT NULL,
    status varchar NOT NULL,
    model text,
    trace_id text,
    usage jsonb DEFAULT '{}' NOT NULL,
    state text,
    PRIMARY KEY (response_id, session_id)
);
CREATE INDEX IF NOT EXISTS idx_agent_turns_session_item ON agent_turns (session_id, first_item);
CREATE INDEX IF NOT EXISTS idx_agent_turns_branch
    ON agent_turns (branch_id) WHERE branch_id IS NOT NULL;
CREATE TABLE IF NOT EXISTS agent_claims (
    session_id varchar NOT NULL PRIMARY KEY,
    holder text,
    since timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    waiting text[] DEFAULT '{}' NOT NULL,
    seen_at timestamptz[] DEFAULT '{}' NOT NULL,
    changes bigint DEFAULT 1 NOT NULL
);
CREATE INDEX IF NOT EXISTS idx_agent_turns_waiting
    ON agent_turns (session_id) WHERE state IS NOT NULL;
"""
"""A turn's items are those of its conversation from `first_item` up to the next turn's: ids of
`agent_messages`, or of `agent_branch_items` where `branch_id` says which. A run that stored nothing
has none. `after_item` is what a branch stood behind; NULL is the beginning.

A claim is on a conversation that may not be there yet, so nothing ties it to one. `waiting` is the
line behind its holder, `seen_at` when each of them last asked. Moments with a zone: roles may
differ in theirs."""

LOCK = 0x6C616B6562617365
"""`lakebase` in ASCII: a key for the advisory lock that nobody else uses by accident."""


def create(schema: str | None = None) -> str:
    """Statements, sent as one string, that make the tables that are missing in one transaction.

    The lock makes the workers of a deployment queue, because `IF NOT EXISTS` alone fails when two
    come at once. What is missing is asked behind it: `CREATE INDEX IF NOT EXISTS` locks the table
    of an index that is there, so that a worker who comes late would stand in the way of those who
    write already, up to a deadlock. Beside tables that upstream made, a foreign key waits for
    whoever is writing, and holds up who comes after: not for long.

    Args:
        schema: One to make where it is missing, quoted.
    """
    create_schema = f"CREATE SCHEMA IF NOT EXISTS {schema};" if schema else ""
    return f"""
SELECT pg_advisory_xact_lock({LOCK});
{create_schema}
DO $create$
BEGIN
    IF {_missing(UPSTREAMS)} THEN
        {_UPSTREAMS}
    END IF;
    IF {_missing(OWN)} THEN
        SET LOCAL lock_timeout = '2s';
        {_OWN}
    END IF;
END
$create$
"""


def _missing(names: tuple[str, ...]) -> str:
    listed = ",".join(names)
    return f"EXISTS (SELECT FROM unnest('{{{listed}}}'::text[]) AS t WHERE to_regclass(t) IS NULL)"
