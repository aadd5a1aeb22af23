r"""SQL expressions for what a stored item says.

A row is JSON in ASCII, written by anybody: it may be no JSON, hold `\u0000`, which no text in
Postgres can, and halves of surrogate pairs. None of that may raise: a write would fail with the
index on it.
"""

from __future__ import annotations

_ITEM = r"""
CASE WHEN strpos({row}, '\u') = 0 THEN {row} ELSE
    regexp_replace(
        regexp_replace(
            replace(replace({row}, '\\', '\u005c'), '\u0000', '\ufffd'),
            '\\ud[89ab][0-9a-f]{{2}}(?!\\ud[c-f][0-9a-f]{{2}})', '\\ufffd', 'gi'
        ),
        '(?<!\\ud[89ab][0-9a-f]{{2}})\\ud[c-f][0-9a-f]{{2}}', '\\ufffd', 'gi'
    )
END::json
"""
r"""`\u005c` is another way to write `\\`: with it, each `\u` that is left begins an escape."""

_SAID = r"""
CASE WHEN strpos({row}, '"user"') > 0 OR strpos({row}, '"assistant"') > 0 THEN
    CASE WHEN {row} IS JSON OBJECT THEN (
        SELECT CASE json_typeof(item -> 'content')
            WHEN 'string' THEN item ->> 'content'
            WHEN 'array' THEN (
                SELECT string_agg(coalesce(part ->> 'text', part ->> 'refusal'), E'\n')
                FROM json_array_elements(item -> 'content') AS part
            )
        END
        FROM (SELECT ({item}) AS item OFFSET 0) AS parsed
        WHERE item ->> 'role' IN ('user', 'assistant')
    ) END
END
"""

_IS_USERS = """
CASE WHEN strpos({row}, '"user"') > 0 THEN
    CASE WHEN {row} IS JSON OBJECT THEN (({item}) ->> 'role') IS NOT DISTINCT FROM 'user' END
END IS TRUE
"""

_FOLDED = r"""(
    SELECT CASE WHEN octet_length(text) = length(text) THEN lower(text COLLATE "C")
        ELSE translate(
            lower(upper(normalize(text, NFKC) COLLATE {collation})), U&'\03C2\0307', U&'\03C3'
        ) COLLATE "C"
    END
    FROM (SELECT {text} AS text OFFSET 0) AS unfolded
)"""

_PLAINLY_WRITTEN = r"""
CASE WHEN {text} COLLATE "C" ~ '^[ !#-.0-[\]-~]+$' THEN lower({text} COLLATE "C") END
"""

_MAY_SAY = r"""(
    {plain} IS NULL
    OR strpos(lower({row} COLLATE "C"), {plain}) > 0
    OR strpos({row}, '\u') > 0
    OR octet_length({row}) <> length({row})
)"""

COLLATIONS = ("pg_unicode_fast", "und-x-icu", "unicode", "pg_c_utf8", "default")
"""Whose idea of upper and lower case is followed, best first; the last one is always there. A
database's own may be `C`, which knows those of English only."""


def said(row: str) -> str:
    """What the user or the assistant says in `row`; NULL for any other item.

    First a look at the text, which costs next to nothing; rows of tools are passed over by it.
    """
    return _SAID.format(row=row, item=_ITEM.format(row=row))


def is_users(row: str) -> str:
    """Whether `row` is a message of the user's."""
    return _IS_USERS.format(row=row, item=_ITEM.format(row=row))


def folded(text: str, collation: str) -> str:
    """`text` without what a search takes no notice of.

    Upper case before lower, because only so the German sharp s is what its capitals are. A final
    sigma becomes a sigma; a dot above, which the Turkish capital i leaves behind, goes.

    Args:
        text: An SQL expression.
        collation: One of `COLLATIONS`.
    """
    return _FOLDED.format(text=text, collation=f'pg_catalog."{collation}"')


def plainly_written(text: str) -> str:
    r"""`text`, folded, if it has one way to stand in a row of ASCII without `\u`; else NULL."""
    return _PLAINLY_WRITTEN.format(text=text)


def may_say(row: str, plain: str) -> str:
    """Whether `row` may say `plain`, of `plainly_written`: a look that spares most rows the rest.

    Other letters may be folded into those of ASCII, so rows that have any are not decided here.
    """
    return _MAY_SAY.format(row=row, plain=plain)
