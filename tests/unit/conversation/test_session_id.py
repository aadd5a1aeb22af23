"""Request -> session id: where it is looked for, what it may be, and whose it is."""

from __future__ import annotations

import enum
import logging
import unicodedata
import uuid
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
import uuid_utils
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lakebase_sessions import InvalidSessionId, InvalidUser, get_session_id
from lakebase_sessions.conversation.session_id import (
    check_session_id,
    scope_to_user,
    user_prefix,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns of its own type hints
    from mlflow.types.responses import ResponsesAgentRequest

LOGGER = "lakebase_sessions.conversation.session_id"
A_UUID = "0193d5b2-7c1e-7000-8000-0123456789ab"


def agent_request(
    custom_inputs: dict[str, Any] | None = None, conversation_id: str | None = None
) -> ResponsesAgentRequest:
    fields: dict[str, Any] = {"input": [{"role": "user", "content": "Hello"}]}
    if custom_inputs is not None:
        fields["custom_inputs"] = custom_inputs
    if conversation_id is not None:
        fields["context"] = {"conversation_id": conversation_id}
    return ResponsesAgentRequest(**fields)


def storable(text: object) -> bool:
    """Whether Postgres can keep it as a session id: the rule in other words than the code's."""
    return (
        type(text) is str
        and 1 <= len(text) <= 255
        and not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)
        and len(text.encode("utf-8")) > 0
    )


PLACES: dict[str, Callable[[Any], object]] = {
    "custom_inputs of an agent request": lambda value: agent_request({"session_id": value}),
    "custom_inputs of a body": lambda value: {"custom_inputs": {"session_id": value}},
    "context of a body": lambda value: {"context": {"conversation_id": value}},
    "conversation of a body": lambda value: {"conversation": value},
    "id of a body's conversation": lambda value: {"conversation": {"id": value}},
    "custom_inputs of an object": lambda value: SimpleNamespace(
        custom_inputs={"session_id": value}, context=None
    ),
    "context object of an object": lambda value: SimpleNamespace(
        context=SimpleNamespace(conversation_id=value)
    ),
}

in_every_place = pytest.mark.parametrize("place", list(PLACES.values()), ids=list(PLACES))


class TestWhereItIsLookedFor:
    @in_every_place
    def test_every_place(self, place: Callable[[Any], object]) -> None:
        assert get_session_id(place("trip-7")) == "trip-7"

    def test_context_of_an_agent_request(self) -> None:
        assert get_session_id(agent_request(conversation_id="trip-7")) == "trip-7"

    @pytest.mark.parametrize(
        "request_",
        [
            agent_request({"session_id": "first"}, "second"),
            {
                "custom_inputs": {"session_id": "first"},
                "context": {"conversation_id": "second"},
                "conversation": "third",
            },
            {"context": {"conversation_id": "first"}, "conversation": {"id": "third"}},
        ],
        ids=["agent request", "body", "body without custom_inputs"],
    )
    def test_the_order(self, request_: object) -> None:
        assert get_session_id(request_) == "first"

    @pytest.mark.parametrize("absent", [None, ""], ids=["None", "empty"])
    def test_an_absent_id_gives_way_to_the_next_place(self, absent: str | None) -> None:
        assert get_session_id(agent_request({"session_id": absent}, "next")) == "next"
        body = {
            "custom_inputs": {"session_id": absent},
            "context": {"conversation_id": absent},
            "conversation": "next",
        }
        assert get_session_id(body) == "next"

    def test_a_bad_id_does_not_give_way(self) -> None:
        """Whoever sent it meant that conversation; another one would be a surprise."""
        with pytest.raises(InvalidSessionId, match=r"^custom_inputs\.session_id is not"):
            get_session_id(agent_request({"session_id": ["a"]}, "next"))

    def test_any_mapping_is_a_body(self) -> None:
        body = MappingProxyType({"custom_inputs": MappingProxyType({"session_id": "trip-7"})})
        assert get_session_id(body) == "trip-7"

    @pytest.mark.parametrize("holder", ["trip-7", 7, ["trip-7"], True, 1.5, b"trip-7"], ids=repr)
    @pytest.mark.parametrize("name", ["custom_inputs", "context"])
    def test_a_holder_that_cannot_hold_an_id(self, name: str, holder: object) -> None:
        with pytest.raises(InvalidSessionId, match=f"{name} must be an object with a "):
            get_session_id({name: holder})

    @pytest.mark.parametrize(
        "request_",
        [1.5, [], ("a",), b"trip-7", pytest.param(object(), id="object"), {"a"}],
        ids=repr,
    )
    def test_what_is_no_request_at_all(self, request_: object) -> None:
        with pytest.raises(InvalidSessionId, match=f"from a {type(request_).__name__}"):
            get_session_id(request_)

    def test_a_conversation_that_is_a_list(self) -> None:
        with pytest.raises(InvalidSessionId, match=r"^conversation is not a session id: .* a list"):
            get_session_id({"conversation": ["trip-7"]})


