"""Where a run's time went: every second of every worker is in one part. Of its events and metric lines; pure.

Worker 0 keeps the times, and they stand for all workers, which end their steps together. The wall time of a run is that
of its attempts: from the launch that the driver asked for (or a worker's own start) to the end. The time in which the
run lay on disk, because nobody had asked for it, is none of it: no worker was held. If the driver that saw an attempt
die, or that ended one to go on with more workers, launches the next one itself, what lies between them is wall time,
and recovery.

Of a dead attempt, what follows its last sign of life (an event, a line) is recovery, and so is the start-up of the
attempt after it, up to its first step. The start-up of any other attempt is start-up. What the steps took that a later
resume cut off is recomputed. Idle is what is left of an attempt: writing lines, closing down, and a step that is not
finished yet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from orchestrator.track import metrics
from orchestrator.track.events import read_events
from orchestrator.track.history import Recorded, recorded, share_out
from orchestrator.track.metric_log import FILE, read_metrics

PARTS = (
    "useful",
    "recomputed",
    "startup",
    "compile",
    "data_wait",
    "checkpoint_stall",
    "evaluation",
    "recovery",
    "idle",
)
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Restart:
    """An attempt that died."""

    failure_class: str
    cause: str
    step: int
    """The last good step: what the next attempt goes on from."""
    recovered_in_s: float | None
    """Wall time from the last sign of life to the first step of an attempt after it; None: there is none yet."""

    def to_json(self) -> dict[str, Any]:
        """As `slipway runs show --json` has it."""
        return {
            "class": self.failure_class,
            "cause": self.cause,
            "step": self.step,
            "recovered_in_s": None if self.recovered_in_s is None else round(self.recovered_in_s, 3),
        }


@dataclass(frozen=True)
class Ledger:
    """A run's time."""

    wall_s: float
    """Of all attempts, and of what counts between them."""
    attempts: int
    workers: int
    """Of the newest attempt."""
    parts_s: Mapping[str, float]
    """Seconds of workers, by `PARTS`."""
    restarts: Sequence[Restart]

    @property
    def worker_s(self) -> float:
        """Wall time by workers: the sum of the parts."""
        return math.fsum(self.parts_s.values())

    def goodput(self) -> dict[str, float]:
        """The parts, rounded to the millisecond, and the share of the useful one."""
        total_s = self.worker_s
        fraction = self.parts_s["useful"] / total_s if total_s else 0.0
        return {**{f"{name}_s": round(self.parts_s[name], 3) for name in PARTS}, "fraction": round(fraction, 4)}


def read_ledger(run: Path, *, compiled: bool, now: float | None = None) -> Ledger:
    """The ledger of a run's folder; `now` (`time.time`) of a run that is being trained. Reads files, changes none."""
    path = run / FILE
    last_line_at = path.stat().st_mtime if path.is_file() and path.stat().st_size else None
    return ledger(read_events(run), read_metrics(run), compiled=compiled, last_line_at=last_line_at, now=now)


def ledger(
    events: Iterable[Mapping[str, Any]],
    lines: Iterable[Mapping[str, Any]],
    *,
    compiled: bool,
    last_line_at: float | None = None,
    now: float | None = None,
) -> Ledger:
    """Every second of every worker in one part.

    Args:
        events: of `events.jsonl`, in their order.
        lines: of `metrics.jsonl`: what the steps that stand took.
        compiled: whether the network is compiled: then the first step of an attempt, as far as it is above the median
            of the later ones, is `compile`.
        last_line_at: when the newest line was written (`time.time`).
        now: of a run that is being trained; None: its newest attempt has ended, or has died unseen.
    """
    attempts = recorded(events)
    share_out(attempts, {int(line[metrics.STEP]): line for line in lines})
    spans = _spans(attempts, last_line_at, now)
    total = dict.fromkeys(PARTS, 0.0)
    wall_s, recovering = 0.0, False
    for attempt, span in zip(attempts, spans, strict=True):
        for name, seconds in _parts(attempt, span, compiled=compiled, recovering=recovering).items():
            total[name] += seconds * attempt.workers
        wall_s += span.end_at - span.launched_at + span.gap_s
        recovering = span.dead
    workers = attempts[-1].workers if attempts else 0
    return Ledger(wall_s, len(attempts), workers, total, _restarts(attempts, spans))


@dataclass(frozen=True)
class _Span:
    """An attempt in time; moments never go back, whatever the clocks of several machines say."""

    launched_at: float
    first_step_at: float | None
    alive_until: float
    end_at: float
    dead: bool
    gap_s: float
    """Up to the next launch, where the same driver asked for it."""


def _spans(attempts: Sequence[Recorded], last_line_at: float | None, now: float | None) -> list[_Span]:
    newest_line: list[float | None] = []
    line_at = last_line_at
    for attempt in reversed(attempts):
        newest_line.insert(0, line_at)
        if attempt.started_at is not None:  # it has looked at the lines of those before it
            line_at = attempt.line_before_at
    spans: list[_Span] = []
    end_at = -math.inf
    for attempt, after, line in zip(attempts, [*attempts[1:], None], newest_line, strict=False):
        is_alive = now is not None and after is None and attempt.end_at is None
        own_line = line if attempt.started_at is not None else None
        spans.append(_span(attempt, after, not_before=end_at, line_at=own_line, now=now if is_alive else None))
        end_at = spans[-1].end_at
    return spans


