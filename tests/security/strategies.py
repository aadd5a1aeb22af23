"""What a client may send: JSON of every shape, and text with everything that text can hold."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

any_text = st.text(st.characters(), max_size=20)
"""With NUL, control characters and lone surrogates."""

hostile_text = st.sampled_from(
    [
        "'; DROP TABLE agent_messages; --",
        '"; DROP SCHEMA public CASCADE; --',
        "%(session_id)s",
        "$1",
        "\\",
        "\\'; SELECT pg_sleep(60); --",
        "{0.__class__}",
        "../../api/2.0/token/create",
        "a\r\nX-Forwarded-User: root",
        "mia%40example.com:s",
    ]
)
texts = any_text | hostile_text

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
json_objects = st.dictionaries(texts, json_values, max_size=4)


def nested(depth: int) -> Any:
    """Lists in lists: what recursive code runs out of stack on."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value
