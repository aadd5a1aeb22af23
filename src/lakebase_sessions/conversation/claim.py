"""Claim: of several turns of a conversation that come at once, one runs; others are told, or wait.

A lease in a row of ours: made by the turn's read, renewed while the turn lasts, given up by what
stores it. A worker that dies renews nothing, and somebody else goes on when the lease has run out.
A claim keeps others from beginning, not from writing: storing is conflict-checked as ever.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, LiteralString

from lakebase_sessions.errors import (
    ConfigurationError,
    ConversationBusy,
    InvalidUser,
    LakebaseSessionsError,
)
from lakebase_sessions.postgres import claims
from lakebase_sessions.workspace.background import settled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lakebase_sessions.conversation.protocol import Conversation

logger = logging.getLogger(__name__)

OnBusy = Literal["refuse", "wait"]

LEASE_SECONDS = 30.0
"""How long a dead worker keeps others out. Renewed every third of it."""

WAIT_SECONDS = 60.0
"""At most. Databricks Apps cut a request at 120 s, and the turn is yet to run."""

LOST_SECONDS = 5.0
"""Who waits and has not asked for so long has lost its place in line."""

FIRST_PAUSE_SECONDS = 0.05
"""Before one who waits asks again. Doubled each time, up to the two below."""
PAUSE_SECONDS = 1.0
FIRST_IN_LINE_PAUSE_SECONDS = 0.4


class Claim:
    """One turn's claim on its conversation.

    Args:
        session: The conversation.
        on_busy: What to do while another turn has it: `"refuse"` or `"wait"`.

    Raises:
        ConfigurationError: `on_busy` is something else.
    """

    def __init__(self, session: Conversation, on_busy: OnBusy) -> None:
        if on_busy not in ("refuse", "wait"):
            raise ConfigurationError(
                f"on_busy={on_busy!a} is neither None nor 'refuse' nor 'wait'."
            )
        self.session = session  # another one, where the run's context says whose it is
        self._waits = on_busy == "wait"
        self._holder = uuid.uuid4().hex
        self._known = False  # the server may have it, as the holder or in line
        self._renewing: asyncio.Task[None] | None = None

    async def read(
        self, statement: LiteralString, **parameters: str | None
    ) -> list[tuple[Any, ...]]:
        """What the statement reads; the first time the conversation is claimed with it.

        Raises:
            ConversationBusy: Another turn has it, and still had it after waiting.
            TablesMissing: There is no table of claims.
        """
        if self._renewing is None:
            rows = await self._taken(statement, parameters)
            self._renewing = asyncio.create_task(self._renew())
            if rows is not None:
                return rows
        return await self.session._read(statement, **parameters)

    async def take(self) -> None:
        """Claim the conversation without reading it, as `read` does."""
        await self.read(claims.NOTHING)

    async def write(
        self, statement: LiteralString, **parameters: str | None
    ) -> list[tuple[Any, ...]]:
        """The last write of the turn: the same statement gives up the claim."""
        rows = await self.session._write(
            claims.giving_up(statement), holder=self._holder, **parameters
        )
        self._known = False
        return rows

    async def give_up(self) -> None:
        """At the turn's end. In a statement of its own, if the last write has not done it."""
        try:
            await self._stop_renewing()
        finally:
            if self._known:
                try:
                    await self.session._write_repeatable(claims.GIVE_UP_CLAIM, holder=self._holder)
                except InvalidUser:
                    pass  # no run has come, so nothing was claimed
                except LakebaseSessionsError as error:
                    # What the turn itself came to matters more.
                    logger.warning(
                        "A claim on conversation %a could not be given up, and runs out within "
                        "%g s: %s",
                        self.session.session_id,
                        LEASE_SECONDS,
                        error,
                    )

    async def _taken(
        self, statement: LiteralString, parameters: Mapping[str, str | None]
    ) -> list[tuple[Any, ...]] | None:
        """Claim the conversation; None if it has to be read again."""
        (await self.session._open()).check_records()
        now = asyncio.get_running_loop().time
        give_up_at = now() + WAIT_SECONDS
        pause = FIRST_PAUSE_SECONDS
        while True:
            self._known = True
            rows = await self.session._write_repeatable(
                claims.claiming(statement),
                holder=self._holder,
                waits=str(self._waits),
                lease=f"{LEASE_SECONDS} s",
                lost=f"{LOST_SECONDS} s",
                **parameters,
            )
            told = rows[0][-1]
            if told is None:
                return [row[:-1] for row in rows]
            if told == claims.READ_AGAIN:
                return None
            place, since = told.split("/")
            self._known = self._waits
            if not self._waits or now() >= give_up_at:
                raise self._busy(since)
            longest = FIRST_IN_LINE_PAUSE_SECONDS if place == "1" else PAUSE_SECONDS
            pause = min(pause, longest)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause *= 2

    async def _renew(self) -> None:
        pause = LEASE_SECONDS / 3
        while True:
            await asyncio.sleep(pause)
            try:
                renewed = await self.session._read(
                    claims.RENEW_CLAIM, holder=self._holder, lease=f"{LEASE_SECONDS} s"
                )
            except LakebaseSessionsError as error:
                logger.info("A claim could not be renewed, and this is tried again: %s", error)
                pause = LEASE_SECONDS / 30
                continue
            if not renewed:
                logger.warning(
                    "A turn of conversation %a has lost its claim: it was not renewed for %g s, or "
                    "the conversation was deleted. Another turn may run beside it.",
                    self.session.session_id,
                    LEASE_SECONDS,
                )
                return
            pause = LEASE_SECONDS / 3

    async def _stop_renewing(self) -> None:
        if self._renewing is None:
            return
        self._renewing.cancel()
        try:
            await asyncio.wait({self._renewing})
        except asyncio.CancelledError:
            await settled(self._renewing)
            raise

    def _busy(self, since: str) -> ConversationBusy:
        began = datetime.fromtimestamp(float(since), UTC) if since else None
        what = f"is under way since {began:%H:%M:%S} UTC" if began else "is about to begin"
        waited = f", and its turn did not come within {WAIT_SECONDS:g} s" if self._waits else ""
        return ConversationBusy(
            f"Another turn of conversation {self.session.session_id!a} {what}{waited}. Nothing of "
            "this one was run or stored. Send it again when the other one has been answered, in a "
            "few seconds. Two tabs or a double click do this.",
            since=began,
        )
