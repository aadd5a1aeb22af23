"""Edit: whether what a client sends takes the place of turns that are stored, and of which."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from lakebase_sessions.conversation.history import Parting, parting, role_of
from lakebase_sessions.conversation.items import decode
from lakebase_sessions.conversation.records import is_users
from lakebase_sessions.errors import InvalidTurn, TurnNotFound

if TYPE_CHECKING:
    from agents.items import TResponseInputItem

OnEdit = Literal["rewind", "fork", "append"]
"""What becomes of the turns that an edit leaves: a branch of the conversation; or nothing, because
the edited turn goes into a fork; or nothing, because it is appended."""

_OPENING_LENGTH = 100
"""Characters of the first words that are looked for: enough to tell conversations apart."""


class Stored(NamedTuple):
    """An item as it was read."""

    id: int
    item: TResponseInputItem
    last_item: int | None = None
    """The id of the last item of the turn whose record begins with this one."""


def stored_items(rows: list[tuple[int, str, int | None]]) -> list[Stored]:
    """The items of rows (id, text, `last_item`); one that is no JSON is passed over."""
    items = decode([text for _, text, _ in rows])
    if len(items) < len(rows):
        rows = [row for row in rows if decode([row[1]])]
    return [
        Stored(number, item, last_item)
        for (number, _, last_item), item in zip(rows, items, strict=True)
    ]


def turn_starts(rows: Sequence[Stored]) -> list[int]:
    """The places where turns begin, as `session.turns()` has it.

    At the first item of a record, and where there is none, at each message of a user behind
    something else.
    """
    found = []
    recorded_to = -1
    after_user = False
    for place, (number, item, last_item) in enumerate(rows):
        if last_item is not None:
            recorded_to = max(recorded_to, last_item)
        users = is_users(item)
        if last_item is not None or (users and not after_user and number > recorded_to):
            found.append(place)
        after_user = users
    return found


def replaced_from(rows: Sequence[Stored], parted: Parting) -> int | None:
    """The place from which what a client sent replaces what is stored; None if it is no edit.

    It is one where the conversation was resent from its beginning, with words of the assistant, and
    there is a question behind what the client shows of it. A client that missed an answer, or shows
    no tool items, has missed no question.

    Args:
        rows: The whole conversation, oldest first.
        parted: Where what the client sent leaves it.
    """
    if not parted.from_beginning or parted.is_ambiguous:
        return None
    places = range(parted.stored, len(rows))
    asked = next((place for place in places if is_users(rows[place].item)), None)
    if asked is None:
        return None
    # The turn may begin before it: other messages may have been sent with it.
    return max((start for start in turn_starts(rows) if start <= asked), default=None)


class Edit:
    """What a client sends, where that may take the place of turns that are stored.

    Args:
        sent: The items, to be compared with what is stored; None if that is not to decide.
        turn: The number of the turn that the client says this is. Then it decides alone.
        forks: Whether the edited turn goes into a fork.
    """

    def __init__(
        self, sent: list[Any] | None, *, turn: int | None = None, forks: bool = False
    ) -> None:
        self._sent = sent
        self.turn = turn
        self.forks = forks
        self.is_decided = False
        self.cut: int | None = None
        """The id of the item from which on is replaced; None if nothing is."""
        self.number: int | None = None
        """Of the turn, where that is known by now."""
        self.parted: Parting | None = None
        """What of `sent` is new, and known by more than a window."""

    @classmethod
    def of(
        cls, sent: list[Any], turn: object, on_edit: OnEdit, *, compared: bool = True
    ) -> Edit | None:
        """The edit that a request may be; None where it can be none.

        Args:
            sent: What the client sends.
            turn: Which turn the client says this is.
            on_edit: What becomes of the turns it replaces.
            compared: Whether content is to decide where `turn` does not.

        Raises:
            InvalidTurn: `turn` is not a whole number from 1, or None.
            ValueError: `on_edit` is another word.
        """
        if on_edit not in get_args(OnEdit):
            raise ValueError(f"on_edit is one of {', '.join(get_args(OnEdit))}; not {on_edit!r}.")
        number = checked_turn(turn)
        # Without the assistant's words nothing tells an edit from something new.
        speaks = compared and any(role_of(item) == "assistant" for item in sent[:-1])
        if on_edit == "append" or (number is None and not speaks):
            return None
        return cls(sent if speaks else None, turn=number, forks=on_edit == "fork")

    def parameters(self) -> dict[str, str | None]:
        """For the statement that reads."""
        return {
            "opening": opening(self._sent) if self._sent is not None else None,
            "turn": None if self.turn is None else str(self.turn),
        }

    def decide(
        self,
        rows: list[tuple[int, str, int | None]],
        *,
        is_all: bool,
        cut: int | None,
        turns: int,
    ) -> None:
        """Find out, once.

        Args:
            rows: What was read, oldest first: as `stored_items` takes it.
            is_all: Whether that is the whole conversation.
            cut: The id of the first item of turn number `turn`.
            turns: How many turns there are, if `turn` is given.

        Raises:
            TurnNotFound: Turn number `turn` is neither there nor the next.
        """
        self.is_decided = True
        if self.turn is not None:
            if self.turn > turns + 1:
                raise TurnNotFound(
                    f"The client says that this is turn {self.turn}, and the conversation has "
                    f"{turns}, so nothing was run. custom_inputs['turn'] is the number of a turn "
                    f"that is to be replaced, or {turns + 1} for the next; custom_outputs['turn'] "
                    "tells it."
                )
            self.cut, self.number = cut, self.turn
        if self._sent is None or not is_all:
            return
        stored = stored_items(rows)
        items = [row.item for row in stored]
        if self.turn is not None:
            place = next((at for at, row in enumerate(stored) if row.id == cut), len(stored))
        else:
            self.parted = parting(items, self._sent)
            found = replaced_from(stored, self.parted)
            if found is None:
                return
            place = found
            self.cut, self.number = stored[place].id, turn_starts(stored).index(place) + 1
        self.parted = parting(items[:place], self._sent)


def named_turn(custom_inputs: Mapping[str, Any] | None) -> object:
    """The turn that a request names.

    None where a client sends back the `custom_outputs` of the answer before, as they are: their
    `turn` is the one that is over, and to replace it is not what that client means.
    """
    inputs = custom_inputs or {}
    return None if "response_id" in inputs else inputs.get("turn")


def checked_turn(value: object) -> int | None:
    """`value`, if it is the number of a turn or None.

    Raises:
        InvalidTurn: It is something else.
    """
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        kind = f"a {type(value).__name__}" if not isinstance(value, int) else f"{value!r:.40}"
        raise InvalidTurn(
            "custom_inputs['turn'] is the number of a turn, a whole number from 1; this request "
            f"has {kind}. Send the number that custom_outputs['turn'] told, or none."
        )
    return value


def opening(sent: Sequence[Any]) -> str | None:
    """How the first words that a client resends stand in a row; None where they are no text.

    A conversation without them is another one, or the client shows only its end.
    """
    for item in sent:
        if role_of(item) not in ("user", "assistant"):
            continue
        content = item.get("content")
        parts = content if isinstance(content, list) else [content]
        texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
        text = next((text for text in texts if isinstance(text, str) and text.strip()), "")
        if text:
            return json.dumps(text.strip()[:_OPENING_LENGTH])[1:-1]
        if content:
            return None
    return None
