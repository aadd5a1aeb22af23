"""Meter: what a run has used, by model.

The Agents SDK sums what its responses took in one `Usage` a run, which agents that are tools share,
and does not say whose they were. Here a meter stands in that place. Who knows which model is asked
next says so in the task that asks: tools run in tasks of their own, so that agents which answer at
the same time are kept apart.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from agents import Usage

if TYPE_CHECKING:
    from agents import RunContextWrapper

    from lakebase_sessions.conversation.records import TurnRecord

UNKNOWN = "unknown"
"""A model of which nobody has said that it is asked: that of a run without `invoke_turn`."""

_asked: ContextVar[str | None] = ContextVar("lakebase_sessions_asked", default=None)


def asks(model: str) -> None:
    """The next response of this task is `model`'s."""
    _asked.set(model)


class Meter(Usage):
    """The `Usage` of a run's context, which counts by model too.

    Attributes:
        by_model: What this meter was there for; what a resumed run had used before is not.
        model: What answered last, if it is known.
    """

    by_model: dict[str, dict[str, int]]
    model: str | None

    @classmethod
    def of(cls, wrapper: RunContextWrapper[Any]) -> Meter:
        """That of a run, put into its context if it is not there yet."""
        if isinstance(wrapper.usage, cls):
            return wrapper.usage
        meter = cls()
        vars(meter).update(vars(wrapper.usage), by_model={}, model=None)
        wrapper.usage = meter
        _asked.set(None)  # what another run of this task has asked in vain
        return meter

    def add(self, other: Usage) -> None:
        """Count a response."""
        super().add(other)
        self.model = _asked.get()
        _asked.set(None)  # a tool's task begins with a copy of this
        add_counts(self.by_model, {self.model or UNKNOWN: _counts(other)})


class Spending:
    """What runs have used since a turn met them, on top of what the turn's record had."""

    def __init__(self, record: TurnRecord) -> None:
        self._record = record
        self._offset: dict[str, dict[str, int]] = {}
        self._meters: list[Meter] = []
        add_counts(self._offset, record.usage)

    def meet(self, wrapper: RunContextWrapper[Any]) -> None:
        """Count what this run uses from now on."""
        meter = Meter.of(wrapper)
        if not any(known is meter for known in self._meters):
            self._meters.append(meter)
            add_counts(self._offset, meter.by_model, sign=-1)

    def note(self) -> None:
        """Put into the record what is known by now."""
        usage: dict[str, dict[str, int]] = {}
        add_counts(usage, self._offset)
        for meter in self._meters:
            add_counts(usage, meter.by_model)
            self._record.model = meter.model or self._record.model
        self._record.usage = {model: sums for model, sums in usage.items() if any(sums.values())}


def add_counts(
    total: dict[str, dict[str, int]], more: dict[str, dict[str, int]], *, sign: int = 1
) -> None:
    """Add what was counted by model."""
    for model, counts in more.items():
        sums = total.setdefault(model, {})
        for name, count in counts.items():
            sums[name] = sums.get(name, 0) + sign * count


def _counts(usage: Usage) -> dict[str, int]:
    # Gateways leave out what they do not know, past all types.
    cached = getattr(usage.input_tokens_details, "cached_tokens", 0)
    reasoning = getattr(usage.output_tokens_details, "reasoning_tokens", 0)
    counts = {
        "requests": usage.requests,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "cached_tokens": cached,
        "reasoning_tokens": reasoning,
    }
    return {name: count or 0 for name, count in counts.items()}
