"""GoingBack: the turns of a conversation, and what a session does with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString, Self

from lakebase_sessions.conversation.items import checked_limit, decode
from lakebase_sessions.conversation.session_id import check_session_id, new_session_id
from lakebase_sessions.conversation.turns import (
    COUNTS,
    Branch,
    Turn,
    Usage,
    branch_from,
    branches_from,
    turn_from,
)
from lakebase_sessions.errors import (
    BranchNotFound,
    ConversationConflict,
    ConversationExists,
    ConversationNotFound,
    TurnNotFound,
)
from lakebase_sessions.postgres import going_back

if TYPE_CHECKING:
    from agents.items import TResponseInputItem

    from lakebase_sessions.postgres.engine import LoopEngine

_MAX_NUMBER = 2**31 - 1
_MAX_ID = 2**63 - 1


class GoingBack:
    """The part of `LakebaseSession` that needs this package's own tables.

    A turn is the input of one run and all that the run added. Where nothing is recorded, as in
    what upstream's class has written, a turn begins at each message of a user that follows
    something else; what stands before the first turn belongs to none.

    Every method is one round trip, whatever the length of the conversation.
    """

    if TYPE_CHECKING:
        session_id: str

        def _sibling(self, session_id: str) -> Self: ...

        async def _read(
            self, statement: LiteralString, **parameters: str | None
        ) -> list[tuple[Any, ...]]: ...

        async def _write(
            self, statement: LiteralString, **parameters: str | None
        ) -> list[tuple[Any, ...]]: ...

        async def _open(self) -> LoopEngine: ...

    async def turns(self, limit: int | None = None) -> list[Turn]:
        """The turns of the conversation, oldest first. One round trip.

        Args:
            limit: At most the latest so many.

        Raises:
            InvalidLimit: `limit` is not a whole number from 0.
            TablesMissing: This package's own tables are not there or may not be used.

        Example:
            >>> async def asked(session):
            ...     return [(turn.number, turn.preview) for turn in await session.turns(limit=10)]
        """
        latest = checked_limit(limit)
        await self._check_tables()
        text = None if latest is None else str(min(latest, _MAX_NUMBER))
        return [turn_from(row) for row in await self._read(going_back.TURNS, limit=text)]

    async def usage(self) -> Usage:
        """What all runs of the conversation have used, in all and by model. One round trip.

        Those that failed and those of branches count too.

        Raises:
            TablesMissing: This package's own tables are not there or may not be used.
        """
        await self._check_tables()
        rows = await self._read(going_back.USAGE)
        return Usage.of({model: dict(zip(COUNTS, counts, strict=True)) for model, *counts in rows})

    async def rewind(
        self, *, before_turn: int | None = None, to_response: str | None = None, keep: bool = True
    ) -> Branch | None:
        """Take a turn and everything behind it out of the conversation. One round trip.

        What is taken out is kept as a branch, which `restore` puts back: at most 50 of them a
        conversation, for 30 days. All or nothing; an atomic turn that is under way meets a
        conflict.

        Args:
            before_turn: The number of the turn; or
            to_response: its response id. One of both.
            keep: False deletes it for good, with the branches that hang on it.

        Returns:
            The branch, or None where nothing was kept.

        Raises:
            TurnNotFound: The conversation has no such turn.
            ConversationNotFound: Nothing was ever stored, or it was cleared.
            ConversationConflict: Somebody wrote meanwhile, and nothing was changed.
            TablesMissing: This package's own tables are not there or may not be used.

        Example:
            >>> async def ask_again(session):
            ...     return await session.rewind(before_turn=len(await session.turns()))
        """
        if (before_turn is None) == (to_response is None):
            raise TypeError("rewind() takes one of before_turn and to_response.")
        turn = f"turn {before_turn!r}" if to_response is None else f"response {to_response!a}"
        if to_response is None:
            self._check_number(before_turn)
        elif not isinstance(to_response, str) or not to_response.isprintable():
            raise self._no_turn(turn)
        await self._check_tables()
        rows = await self._write(
            going_back.REWIND if keep else going_back.REWIND_FOR_GOOD,
            before_turn=None if before_turn is None else str(before_turn),
            to_response=to_response,
        )
        known, found, done, *branch = rows[0]
        if not known:
            raise self._no_conversation()
        if not found:
            raise self._no_turn(turn)
        if not done:
            raise self._conflict("rewound")
        return branch_from(branch) if keep else None

    async def fork(self, session_id: object = None, *, before_turn: int | None = None) -> Self:
        """Copy the conversation into a new one of the same user, on the server. One round trip.

        Items, turns, title and metadata are copied, branches are not. What waits for an approval
        waits in the old conversation only. Neither changes the other from then on.

        Args:
            session_id: Of the new one, as for `Lakebase.session`; None makes one.
            before_turn: Only what stands before the turn of this number.

        Returns:
            The session of the new one.

        Raises:
            ConversationExists: The id is taken.
            ConversationNotFound: Nothing was ever stored here, or it was cleared. One that has lost
                all of its items can be forked.
            TurnNotFound: The conversation has no such turn.
            InvalidSessionId: `session_id` cannot be stored.
            TablesMissing: This package's own tables are not there or may not be used.

        Example:
            >>> async def try_something_else(session):
            ...     return await session.fork(before_turn=2)
        """
        fork = self._sibling(check_session_id(session_id) or new_session_id())
        if before_turn is not None:
            self._check_number(before_turn)
        await self._check_tables()
        await self._copy(fork.session_id, before_turn)
        return fork

    async def _copy(
        self, fork_id: str, before_turn: int | None, *, first_item: int | None = None
    ) -> None:
        """What `fork` does; the turn has to begin with `first_item`, where that is given."""
        rows = await self._write(
            going_back.FORK,
            fork=fork_id,
            before_turn=None if before_turn is None else str(before_turn),
            first_item=None if first_item is None else str(first_item),
        )
        known, found, done = rows[0]
        if not known:
            raise self._no_conversation()
        if not found:
            raise self._no_turn(f"turn {before_turn!r}")
        if not done:
            raise ConversationExists(
                f"There is a conversation {fork_id!a} already, so nothing was copied. Without an "
                "id fork() makes one."
            )

    async def branches(self) -> list[Branch]:
        """What was taken out of the conversation and is kept, latest first. One round trip.

        Raises:
            TablesMissing: This package's own tables are not there or may not be used.
        """
        await self._check_tables()
        return branches_from(await self._read(going_back.BRANCHES))

    async def branch_items(self, branch: Branch | int) -> list[TResponseInputItem]:
        """The items of a branch, oldest first. One round trip.

        Args:
            branch: One of `branches()`, or its id.

        Raises:
            BranchNotFound: The conversation has no such branch.
            TablesMissing: This package's own tables are not there or may not be used.
        """
        return decode([row for _, row in await self._branch_rows(branch)])

    async def restore(self, branch: Branch | int) -> Branch | None:
        """Put a branch back, in the place of what stands there now. One round trip.

        What stands there becomes a branch in its turn, so nothing is lost. A branch that was taken
        out of another one brings what it stood behind. All or nothing.

        Args:
            branch: One of `branches()`, or its id.

        Returns:
            The branch of what was swapped out, or None where nothing was.

        Raises:
            BranchNotFound: The conversation has no such branch.
            ConversationConflict: Somebody wrote meanwhile, and nothing was changed.
            TablesMissing: This package's own tables are not there or may not be used.

        Example:
            >>> async def undo(session):
            ...     return await session.restore((await session.branches())[0])
        """
        number = self._branch_number(branch)
        await self._check_tables()
        rows = await self._write(going_back.RESTORE, branch=number)
        found, done, *swapped_out = rows[0]
        if not found:
            raise self._no_branch(number)
        if not done:
            raise self._conflict("changed")
        return branch_from(swapped_out)

    async def _branch_rows(self, branch: Branch | int) -> list[tuple[Any, ...]]:
        """Ids and rows of its items."""
        number = self._branch_number(branch)
        await self._check_tables()
        rows = await self._read(going_back.BRANCH_ITEMS, branch=number)
        if not rows:
            raise self._no_branch(number)
        return rows

    async def _check_tables(self) -> None:
        (await self._open()).check_records()

    def _check_number(self, turn: object) -> None:
        if not isinstance(turn, int) or isinstance(turn, bool) or not 0 < turn <= _MAX_NUMBER:
            raise self._no_turn(f"turn {turn!r}")

    def _branch_number(self, branch: object) -> str:
        number = branch.id if isinstance(branch, Branch) else branch
        if not isinstance(number, int) or isinstance(number, bool) or not 0 < number <= _MAX_ID:
            raise self._no_branch(number)
        return str(number)

    def _no_turn(self, turn: str) -> TurnNotFound:
        return TurnNotFound(
            f"Conversation {self.session_id!a} has no {turn}, and nothing was changed. "
            "session.turns() lists what it has."
        )

    def _no_branch(self, branch: object) -> BranchNotFound:
        return BranchNotFound(
            f"Conversation {self.session_id!a} has no branch {branch!r}, and nothing was changed. "
            "It may have been restored, or deleted by its age or number; session.branches() lists "
            "those there are."
        )

    def _no_conversation(self) -> ConversationNotFound:
        return ConversationNotFound(
            f"There is no conversation {self.session_id!a}: nothing was ever added, or it was "
            "cleared or deleted. Check the id, and the user it is scoped to."
        )

    def _conflict(self, done: str) -> ConversationConflict:
        return ConversationConflict(
            f"Somebody else has written to conversation {self.session_id!a} at this moment, so it "
            f"was not {done}. Read it again and decide anew."
        )
