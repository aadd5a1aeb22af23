"""What an Agents SDK session has to do, as tests that any session class can be put to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from agents import Agent, RunConfig, Runner, SessionSettings
from agents.memory import Session

from lakebase_sessions.testing.model import OfflineModel

MakeSession = Callable[[str], Session]
"""Session id -> a new object for that session."""


def said(count: int, start: int = 0) -> list[Any]:
    """So many user messages, numbered."""
    return [{"role": "user", "content": f"message {n}"} for n in range(start, start + count)]


def numbers(items: list[Any]) -> list[int]:
    """The numbers of messages from `said`."""
    return [int(str(item["content"]).split()[1]) for item in items]


class SessionContract:
    """The contract of a session of the Agents SDK; inherit it, and say how one is made.

    The fixture `make_session` gives a function that takes a session id and returns a new object
    for that session; two for one id are two clients of it. Every test begins without sessions.
    The tests are async: pytest-asyncio runs them in its auto mode, in strict mode with
    `@pytest.mark.asyncio` on the class; anyio with `@pytest.mark.anyio`.

    What a class does not keep can be marked in its subclass, so that the day is seen on which it
    does: override the test with `pytest.mark.xfail(strict=True)` and call `super()`.

    Example::

        from agents import SQLiteSession
        from lakebase_sessions.testing import SessionContract

        class TestSQLite(SessionContract):
            @pytest.fixture
            def make_session(self, tmp_path):
                return lambda session_id: SQLiteSession(session_id, tmp_path / "sessions.db")
    """

    @pytest.fixture
    def make_session(self) -> MakeSession:
        """How a session is made; a subclass says it."""
        pytest.fail(
            f"{type(self).__name__} needs a fixture `make_session`: a function that takes a "
            "session id and returns a session.",
            pytrace=False,
        )

    async def test_it_is_a_session(self, make_session: MakeSession) -> None:
        """It has the protocol's methods, and its id."""
        session = make_session("s")
        assert isinstance(session, Session)
        assert session.session_id == "s"

    # Reading and writing

    async def test_a_new_session_is_empty(self, make_session: MakeSession) -> None:
        """Reading, popping and clearing what is not there is no error."""
        session = make_session("s")
        assert await session.get_items() == []
        assert await session.pop_item() is None
        await session.clear_session()
        assert await session.get_items() == []

    async def test_items_come_back_in_order(self, make_session: MakeSession) -> None:
        """Within one write and from one to the next, to whoever asks."""
        session = make_session("s")
        await session.add_items(said(3))
        await session.add_items(said(2, start=3))
        assert await session.get_items() == said(5)
        assert await make_session("s").get_items() == said(5)

    async def test_a_thousand_items_keep_their_order(self, make_session: MakeSession) -> None:
        """A long history that is written at once."""
        session = make_session("s")
        await session.add_items(said(1000))
        assert await session.get_items() == said(1000)

    async def test_no_items_is_no_write(self, make_session: MakeSession) -> None:
        """An empty list changes nothing."""
        session = make_session("s")
        await session.add_items([])
        await session.add_items(said(1))
        await session.add_items([])
        assert await session.get_items() == said(1)

    async def test_items_are_what_was_written(self, make_session: MakeSession) -> None:
        """Tool calls, nested content, numbers and null, keys in their order."""
        items: list[Any] = [
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": [1, null]}'},
            {"type": "function_call_output", "call_id": "c", "output": "7"},
            {"z": None, "role": "user", "content": [{"type": "input_text", "text": "deep"}]},
            {"role": "user", "content": "", "n": [1, 1.5, True, None, {"x": {}}]},
        ]
        session = make_session("s")
        await session.add_items(items)
        stored: list[Any] = await session.get_items()
        assert stored == items
        assert [list(item) for item in stored] == [list(item) for item in items]

    async def test_any_text_survives(self, make_session: MakeSession) -> None:
        """NUL, a lone surrogate, every script, and what means something to a database."""
        texts = ["\x00", "\ud800", "\U0001f30d žluťoučký", "\\ ' \" %s {} :x $1 --", "a\r\nb\u2028"]
        items: list[Any] = [{"role": "user", "content": text} for text in texts]
        session = make_session("s")
        await session.add_items(items)
        assert await session.get_items() == items

    async def test_what_is_read_is_a_copy(self, make_session: MakeSession) -> None:
        """Who changes it, or what was written, changes nothing that is stored."""
        session = make_session("s")
        written = said(1)
        await session.add_items(written)
        written[0]["content"] = "changed"
        read: list[Any] = await session.get_items()
        read[0]["content"] = "changed"
        assert await session.get_items() == said(1)

    async def test_what_is_no_json_is_refused_whole(self, make_session: MakeSession) -> None:
        """No item of a write that fails is stored."""
        session = make_session("s")
        items: list[Any] = [*said(1), {"role": "user", "content": object()}]
        with pytest.raises(Exception):  # noqa: B017, PT011 - which one is the class's own affair
            await session.add_items(items)
        assert await session.get_items() == []

    # Limits

    @pytest.mark.parametrize("limit", [0, 1, 3, 5, 99])
    async def test_a_limit_takes_the_latest(self, make_session: MakeSession, limit: int) -> None:
        """In the order in which they were written."""
        session = make_session("s")
        await session.add_items(said(5))
        assert await session.get_items(limit=limit) == said(5)[5 - min(limit, 5) :]

    async def test_a_negative_limit_is_refused(self, make_session: MakeSession) -> None:
        """It is a mistake, and not all there is."""
        session = make_session("s")
        await session.add_items(said(2))
        with pytest.raises(Exception):  # noqa: B017, PT011 - as above
            await session.get_items(limit=-1)

    async def test_the_settings_limit_counts(self, make_session: MakeSession) -> None:
        """Unless the call names another."""
        session = make_session("s")
        await session.add_items(said(5))
        session.session_settings = SessionSettings(limit=2)
        assert await session.get_items() == said(5)[3:]
        assert await session.get_items(limit=4) == said(5)[1:]

    # Taking away

    async def test_pop_takes_the_latest_and_then_nothing(self, make_session: MakeSession) -> None:
        """And what is written afterwards stands where it stood."""
        session = make_session("s")
        await session.add_items(said(2))
        assert await session.pop_item() == said(2)[1]
        await session.add_items(said(1, start=7))
        assert await session.get_items() == [*said(1), *said(1, start=7)]
        assert [await session.pop_item() for _ in range(3)] == [*said(1, start=7), *said(1), None]

    async def test_clear_takes_all_of_one_session(self, make_session: MakeSession) -> None:
        """Others keep theirs, and it can be written to again."""
        session, other = make_session("s"), make_session("other")
        await session.add_items(said(3))
        await other.add_items(said(1))
        await session.clear_session()
        assert await session.get_items() == []
        assert await other.get_items() == said(1)
        await session.add_items(said(1, start=5))
        assert await session.get_items() == said(1, start=5)

    # Who has which

    async def test_sessions_are_apart(self, make_session: MakeSession) -> None:
        """Reading and popping, too."""
        await make_session("one").add_items(said(1))
        assert await make_session("two").get_items() == []
        assert await make_session("two").pop_item() is None
        assert await make_session("one").get_items() == said(1)

    async def test_ids_are_data(self, make_session: MakeSession) -> None:
        """Quotes, wildcards, SQL, case, blanks: an id like any other."""
        ids = [
            *("'; DROP TABLE agent_messages; --", "%(session_id)s", "a%", "a_c", "abc", "ABC"),
            *("ü🌍", "a/b", "a:b", "x" * 255),
        ]
        for number, session_id in enumerate(ids):
            await make_session(session_id).add_items(said(1, start=number))
        for number, session_id in enumerate(ids):
            assert await make_session(session_id).get_items() == said(1, start=number)

    # Several at a time

    async def test_concurrent_first_writes_are_all_kept(self, make_session: MakeSession) -> None:
        """Twenty clients begin one session."""
        await asyncio.gather(
            *(make_session("s").add_items(said(1, start=number)) for number in range(20))
        )
        assert sorted(numbers(await make_session("s").get_items())) == list(range(20))

    async def test_concurrent_writes_are_kept_together(self, make_session: MakeSession) -> None:
        """The items of one write are not mixed with another's."""
        await make_session("s").add_items(said(1, start=60))
        await asyncio.gather(
            *(make_session("s").add_items(said(3, start=number)) for number in range(0, 60, 3))
        )
        found = numbers(await make_session("s").get_items())[1:]
        assert sorted(found) == list(range(60))
        for place in range(0, 60, 3):
            first = found[place]
            assert found[place : place + 3] == [first, first + 1, first + 2]

    async def test_an_item_is_popped_once(self, make_session: MakeSession) -> None:
        """Of several who pop, each gets another item or none."""
        await make_session("s").add_items(said(6))
        popped: list[Any] = await asyncio.gather(*(make_session("s").pop_item() for _ in range(8)))
        assert sorted(numbers([item for item in popped if item])) == list(range(6))

    async def test_sessions_in_parallel_do_not_meet(self, make_session: MakeSession) -> None:
        """Each reads back what it wrote."""

        async def one(number: int) -> None:
            session = make_session(f"s{number}")
            await session.add_items(said(2, start=number))
            assert await session.get_items() == said(2, start=number)

        await asyncio.gather(*(one(number) for number in range(10)))

    async def test_a_cancelled_write_is_whole_or_absent(self, make_session: MakeSession) -> None:
        """Wherever the cancellation strikes; by the time it is seen, that is settled."""
        session = make_session("s")
        await session.add_items(said(1))
        for steps in (0, *(2**n for n in range(13))):
            await session.clear_session()
            writing = asyncio.ensure_future(session.add_items(said(3)))
            for _ in range(steps):
                await asyncio.sleep(0)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            found = await session.get_items()
            assert found in ([], said(3))
            await asyncio.sleep(0.01)
            assert await session.get_items() == found

    async def test_a_session_goes_from_loop_to_loop(self, make_session: MakeSession) -> None:
        """As with `Runner.run_sync` and `asyncio.run`, which make loops and close them."""
        session = make_session("s")
        await session.add_items(said(1))

        def elsewhere(number: int) -> None:
            asyncio.run(asyncio.wait_for(session.add_items(said(1, start=number)), 10))

        await asyncio.to_thread(elsewhere, 1)
        await asyncio.to_thread(elsewhere, 2)
        assert await session.get_items() == said(3)

    # With the Runner

    async def test_an_agent_remembers(self, make_session: MakeSession) -> None:
        """Its second run knows what the first was told, and both are stored."""
        agent = Agent(name="Assistant", model=OfflineModel())
        quiet = RunConfig(tracing_disabled=True)
        told = "Hello, I live in SF!"
        await Runner.run(agent, told, session=make_session("s"), run_config=quiet)
        asked = "Where do I live?"
        result = await Runner.run(agent, asked, session=make_session("s"), run_config=quiet)
        assert result.final_output == "You said that you live in SF."
        assert len(await make_session("s").get_items()) == 4