class TestWhatItMayBe:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            ("trip-7", "trip-7"),
            (" a b ", " a b "),
            ("Zoë 🦆 'x' \"y\"; DROP TABLE %s", "Zoë 🦆 'x' \"y\"; DROP TABLE %s"),
            (0, "0"),
            (-7, "-7"),
            (10**254, str(10**254)),
            (uuid.UUID(A_UUID), A_UUID),
            (uuid_utils.UUID(A_UUID), A_UUID),
            ("x" * 255, "x" * 255),
            ("🦆" * 255, "🦆" * 255),
        ],
        ids=[
            "plain",
            "blanks",
            "odd",
            "zero",
            "negative",
            "255 digits",
            "uuid",
            "uuid_utils",
            "255",
            "255 beyond the BMP",
        ],
    )
    def test_good_ones(self, value: object, text: str) -> None:
        for request in (value, {"custom_inputs": {"session_id": value}}):
            found = get_session_id(request)
            assert found == text
            assert storable(found)

    @pytest.mark.parametrize(
        ("value", "fault"),
        [
            (True, "a boolean"),
            (False, "a boolean"),
            (1.5, "a float"),
            (float("nan"), "a float"),
            (["a"], "a list"),
            ([], "a list"),
            ({"id": {"id": "a"}}, "a dict"),
            (("a",), "a tuple"),
            (b"a", "a bytes"),
            (object(), "a object"),
            (10**255, "256 characters"),
            (10**5000, "more than 255 digits"),
            (-(10**5000), "more than 255 digits"),
            ("x" * 256, "256 characters"),
            ("x" * 1_000_000, "1000000 characters"),
            ("a\x00b", r"control character \(U\+0000\)"),
            ("a\nb", r"control character \(U\+000A\)"),
            ("a\x7fb", r"control character \(U\+007F\)"),
            ("a\x85b", r"control character \(U\+0085\)"),
            ("a\ud800b", r"lone surrogate \(U\+D800\)"),
            ("\udfff", r"lone surrogate \(U\+DFFF\)"),
        ],
        ids=[
            "True",
            "False",
            "float",
            "nan",
            "list",
            "empty list",
            "nested",
            "tuple",
            "bytes",
            "object",
            "256 digits",
            "5001 digits",
            "-5001 digits",
            "256",
            "a million",
            "NUL",
            "newline",
            "DEL",
            "NEL",
            "high surrogate",
            "low surrogate",
        ],
    )
    @pytest.mark.parametrize("name", ["custom_inputs", "context"])
    def test_bad_ones(self, name: str, value: object, fault: str) -> None:
        member = {"custom_inputs": "session_id", "context": "conversation_id"}[name]
        with pytest.raises(InvalidSessionId, match=f"^{name}.{member} is not.*{fault}") as raised:
            get_session_id({name: {member: value}})
        assert raised.value.http_status == 400
        str(raised.value).encode("utf-8")  # fit for a log and an HTTP answer
        assert str(raised.value).isprintable()

    @pytest.mark.parametrize(
        "value", [True, "x" * 256, "a\x00b", 10**5000], ids=lambda v: type(v).__name__
    )
    def test_bad_ones_given_directly(self, value: object) -> None:
        with pytest.raises(InvalidSessionId):
            get_session_id(value)

    @pytest.mark.parametrize(
        "value",
        ["q" * 256, "q" * 100 + "\x00" + "q" * 100, "é" * 200 + "\ud800"],
        ids=["too long", "control character", "surrogate"],
    )
    def test_the_message_never_holds_the_whole_of_a_long_one(self, value: str) -> None:
        with pytest.raises(InvalidSessionId) as raised:
            get_session_id(value)
        message = str(raised.value)
        assert value not in message
        assert "q" * 60 not in message
        assert len(message) < 400

    def test_a_member_of_a_str_enum_is_its_value(self) -> None:
        class Sessions(str, enum.Enum):  # noqa: UP042 - how it is written before Python 3.11
            TRIP = "trip-7"

        class Newer(enum.StrEnum):
            TRIP = "trip-7"

        assert get_session_id(Newer.TRIP) == "trip-7"
        assert get_session_id(Sessions.TRIP) == "trip-7"

    def test_a_str_that_prints_as_something_else(self) -> None:
        """What is stored is what was checked, whatever a subclass makes of `str()`."""

        class Empty(str):
            __slots__ = ()

            def __str__(self) -> str:
                return ""

        assert get_session_id(Empty("trip-7")) == "trip-7"

    @in_every_place
    def test_an_array_is_not_an_id(self, place: Callable[[Any], object]) -> None:
        """Comparing an array gives an array, and asking whether that is true raises."""

        class Array:
            def __eq__(self, other: object) -> Any:
                return self

            def __hash__(self) -> int:
                return 0

            def __bool__(self) -> bool:
                raise ValueError("The truth value of an array is ambiguous.")

        with pytest.raises(InvalidSessionId, match="a Array"):
            get_session_id(place(Array()))

    def test_check_session_id_names_the_place(self) -> None:
        with pytest.raises(InvalidSessionId, match=r"^header X-Session is not a session id"):
            check_session_id("\n", "header X-Session")

    @pytest.mark.parametrize("absent", [None, ""], ids=["None", "empty"])
    def test_check_session_id_of_nothing(self, absent: str | None) -> None:
        assert check_session_id(absent) is None


