"""Indexes of this package on upstream's tables: what makes listings and searches quick.

Nothing needs them. They are made with the tables, where these are made here; else by `init`, which
blocks nobody, and only by who owns the tables.
"""

from __future__ import annotations

from typing import NamedTuple

from lakebase_sessions.postgres.listing import GRAMS
from lakebase_sessions.postgres.said import COLLATIONS, folded, said


class Index(NamedTuple):
    """An index, and what it is of."""

    name: str
    on: str

    def create(self, *, only_missing: bool = False) -> str:
        """The statement that makes it: without blocking who writes, or where there is none."""
        how = "IF NOT EXISTS" if only_missing else "CONCURRENTLY"
        return f"CREATE INDEX {how} {self.name} ON {self.on}"


LISTING = (
    Index("idx_agent_sessions_updated", "agent_sessions (updated_at, session_id)"),
    Index("idx_agent_sessions_created", "agent_sessions (created_at, session_id)"),
    Index(
        "idx_agent_sessions_user",
        "agent_sessions (split_part(session_id, ':', 1), updated_at, session_id)",
    ),
)

SEARCH = Index("idx_agent_messages_said", f"agent_messages USING gin ({GRAMS}(message_data))")
"""Of every three bytes in a row of what was said. Bytes, and not letters or words: so that it needs
no extension and knows of no language, and one Chinese character, which is three bytes, is found
through it as a word is."""

_FUNCTION = """
CREATE OR REPLACE FUNCTION {name} (text) RETURNS integer[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE COST 10000
AS $function$
DECLARE said bytea;
BEGIN
    IF $1 IS NOT JSON OBJECT THEN
        RETURN NULL;
    END IF;
    said := convert_to({said}, 'UTF8');
    RETURN (
        SELECT array_agg(
            get_byte(said, place) << 16 | get_byte(said, place + 1) << 8 | get_byte(said, place + 2)
        )
        FROM generate_series(0, length(said) - 3) AS place
    );
END
$function$
"""


# The row is a constant to the planner here, which evaluates what constants give before any CASE is
# asked: a row that is no JSON would fail, and its write with it.


def create_function(collation: str) -> str:
    """The statement that makes the function `SEARCH` is of, with one of `said.COLLATIONS`."""
    return _FUNCTION.format(name=GRAMS, said=folded(said("$1"), collation))


STATE = """
    (
        SELECT known.collname FROM pg_collation AS known
        JOIN unnest(string_to_array(%(collations)s, ',')) WITH ORDINALITY AS wanted (name, place)
            ON wanted.name = known.collname
        WHERE known.collnamespace = 'pg_catalog'::regnamespace
            AND known.collencoding IN (-1, pg_char_to_encoding(getdatabaseencoding()))
        ORDER BY wanted.place
        LIMIT 1
    ),
    (
        SELECT indisvalid AND to_regproc(%(function)s) IS NOT NULL FROM pg_index
        WHERE indexrelid = to_regclass(%(index)s)
    )
"""
"""Columns: the collation to fold with, and whether an index leads to what was said."""

STATE_PARAMETERS = {
    "collations": ",".join(COLLATIONS),
    "function": GRAMS,
    "index": SEARCH.name,
}
