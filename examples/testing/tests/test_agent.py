"""What the travel agent remembers, of whom, and what happens when it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agents import Agent
from travel_agent import answer, travel_agent

from lakebase_sessions import Lakebase, PermissionDenied
from lakebase_sessions.testing import OfflineModel

MIA = "mia@example.com"
BEN = "ben@example.com"


@pytest.fixture
def agent() -> Agent[None]:
    """The agent with a model that knows only what the session hands it."""
    return travel_agent(OfflineModel())


async def test_it_remembers_what_it_was_told(agent: Agent[None], lakebase: Lakebase) -> None:
    """`lakebase` has set the variables: the agent's own session_for() leads to this database."""
    await answer(agent, "Hello, I live in SF!", session_id="trip-7", user=MIA)
    reply = await answer(agent, "Where do I live?", session_id="trip-7", user=MIA)
    assert reply == "You said that you live in SF."


async def test_every_step_is_stored(agent: Agent[None], lakebase: Lakebase) -> None:
    """The call of a tool and its output, too."""
    await answer(agent, "What is the weather in Rome?", session_id="trip-7", user=MIA)
    items: list[Any] = await lakebase.session("trip-7", user=MIA).get_items()
    assert [item.get("type", item.get("role")) for item in items] == [
        "user",
        "function_call",
        "function_call_output",
        "message",
    ]


async def test_users_are_apart(agent: Agent[None], lakebase: Lakebase) -> None:
    """Ben guesses the id of Mia's session, and learns nothing."""
    await answer(agent, "Hello, I live in SF!", session_id="trip-7", user=MIA)
    reply = await answer(agent, "Where do I live?", session_id="trip-7", user=BEN)
    assert reply.startswith("I do not know")


async def test_it_goes_on_from_what_is_stored(agent: Agent[None], lakebase: Lakebase) -> None:
    """A conversation that was begun elsewhere."""
    session = lakebase.session("trip-7", user=MIA)
    await session.add_items([{"role": "user", "content": "My hotel is the Ritz."}])
    reply = await answer(agent, "What is my hotel?", session_id="trip-7", user=MIA)
    assert reply == "You said that your hotel is the Ritz."


async def test_a_workspace_that_refuses(
    agent: Agent[None], lakebase: Lakebase, lakebase_fault: Callable[..., object]
) -> None:
    """The error says what to do, and the next request tries again."""
    fault: Any = lakebase_fault(status=403)
    with pytest.raises(PermissionDenied):
        await answer(agent, "Hello, I live in SF!", session_id="trip-7", user=MIA)
    fault.remove()
    assert await answer(agent, "Hello, I live in SF!", session_id="trip-7", user=MIA)
