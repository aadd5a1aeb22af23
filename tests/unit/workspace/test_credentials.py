"""A token that is renewed in the background, before it expires, whoever waits."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from lakebase_sessions import (
    LakebaseNotOpen,
    LakebaseTimeout,
    LakebaseUnavailable,
    PermissionDenied,
    TargetNotFound,
)
from lakebase_sessions.workspace import credentials as module
from lakebase_sessions.workspace.api import Token
from lakebase_sessions.workspace.credentials import (
    LONGEST_BACKOFF_SECONDS,
    RENEW_AFTER,
    SHORTEST_INTERVAL_SECONDS,
    Credentials,
)

LONG = 1e9
"""Seconds that no test waits for."""
PATIENCE = 20.0
"""Seconds after which a test gives up; it asserts nothing about them."""


class Mint:
    """The workspace: gives tokens, fails, or hangs, and remembers who asked."""

    def __init__(self, *answers: float | Exception) -> None:
        self.answers = list(answers)
        """For each call, a token's lifetime in seconds or an error; then tokens that last."""
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self.threads: list[threading.Thread] = []

    def __call__(self) -> Token:
        self.threads.append(threading.current_thread())
        number = len(self.threads)
        self.begun.set()
        assert self.gate.wait(PATIENCE), "nobody opened the gate"
        answer = self.answers[number - 1] if number <= len(self.answers) else LONG
        if isinstance(answer, Exception):
            raise answer
        return Token(f"secret-{number}", answer, time.monotonic())

    @property
    def calls(self) -> int:
        return len(self.threads)


Make = Callable[..., Credentials]


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renewals follow each other without a pause."""
    monkeypatch.setattr(module, "SHORTEST_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(module, "LONGEST_BACKOFF_SECONDS", 0.01)


@pytest.fixture
def scheduled(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds after which a renewal was scheduled; none takes place."""
    delays: list[float] = []
    monkeypatch.setattr(Credentials, "_schedule", lambda _self, delay: delays.append(delay))
    return delays


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes `Credentials`, and closes them after the test."""
    made: list[Credentials] = []

    def make(mint: Callable[[], Token], *, timeout_seconds: float = PATIENCE) -> Credentials:
        made.append(Credentials(mint, timeout_seconds=timeout_seconds))
        return made[-1]

    yield make
    for credentials in made:
        credentials.close()


def value(credentials: Credentials) -> str | None:
    return credentials.token.value if credentials.token else None


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


def timers() -> set[threading.Thread]:
    return {
        thread for thread in threading.enumerate() if thread.name == "lakebase-sessions-token-timer"
    }


class TestRenewal:
    def test_the_first_token_comes_in_the_calling_thread(self, make: Make) -> None:
        mint = Mint()
        credentials = make(mint)
        assert credentials.token is None
        credentials.renew_now()
        assert value(credentials) == "secret-1"
        assert mint.threads == [threading.current_thread()]

    def test_the_first_tokens_error_is_the_callers(self, make: Make) -> None:
        error = PermissionDenied("no")
        with pytest.raises(PermissionDenied) as raised:
            make(Mint(error)).renew_now()
        assert raised.value is error

    async def test_it_is_renewed_while_it_is_valid_and_nobody_waits(
        self, make: Make, hurry: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "RENEW_AFTER", 1e-6)
        mint = Mint(3600.0, LONG)
        credentials = make(mint)
        credentials.renew_now()
        first = credentials.token
        assert first is not None
        await eventually(lambda: value(credentials) == "secret-2")
        assert time.monotonic() < first.expires_at
        assert mint.threads[1] is not threading.current_thread()
        await credentials.ready()
        assert mint.calls == 2

    def test_there_is_time_left_to_try_again(self) -> None:
        """An hour's token leaves a quarter of an hour at least, and costs two calls an hour."""
        assert 0.5 <= RENEW_AFTER <= 0.75

    def test_a_token_that_seems_to_live_for_a_moment_is_no_reason_for_a_flood(
        self, make: Make, scheduled: list[float]
    ) -> None:
        for lifetime in (0.0, 1e-3, SHORTEST_INTERVAL_SECONDS):
            make(Mint(lifetime)).renew_now()
        assert scheduled == [SHORTEST_INTERVAL_SECONDS] * 3

    def test_a_token_that_lives_for_ever_is_scheduled_too(self, make: Make) -> None:
        """`9999-12-31` is further away than a thread can wait."""
        before = timers()
        credentials = make(Mint(1e15))
        credentials.renew_now()
        [timer] = timers() - before
        credentials.close()
        timer.join(PATIENCE)
        assert not timer.is_alive()

    async def test_of_two_tokens_the_one_asked_for_last_stays(self, make: Make) -> None:
        """Whatever comes of a call that was given up is older than what took its place."""
        now = time.monotonic()
        tokens = [Token("late", LONG, now), Token("early", LONG, now - 60)]
        credentials = make(lambda: tokens.pop(0))
        credentials.renew_now()
        await credentials.ready(rejected=credentials.token)
        assert value(credentials) == "late"

    async def test_it_is_renewed_again_and_again(self, make: Make, hurry: None) -> None:
        credentials = make(Mint(0.01, 0.01, 0.01, 0.01))
        credentials.renew_now()
        await eventually(lambda: value(credentials) == "secret-5")

    async def test_while_it_is_renewed_the_old_one_serves(self, make: Make) -> None:
        mint = Mint(LONG)
        credentials = make(mint)
        credentials.renew_now()
        old = credentials.token
        mint.gate.clear()
        waiting = asyncio.create_task(credentials.ready(rejected=old))
        await eventually(lambda: mint.calls == 2)
        assert credentials.token is old
        await credentials.ready()  # whoever did not see it refused has no reason to wait
        assert not waiting.done()
        mint.gate.set()
        await waiting
        assert value(credentials) == "secret-2"