class TestWhereThereIsNone:
    @pytest.mark.parametrize(
        "request_",
        [
            None,
            "",
            {},
            agent_request(),
            agent_request({}),
            agent_request({"session_id": None}),
            agent_request({"session_id": ""}, ""),
            {"custom_inputs": None, "context": None, "conversation": None},
            {"custom_inputs": {}, "context": {}, "conversation": {}},
            {"conversation": ""},
            {"conversation": {"id": ""}},
            SimpleNamespace(custom_inputs=None),
            SimpleNamespace(context=SimpleNamespace()),
        ],
        ids=lambda value: str(value)[:60] or "''",
    )
    def test_a_new_one_is_made(self, request_: object) -> None:
        made = get_session_id(request_)
        assert uuid.UUID(made).version == 7
        assert made != get_session_id(request_)

    def test_the_log_says_what_to_do_about_it(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, LOGGER):
            made = get_session_id({"input": []})
        [record] = caplog.records
        assert record.levelno == logging.INFO
        assert made in record.getMessage()
        assert "pass the same session_id in custom_inputs" in record.getMessage()
        assert "custom_inputs.session_id, context.conversation_id" in record.getMessage()

    def test_nothing_is_logged_where_there_is_one(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.DEBUG, LOGGER):
            get_session_id({"custom_inputs": {"session_id": "trip-7"}})
        assert not caplog.records

    def test_a_session_id_at_the_top_level_does_not_count(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, LOGGER):
            assert get_session_id({"session_id": "trip-7"}) != "trip-7"
        [record] = caplog.records
        assert "session_id at its top level" in record.getMessage()
        assert "custom_inputs" in record.getMessage()

    @pytest.mark.parametrize("absent", [None, ""], ids=["None", "empty"])
    def test_a_blank_one_at_the_top_level_is_nothing_to_warn_of(
        self, absent: str | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, LOGGER):
            get_session_id({"session_id": absent})
        assert not caplog.records


any_text = st.text(st.characters())
"""With control characters and, unlike Hypothesis' own default, lone surrogates."""
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([253, 254, 255, 307, 5000]).map(lambda digits: 10**digits)
    | st.floats()
    | any_text
    | st.text(min_size=250, max_size=260)
    | st.uuids()
)
json_like = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=5,
)
anything = json_like | st.binary() | st.builds(object) | st.builds(uuid_utils.uuid7)


def _holders(member: str) -> st.SearchStrategy[Any]:
    fields = st.fixed_dictionaries({}, optional={member: anything})
    return fields | fields.map(lambda found: SimpleNamespace(**found)) | anything


bodies = st.fixed_dictionaries(
    {},
    optional={
        "custom_inputs": _holders("session_id"),
        "context": _holders("conversation_id"),
        "conversation": _holders("id"),
        "session_id": anything,
    },
)
requests = (
    anything
    | bodies
    | bodies.map(lambda body: SimpleNamespace(**body))
    | st.builds(
        agent_request,
        st.none() | st.dictionaries(st.just("session_id") | any_text, json_like, max_size=2),
        st.none() | st.text(),
    )
)


@settings(deadline=None, max_examples=500)
@given(requests)
def test_whatever_goes_in_a_storable_id_or_invalid_session_id_comes_out(request: object) -> None:
    try:
        found = get_session_id(request)
    except InvalidSessionId:
        return
    assert storable(found)


@settings(deadline=None)
@given(any_text, st.sampled_from(list(PLACES.values())))
def test_a_storable_text_is_taken_as_it_is_and_no_other(
    text: str, place: Callable[[Any], object]
) -> None:
    assume(text != "")
    if storable(text):
        assert get_session_id(place(text)) == text
    else:
        with pytest.raises(InvalidSessionId):
            get_session_id(place(text))


