"""Items and their stored form: what is read is what Python's own parser reads."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lakebase_sessions.conversation.items import decode

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**400), max_value=10**400)
    | st.floats()
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
    max_leaves=20,
)


def same(one: Any, other: Any) -> bool:
    """Equal, NaN and the sign of zero too, and of the same types."""
    return json.dumps(one) == json.dumps(other) and repr(one) == repr(other)


def _storable(text: str) -> bool:
    """Whether Postgres, and so a row, can hold it."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


@given(json_values, st.booleans())
def test_whatever_json_writes(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assume(_storable(text))
    assert same(decode([text]), [json.loads(text)])


@given(st.text(st.sampled_from('{}[]",:\\/ 0123456789.eE+-truefalsnNaIity\u00e9\t\n\x00')))
def test_any_text(text: str) -> None:
    """What is JSON to Python is the same here; what is not is passed over."""
    try:
        expected = [json.loads(text)]
    except ValueError:
        expected = []
    assert same(decode([text]), expected)


@pytest.mark.parametrize(
    "text",
    [
        *("NaN", "-Infinity", "1e400", "-0", "-0.0", "1E5", "1e-400", "9007199254740993.0"),
        *("1" * 4300, "1" * 4301, "1" * 5000),
        *('"\\ud800"', '"\\u0000"', '"\\ud83d\\ude00"', '"\\udc00\\ud800"', '{"a":1,"a":2}'),
        *("[" * 199 + "]" * 199, "[" * 201 + "]" * 201, "[" * 400 + "]" * 400),
        *("[1,]", "01", ".5", "1.", "\ufeff1", "", " ", "[1] x", "{'a': 1}", "1,2", "\x0b1"),
    ],
)
def test_corners(text: str) -> None:
    try:
        expected = [json.loads(text)]
    except ValueError:
        expected = []
    assert same(decode([text, "{}"]), [*expected, {}])


def test_no_row_runs_into_the_next() -> None:
    rows: list[Any] = decode(['{"a": 1}, {"b": 2}', "[", "]", '{"c": 3}'])
    assert rows == [{"c": 3}]