class TestReady:
    async def test_a_valid_token_asks_nobody(self, make: Make) -> None:
        mint = Mint()
        credentials = make(mint)
        credentials.renew_now()
        for _ in range(3):
            await credentials.ready()
        assert mint.calls == 1

    async def test_a_waiter_never_calls_the_workspace_itself(self, make: Make) -> None:
        """The gate opens from the loop: a call on the loop's thread would hang."""
        mint = Mint()
        mint.gate.clear()
        credentials = make(mint)
        waiting = asyncio.create_task(credentials.ready())
        await eventually(mint.begun.is_set)
        assert not waiting.done()
        mint.gate.set()
        await waiting
        assert value(credentials) == "secret-1"
        assert threading.current_thread() not in mint.threads

    async def test_an_expired_token_is_waited_for(self, make: Make) -> None:
        """As after a suspend: no timer has run, and the clock has."""
        tokens = [
            Token("old", lifetime_seconds=3600, received_at=time.monotonic() - 3601),
            Token("new", lifetime_seconds=3600, received_at=time.monotonic()),
        ]
        credentials = make(lambda: tokens.pop(0))
        credentials.renew_now()
        await credentials.ready()
        assert value(credentials) == "new"

    async def test_all_who_wait_share_one_call(self, make: Make) -> None:
        mint = Mint()
        mint.gate.clear()
        credentials = make(mint)
        waiting = [asyncio.create_task(credentials.ready()) for _ in range(50)]
        await eventually(mint.begun.is_set)
        mint.gate.set()
        await asyncio.gather(*waiting)
        assert mint.calls == 1

    def test_loops_in_several_threads_share_it_too(self, make: Make) -> None:
        mint = Mint()
        mint.gate.clear()
        credentials = make(mint)
        seen: list[str | None] = []

        def loop() -> None:
            asyncio.run(credentials.ready())
            seen.append(value(credentials))

        threads = [threading.Thread(target=loop) for _ in range(5)]
        for thread in threads:
            thread.start()
        assert mint.begun.wait(PATIENCE)
        mint.gate.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert seen == ["secret-1"] * 5
        assert mint.calls == 1

    async def test_one_impatient_waiter_does_not_take_it_from_the_others(self, make: Make) -> None:
        mint = Mint()
        mint.gate.clear()
        credentials = make(mint)
        impatient, patient = (asyncio.create_task(credentials.ready()) for _ in range(2))
        await eventually(mint.begun.is_set)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        mint.gate.set()
        await patient
        assert mint.calls == 1

    async def test_a_loop_that_ended_leaves_it_to_the_next(self, make: Make) -> None:
        mint = Mint()
        mint.gate.clear()
        credentials = make(mint)

        def give_up() -> None:
            with pytest.raises(TimeoutError):
                asyncio.run(asyncio.wait_for(credentials.ready(), 0.001))

        await asyncio.to_thread(give_up)
        mint.gate.set()
        await credentials.ready()
        assert mint.calls == 1


