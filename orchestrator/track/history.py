"""What events and metric lines say of each attempt of a run; pure. `goodput` makes the ledger of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.track.events import moment

_BEGINNINGS = ("started", "resumed")
_SIGNS_OF_LIFE = ("launched", *_BEGINNINGS, "first-step", "checkpoint", "ended")
"""Events of an attempt's own; others say of it that it hangs or has died."""


@dataclass
class Recorded:
    """What events say of an attempt, and the steps that were its own."""

    number: int
    workers: int = 1
    launched_at: float = math.inf
    driver: str | None = None
    resized: bool = False
    """Whether it has another number of workers than the one before, which may have ended for that."""
    started_at: float | None = None
    step: int = 0
    redone_steps: int = 0
    redone_s: float = 0.0
    """Steps of attempts before it that it cut off, and their time."""
    line_before_at: float | None = None
    """When the newest line of the attempts before it was written."""
    first_step_at: float | None = None
    checkpoints_s: list[float] = field(default_factory=list)
    """How long each held up the workers."""
    saved_step: int | None = None
    """Of the newest checkpoint."""
    failed: Mapping[str, Any] | None = None
    ended: str | None = None
    end_at: float | None = None
    first_at: float = math.inf
    """Its oldest event."""
    seen_at: float = -math.inf
    """Its newest sign of life."""
    lines: list[Mapping[str, Any]] = field(default_factory=list)
    """Of its steps that stand."""
    recomputed_s: float = 0.0
    """Of its steps that were cut off."""

    def add(self, event: Mapping[str, Any]) -> None:
        """Take an event of this attempt."""
        at, name = moment(event["time"]), event["event"]
        self.first_at = min(self.first_at, at)
        if name in _SIGNS_OF_LIFE:
            self.seen_at = max(self.seen_at, at)
        if name == "failed":
            self.failed, self.end_at = event, at
        elif name == "launched":
            self.launched_at, self.driver = at, event.get("driver")
            self.workers = int(event["workers"])
        elif name == "resized":
            self.resized = True
        elif name in _BEGINNINGS:
            self._add_beginning(event, at)
        elif name == "first-step":
            self.first_step_at = moment(event["began"])
        elif name == "checkpoint":
            self.checkpoints_s.append(float(event.get("seconds", 0.0)))
            self.saved_step = int(event["step"])
        elif name == "ended":
            self.ended = str(event["how"])
            self.end_at = self.end_at or at

    def _add_beginning(self, event: Mapping[str, Any], at: float) -> None:
        self.started_at, self.step, self.workers = at, int(event["step"]), int(event["workers"])
        if self.launched_at == math.inf:  # without a driver: the worker knows when it began
            self.launched_at = at - sum(event["startup"].values())
        redone = event.get("recomputed", {"steps": 0, "seconds": 0.0})
        self.redone_steps, self.redone_s = int(redone["steps"]), float(redone["seconds"])
        self.line_before_at = moment(event["last_line"]) if event.get("last_line") else None

    @property
    def in_order(self) -> bool:
        """Whether it came to an end of its own: to its last step, or stopped by somebody."""
        return self.failed is None and self.ended in ("finished", "stopped")

    def good_step(self, before: int) -> int:
        """What the next attempt can go on from; `before`: what this one could."""
        if self.saved_step is not None:
            return self.saved_step
        return before if self.started_at is None else self.step


def recorded(events: Iterable[Mapping[str, Any]]) -> list[Recorded]:
    """In the order of their numbers. One that begins twice is two: a worker alone goes on after memory ran out."""
    found: dict[int, list[Recorded]] = {}
    for event in events:
        number = event.get("attempt")
        if not isinstance(number, int):
            continue
        parts = found.setdefault(number, [Recorded(number)])
        if event["event"] in _BEGINNINGS and parts[-1].started_at is not None:
            parts.append(Recorded(number))
        parts[-1].add(event)
    attempts = [attempt for number in sorted(found) for attempt in found[number]]
    for attempt in attempts:
        attempt.launched_at = min(attempt.launched_at, attempt.first_at)  # its launch was not told, or not in time
    return attempts


def share_out(attempts: Sequence[Recorded], lines: Mapping[int, Mapping[str, Any]]) -> None:
    """Give each attempt the lines of its steps that stand, and the time of those that were cut off after it.

    An attempt that is killed before its first step may leave the lines uncut that it has told of: what the next one
    tells of them again has no owner any more, and is dropped.
    """
    owned: list[tuple[Recorded, int, int]] = []  # the steps after the first number, up to the second
    begun = [attempt for attempt in attempts if attempt.started_at is not None]
    for attempt, after in zip(begun, [*begun[1:], None], strict=False):
        if after is None:
            has_cut = attempt.first_step_at is not None or attempt.redone_steps == 0
            owned.append((attempt, attempt.step, max(lines, default=0) if has_cut else attempt.step))
            break
        top = after.step + (after.redone_steps if attempt.first_step_at is not None else 0)
        owned.append((attempt, attempt.step, max(attempt.step, top)))
        for owner, first, last in owned:
            lost = max(0, last - max(first, after.step))
            owner.recomputed_s += after.redone_s * lost / max(after.redone_steps, lost, 1)
        owned = [(owner, first, min(last, after.step)) for owner, first, last in owned]
    for owner, first, last in owned:
        owner.lines = [lines[step] for step in range(first + 1, last + 1) if step in lines]