def _span(
    attempt: Recorded, after: Recorded | None, *, not_before: float, line_at: float | None, now: float | None
) -> _Span:
    """`now` of an attempt that is alive; `line_at`: when the newest line was written that may be its own."""
    launched_at = max(attempt.launched_at, not_before)
    limit = max(launched_at, after.launched_at) if after else math.inf
    first_at = attempt.first_step_at
    if first_at is None and (attempt.lines or attempt.recomputed_s):
        first_at = attempt.started_at
    signs = [attempt.seen_at, -math.inf if line_at is None else line_at]
    if first_at is not None:
        signs.append(first_at + math.fsum(_stepping(attempt, compiled=False).values()))
    alive_until = end_at = min(max(launched_at, *signs), limit)
    if now is not None:
        alive_until = end_at = max(launched_at, now)
    elif attempt.end_at is not None:
        end_at = min(max(launched_at, attempt.end_at), limit)
        alive_until = end_at if attempt.in_order else min(alive_until, end_at)
    dead = now is None and not attempt.in_order
    asked = after is not None and attempt.driver is not None and attempt.driver == after.driver
    goes_on = dead or (after is not None and after.resized)
    return _Span(
        launched_at=launched_at,
        first_step_at=None if first_at is None else min(max(launched_at, first_at), alive_until),
        alive_until=alive_until,
        end_at=end_at,
        dead=dead,
        gap_s=limit - end_at if goes_on and asked else 0.0,
    )


def _parts(attempt: Recorded, span: _Span, *, compiled: bool, recovering: bool) -> dict[str, float]:
    """Of one worker, in seconds; their sum is the span with its gap."""
    parts = dict.fromkeys(PARTS, 0.0)
    begun_at = span.alive_until if span.first_step_at is None else span.first_step_at
    parts["recovery" if recovering else "startup"] = begun_at - span.launched_at
    parts["recovery"] += span.end_at - span.alive_until + span.gap_s
    room_s = span.alive_until - begun_at
    for name, seconds in _stepping(attempt, compiled=compiled).items():
        parts[name] = min(max(0.0, seconds), room_s)
        room_s -= parts[name]
    parts["idle"] = room_s
    return parts


def _stepping(attempt: Recorded, *, compiled: bool) -> dict[str, float]:
    """What is known of an attempt's time from its first step on."""
    wait_s = [float(line.get(metrics.DATA_WAIT, 0.0)) for line in attempt.lines]
    own_s = [float(line.get(metrics.STEP_TIME, 0.0)) - w for line, w in zip(attempt.lines, wait_s, strict=True)]
    compile_s = 0.0
    if compiled and len(own_s) > 1 and attempt.lines[0][metrics.STEP] == attempt.step + 1:
        compile_s = max(0.0, own_s[0] - median(own_s[1:]))
    return {
        "useful": math.fsum(own_s) - compile_s,
        "recomputed": attempt.recomputed_s,
        "compile": compile_s,
        "data_wait": math.fsum(wait_s),
        "checkpoint_stall": math.fsum(attempt.checkpoints_s),
        "evaluation": math.fsum(float(line.get(metrics.EVALUATION_TIME, 0.0)) for line in attempt.lines),
    }


def _restarts(attempts: Sequence[Recorded], spans: Sequence[_Span]) -> list[Restart]:
    found, good_step = [], 0
    for i, (attempt, span) in enumerate(zip(attempts, spans, strict=True)):
        good_step = attempt.good_step(good_step)
        if span.dead:
            said = attempt.failed or _killed(attempt)
            failure_class, cause = said.get("class"), said.get("cause") or said.get("error")
            step = said.get("step")
            found.append(
                Restart(
                    str(failure_class or _UNKNOWN),
                    str(cause or _UNKNOWN),
                    step if isinstance(step, int) else good_step,
                    _recovered_in_s(spans[i:]),
                )
            )
    return found


def _killed(attempt: Recorded) -> dict[str, str]:
    """What is known of an attempt that nothing was noted of: whoever would have noted it was killed too."""
    if attempt.driver is None:
        return {"class": "worker", "cause": "its process was killed, or its machine was lost"}
    return {"class": "control-plane", "cause": "the driver was killed, or its machine was lost"}


def _recovered_in_s(spans: Sequence[_Span]) -> float | None:
    """Of the first span, up to the first step of one after it; None if there is none."""
    dead, *later = spans
    passed_s = dead.end_at - dead.alive_until + dead.gap_s
    for span in later:
        if span.first_step_at is not None:
            return passed_s + span.first_step_at - span.launched_at
        passed_s += span.end_at - span.launched_at + span.gap_s
    return None