class TestRejection:
    async def test_a_rejected_token_is_replaced(self, make: Make) -> None:
        mint = Mint()
        credentials = make(mint)
        credentials.renew_now()
        await credentials.ready(rejected=credentials.token)
        assert value(credentials) == "secret-2"

    async def test_only_once_for_all_who_had_it(self, make: Make) -> None:
        mint = Mint()
        credentials = make(mint)
        credentials.renew_now()
        old = credentials.token
        await asyncio.gather(*(credentials.ready(rejected=old) for _ in range(20)))
        await credentials.ready(rejected=old)  # whoever comes late
        assert mint.calls == 2


class TestFailure:
    async def test_it_recovers_without_anybody_waiting(
        self, make: Make, hurry: None, caplog: pytest.LogCaptureFixture
    ) -> None:
        down = LakebaseUnavailable("The workspace is down.")
        mint = Mint(0.01, down, down, down)
        credentials = make(mint)
        with caplog.at_level(logging.WARNING, module.logger.name):
            credentials.renew_now()
            await eventually(lambda: value(credentials) == "secret-5")
            await eventually(lambda: len(caplog.records) == 3)
        for record in caplog.records:
            assert record.levelno == logging.WARNING
            assert "could not be renewed (attempt " in record.getMessage()
            assert "The workspace is down." in record.getMessage()
        await credentials.ready()
        assert mint.calls == 5

    async def test_a_failed_renewal_leaves_a_valid_token_in_place(self, make: Make) -> None:
        mint = Mint(LONG, LakebaseUnavailable("down"))
        credentials = make(mint)
        credentials.renew_now()
        with pytest.raises(LakebaseUnavailable, match="down"):
            await credentials.ready(rejected=credentials.token)
        assert value(credentials) == "secret-1"
        await credentials.ready()
        assert mint.calls == 2

    async def test_all_who_wait_learn_the_reason(self, make: Make) -> None:
        error = PermissionDenied("no token for you")
        mint = Mint(error)
        mint.gate.clear()
        credentials = make(mint)
        waiting = [asyncio.create_task(credentials.ready()) for _ in range(5)]
        await eventually(mint.begun.is_set)
        mint.gate.set()
        assert await asyncio.gather(*waiting, return_exceptions=True) == [error] * 5

    async def test_the_next_request_tries_again_at_once(self, make: Make) -> None:
        mint = Mint(LakebaseUnavailable("down"))
        credentials = make(mint)
        with pytest.raises(LakebaseUnavailable, match="down"):
            await credentials.ready()
        await credentials.ready()
        assert value(credentials) == "secret-2"

    async def test_an_outage_may_last_for_any_number_of_requests(
        self, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A float holds 2 to the power of 1,023 and no more; a busy server gets there."""
        caplog.set_level(logging.CRITICAL, module.logger.name)
        down = LakebaseUnavailable("down")
        credentials = make(Mint(*[down] * 1100))
        for _ in range(1100):
            with pytest.raises(LakebaseUnavailable, match="down"):
                await credentials.ready()
        await credentials.ready()

    @pytest.mark.parametrize(
        ("error", "pause_seconds"),
        [
            (LakebaseUnavailable("down"), LONGEST_BACKOFF_SECONDS),
            (PermissionDenied("no token for you"), math.inf),
            (TargetNotFound("no such instance"), math.inf),
        ],
        ids=["an outage", "a refusal", "a Lakebase that is gone"],
    )
    async def test_a_refusal_is_not_asked_for_again_and_an_outage_is(
        self, make: Make, scheduled: list[float], error: Exception, pause_seconds: float
    ) -> None:
        credentials = make(Mint(*[error] * 20))
        for _ in range(20):
            with pytest.raises(type(error)):
                await credentials.ready()
        assert pause_seconds / 2 <= scheduled[-1] <= pause_seconds

    async def test_a_refusal_is_not_for_ever(self, make: Make) -> None:
        """Whoever needs a token next asks again, and the timer goes on."""
        before = timers()
        credentials = make(Mint(PermissionDenied("no token for you")))
        with pytest.raises(PermissionDenied):
            await credentials.ready()
        await credentials.ready()
        assert value(credentials) == "secret-2"
        assert len(timers() - before) == 1

    async def test_who_waits_for_a_call_that_hangs_gives_up(self, make: Make) -> None:
        mint = Mint()
        mint.gate.clear()
        credentials = make(mint, timeout_seconds=0.01)
        with pytest.raises(LakebaseTimeout, match=r"no database token within 0\.01 s"):
            await credentials.ready()
        mint.gate.set()

    async def test_a_call_that_hangs_for_ever_is_replaced(self, make: Make, hurry: None) -> None:
        """Also if those who wait for it are less patient and would join it for ever."""
        hanging = threading.Event()
        calls = itertools.count(1)

        def mint() -> Token:
            if (number := next(calls)) == 1:
                hanging.wait(PATIENCE)
            return Token(f"secret-{number}", LONG, time.monotonic())

        credentials = make(mint, timeout_seconds=0.1)
        async with asyncio.timeout(PATIENCE):
            while credentials.token is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(credentials.ready(), 0.01)
        assert value(credentials) == "secret-2"
        hanging.set()

    async def test_a_builtin_timeout_becomes_ours(self, make: Make) -> None:
        with pytest.raises(LakebaseTimeout):
            await make(Mint(TimeoutError("slow"))).ready()

    async def test_a_timeout_of_ours_keeps_its_words(self, make: Make) -> None:
        with pytest.raises(LakebaseTimeout, match="throttled"):
            await make(Mint(LakebaseTimeout("throttled"))).ready()


class TestTheEnd:
    def test_close_stops_renewing(self, make: Make) -> None:
        before = timers()
        mint = Mint(LONG)
        credentials = make(mint)
        credentials.renew_now()
        [timer] = timers() - before
        credentials.close()
        timer.join(PATIENCE)
        assert not timer.is_alive()
        assert mint.calls == 1

    async def test_a_renewal_that_ends_after_close_is_the_last(self, make: Make) -> None:
        before = timers()
        mint = Mint(0.001)
        mint.gate.clear()
        credentials = make(mint)
        waiting = asyncio.create_task(credentials.ready())
        await eventually(mint.begun.is_set)
        credentials.close()
        mint.gate.set()
        await waiting
        await eventually(lambda: timers() <= before)
        assert mint.calls == 1

    async def test_a_closed_one_gets_no_new_token(self, make: Make) -> None:
        mint = Mint()
        credentials = make(mint)
        credentials.close()
        with pytest.raises(LakebaseNotOpen, match="was closed"):
            await credentials.ready()
        assert mint.calls == 0

    async def test_a_failure_after_close_is_not_tried_again(self, make: Make) -> None:
        before = timers()
        mint = Mint(LakebaseUnavailable("down"))
        mint.gate.clear()
        credentials = make(mint)
        waiting = asyncio.create_task(credentials.ready())
        await eventually(mint.begun.is_set)
        credentials.close()
        mint.gate.set()
        with pytest.raises(LakebaseUnavailable):
            await waiting
        await eventually(lambda: timers() <= before)

    def test_closing_twice_is_nothing(self, make: Make) -> None:
        credentials = make(Mint())
        credentials.renew_now()
        credentials.close()
        credentials.close()

    def test_garbage_collection_ends_it(self) -> None:
        """Nobody renews for a Lakebase that was dropped unclosed, and no thread stays."""
        before = timers()
        mint = Mint(LONG)
        credentials = Credentials(mint, timeout_seconds=PATIENCE)
        credentials.renew_now()
        [timer] = timers() - before
        dropped = weakref.ref(credentials)
        del credentials
        gc.collect()
        assert dropped() is None
        timer.join(PATIENCE)
        assert not timer.is_alive()
        assert mint.calls == 1

    def test_no_thread_keeps_the_process_alive(self, make: Make) -> None:
        before = set(threading.enumerate())
        mint = Mint(LONG)
        credentials = make(mint)
        credentials.renew_now()
        asyncio.run(credentials.ready(rejected=credentials.token))
        assert all(thread.daemon for thread in set(threading.enumerate()) - before)
        assert mint.threads[1].daemon


async def test_no_token_is_ever_shown(
    make: Make, hurry: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        credentials = make(Mint(0.01, LakebaseUnavailable("down"), LONG))
        credentials.renew_now()
        shown = [repr(credentials), repr(credentials.token), str(credentials.token)]
        await eventually(lambda: value(credentials) == "secret-3")
        await credentials.ready(rejected=credentials.token)
        shown += [repr(credentials), f"{credentials.token}"]
    assert "could not be renewed" in caplog.text
    for text in [caplog.text, *shown]:
        assert "secret-" not in text
