"""How long training goes on between two checkpoints, where time decides. Pure: the caller has the clock.

To save often costs the stall of each checkpoint, to save rarely the steps that are redone after a failure. Young (A
first order approximation to the optimum checkpoint interval, 1974) has the interval at which both cost the least, and
Daly (A higher order estimate of the optimum checkpoint interval for restart dumps, 2006) the same where failures are
frequent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from orchestrator.track.events import moment

FIRST_FAILURE_S = 86_400.0
"""A run is taken to fail once a day until it has shown that it fails more rarely, or more often."""
SHORTEST_S = 10.0
_FIRST_COST_S = 1.0
_SHARE_WRITING = 0.5
"""A checkpoint is being written for at most this share of the time: the next one would wait for it."""


def best_interval_s(cost_s: float, mean_time_between_failures_s: float) -> float:
    """Daly's equation 37: seconds of training between two checkpoints that hold it up for `cost_s` each."""
    if cost_s >= 2 * mean_time_between_failures_s:
        return mean_time_between_failures_s
    ratio = cost_s / (2 * mean_time_between_failures_s)
    first_order = math.sqrt(2 * cost_s * mean_time_between_failures_s)
    return first_order * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost_s


@dataclass
class Pacer:
    """When the next checkpoint is due by time, of one attempt; its times are seconds of one clock."""

    every_s: float | Literal["auto"]
    began_at: float
    failures: int = 0
    """Attempts of this run that have failed."""
    before_s: float = 0.0
    """What they have lasted."""
    costs_s: list[float] = field(default_factory=list)
    """How long each checkpoint so far has held up the training."""
    written_in_s: float = 0.0
    """How long the last took to stand."""
    _last_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._last_at = self.began_at

    def is_due(self, now: float) -> bool:
        """Whether the last one is long enough ago."""
        return now - self._last_at >= self.interval_s(now)

    def interval_s(self, now: float) -> float:
        """As it is asked for, or the best by what is known by now."""
        if self.every_s != "auto":
            return self.every_s
        lasted_s = self.before_s + now - self.began_at
        between_s = (FIRST_FAILURE_S + lasted_s) / (1 + self.failures)
        best_s = best_interval_s(median(self.costs_s or [_FIRST_COST_S]), between_s)
        return max(SHORTEST_S, self.written_in_s / _SHARE_WRITING, best_s)

    def begins(self, now: float) -> None:
        """A checkpoint begins, for whatever reason."""
        self._last_at = now

    def stands(self, *, cost_s: float, written_in_s: float) -> None:
        """A checkpoint stands."""
        self.costs_s.append(cost_s)
        self.written_in_s = written_in_s


def pacer_of(every_s: float | Literal["auto"], events: Iterable[Mapping[str, Any]], *, now: float) -> Pacer:
    """A pacer that knows what the events of a run say of its attempts so far."""
    pacer = Pacer(every_s, now)
    began_at: float | None = None
    for event in events:
        at, name = moment(event["time"]), event["event"]
        if name in ("started", "resumed"):
            began_at = at
        elif name == "checkpoint":
            pacer.stands(cost_s=float(event.get("seconds", 0.0)), written_in_s=float(event.get("written_in_s", 0.0)))
        elif name in ("failed", "ended") and began_at is not None:
            pacer.before_s += at - began_at
            began_at = None
        pacer.failures += name == "failed"
    return pacer
