"""Transaction: several statements that belong together, on one connection.

For what does not fit into memory, and so not into one statement. What does is one
(`LoopEngine.rows`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from lakebase_sessions.postgres.connection import Connection

FIRST_ROWS = 16
"""Rows that are fetched before it is known how long they are."""
MOST_ROWS = 1000
CHARACTERS_AT_ONCE = 500_000
"""About what a fetch is to bring: enough for a round trip to be worth it."""

Parameters = Mapping[str, str | None]


class Run(Protocol):
    """How a statement gets to the server and back, with its bounds and errors."""

    async def __call__(
        self, connection: Connection, statement: str, parameters: Parameters | None
    ) -> list[tuple[Any, ...]]:
        """Its rows."""


class Transaction:
    """Runs statements; made by `LoopEngine.transaction`."""

    def __init__(self, connection: Connection, run: Run) -> None:
        self._connection = connection
        self._run = run

    async def rows(
        self, statement: str, parameters: Parameters | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows."""
        return await self._run(self._connection, statement, parameters)

    async def stream(
        self, name: str, statement: str, parameters: Parameters
    ) -> AsyncIterator[tuple[Any, ...]]:
        """The rows of a SELECT, of which few are in memory at a time.

        Args:
            name: Of the cursor; each once in a transaction.
            statement: The SELECT.
            parameters: Of the statement.
        """
        await self.rows(f"DECLARE {name} NO SCROLL CURSOR FOR {statement}", parameters)
        count = FIRST_ROWS
        while True:
            fetched = await self.rows(f"FETCH FORWARD {count} FROM {name}")
            for row in fetched:
                yield row
            if len(fetched) < count:
                return
            size = sum(len(value) for row in fetched for value in row if isinstance(value, str))
            fitting = CHARACTERS_AT_ONCE * len(fetched) // (size + 1)
            count = max(1, min(2 * count, MOST_ROWS, fitting))