class TestUsers:
    def test_the_stored_id(self) -> None:
        assert scope_to_user("trip-7", "zoë@example.com") == "zo%C3%AB%40example.com:trip-7"

    def test_no_user_leaves_the_id_alone(self) -> None:
        assert scope_to_user("trip-7", None) == "trip-7"

    def test_an_id_that_was_handed_out_can_be_sent_back(self) -> None:
        handed_out = scope_to_user("trip-7", "ann")
        assert scope_to_user(handed_out, "ann") == handed_out

    def test_a_stolen_id_opens_another_conversation(self) -> None:
        stolen = scope_to_user("trip-7", "ann")
        assert scope_to_user(stolen, "bob") == "bob:ann:trip-7"

    def test_the_prefix_alone_is_an_id_like_any_other(self) -> None:
        assert scope_to_user("ann:", "ann") == "ann:ann:"

    @pytest.mark.parametrize(
        ("one", "other"), [("ann", "ann:x"), ("a/b", "a%2Fb"), ("Ann", "ann"), ("ann", "ann ")]
    )
    def test_users_that_look_alike_are_two(self, one: str, other: str) -> None:
        assert not user_prefix(one).startswith(user_prefix(other))
        assert not user_prefix(other).startswith(user_prefix(one))

    @pytest.mark.parametrize("user", ["", "  ", "\t\n", 7, b"ann", True, ["ann"]], ids=repr)
    def test_a_blank_user_is_not_nobody(self, user: Any) -> None:
        with pytest.raises(InvalidUser, match="non-empty string") as raised:
            scope_to_user("trip-7", user)
        assert raised.value.http_status == 400
        with pytest.raises(InvalidUser, match="non-empty string"):
            user_prefix(user)

    def test_a_lone_surrogate_cannot_be_encoded(self) -> None:
        with pytest.raises(InvalidUser, match="lone surrogate") as raised:
            scope_to_user("trip-7", "ann\ud800")
        str(raised.value).encode("utf-8")

    def test_control_characters_of_a_user_are_encoded(self) -> None:
        assert scope_to_user("trip-7", "a\nb") == "a%0Ab:trip-7"

    def test_255_characters_hold_both(self) -> None:
        assert len(scope_to_user("x" * 251, "ann")) == 255
        with pytest.raises(InvalidSessionId, match="256 characters long with its user"):
            scope_to_user("x" * 252, "ann")

    def test_the_message_never_holds_the_whole_of_a_long_user(self) -> None:
        user = "u" * 300 + "\ud800"
        with pytest.raises(InvalidUser) as raised:
            scope_to_user("trip-7", user)
        assert "u" * 61 not in str(raised.value)


users = any_text.filter(lambda text: text.strip() != "") | st.sampled_from(
    ["a", "A", "a:", "a%3A", ":", "%", "a@example.com", "a%40example.com", "u" * 300]
)
good_ids = any_text.filter(storable) | st.builds(
    lambda user, rest: f"{quote(user, safe='', errors='replace')}:{rest}"[:255],
    users,
    st.text("ab:%", max_size=5),
).filter(storable)
"""Ids, and ids that pose as some user's."""


def scoped(session_id: str, user: str) -> str | None:
    """The stored id, or None where both together cannot be stored."""
    try:
        return scope_to_user(session_id, user)
    except (InvalidSessionId, InvalidUser):
        return None


@settings(deadline=None)
@given(good_ids, users)
def test_a_scoped_id_is_storable_and_scoping_it_again_changes_nothing(
    session_id: str, user: str
) -> None:
    stored = scoped(session_id, user)
    assume(stored is not None)
    assert stored is not None
    assert storable(stored)
    assert stored.startswith(user_prefix(user))
    assert len(stored) > len(user_prefix(user))
    assert scope_to_user(stored, user) == stored


@settings(deadline=None)
@given(good_ids, good_ids, users, users)
@example("a:x", "x", "a", "a:a")
@example("a%3Aa:x", "x", "a", "a:a")
def test_no_id_of_one_user_is_ever_stored_as_another_users(
    session_id: str, other_id: str, user: str, other_user: str
) -> None:
    assume(user != other_user)
    stored, other = scoped(session_id, user), scoped(other_id, other_user)
    assert stored is None or stored != other


@settings(deadline=None)
@given(good_ids, good_ids, users)
def test_two_ids_of_one_user_stay_two(session_id: str, other_id: str, user: str) -> None:
    """Unless one of them is the other one as it was handed out."""
    stored, other = scoped(session_id, user), scoped(other_id, user)
    assume(stored is not None and session_id != other_id)
    assume(stored not in (session_id, other_id))
    assert stored != other


def test_a_mapping_is_read_and_not_changed() -> None:
    body: Mapping[str, Any] = MappingProxyType({"custom_inputs": {"session_id": 7}})
    get_session_id(body)
    assert body == {"custom_inputs": {"session_id": 7}}
