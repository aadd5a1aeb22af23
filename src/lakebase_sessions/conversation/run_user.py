"""RunUserSession: a conversation whose user the context of each run says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from lakebase_sessions.conversation.session import LakebaseSession, Owner
from lakebase_sessions.conversation.session_id import scope_to_user
from lakebase_sessions.errors import InvalidUser

if TYPE_CHECKING:
    from agents import RunContextWrapper


class RunUserSession(LakebaseSession):
    """One object for the runs of any user: each reads and writes its own user's conversation.

    `session_id` is the id without a user. Outside a run nobody says whose conversation is meant,
    and nothing is read or written.
    """

    def __init__(
        self,
        session_id: str,
        user: Callable[[RunContextWrapper[Any]], str | None],
        *,
        lakebase: Owner,
        history_limit: int | None = None,
    ) -> None:
        super().__init__(session_id, lakebase=lakebase, history_limit=history_limit)
        self._user_of = user

    def _of_run(self, wrapper: RunContextWrapper[Any]) -> LakebaseSession:
        user = self._user_of(wrapper)
        if user is None:
            raise InvalidUser(
                "The context of this run names no user, so it is not known whose conversation "
                f"{self.session_id!a} is. Runner.run(..., context=...) takes the context."
            )
        session = LakebaseSession(
            scope_to_user(self.session_id, user), lakebase=self._owner, user=user
        )
        session.session_settings = self.session_settings
        return session

    def _sibling(self, session_id: str) -> NoReturn:  # noqa: ARG002
        self._refuse()

    async def _read(self, *_statement: Any, **_parameters: Any) -> NoReturn:
        self._refuse()

    async def _settled(self, *_statement: Any, **_parameters: Any) -> NoReturn:
        self._refuse()  # whatever writes

    def _refuse(self) -> NoReturn:
        raise InvalidUser(
            f"Whose conversation {self.session_id!a} is, only a run says here: its user comes from "
            "the run's context. To read or change it without a run, name the user: "
            "session_for(request, user='...')."
        )
