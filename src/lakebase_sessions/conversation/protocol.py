"""Conversation: what turns, claims and pages of items need of a session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString, Protocol

if TYPE_CHECKING:
    from agents import RunContextWrapper
    from agents.items import TResponseInputItem
    from agents.memory.session_settings import SessionSettings

    from lakebase_sessions.postgres.engine import LoopEngine


class Conversation(Protocol):
    """As `LakebaseSession` has it."""

    session_id: str
    session_settings: SessionSettings | None

    def _of_run(self, wrapper: RunContextWrapper[Any]) -> Conversation: ...

    async def _read(
        self, statement: LiteralString, **parameters: str | None
    ) -> list[tuple[Any, ...]]: ...

    async def _write(
        self, statement: LiteralString, **parameters: str | None
    ) -> list[tuple[Any, ...]]: ...

    async def _write_repeatable(
        self, statement: LiteralString, **parameters: str | None
    ) -> list[tuple[Any, ...]]: ...

    async def _open(self) -> LoopEngine: ...

    async def pop_item(self) -> TResponseInputItem | None:
        """As of `LakebaseSession`."""

    async def _copy(
        self, fork_id: str, before_turn: int | None, *, first_item: int | None = None
    ) -> None: ...

    def _sibling(self, session_id: str) -> Conversation: ...
