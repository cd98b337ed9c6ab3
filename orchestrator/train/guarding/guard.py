"""The numerical guard: which steps go wrong, and what is done about it. Knows neither torch nor Ray.

A verdict is a function of the losses and gradient norms so far, which all ranks have alike: so all say the same. A
spike is a value far above the last ones by their median and their median deviation (Leys et al. 2013): of the loss as
it is, of the gradient norm by its logarithm, because norms differ by factors.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from orchestrator.errors import NumericalError
from orchestrator.job_train import Guard as Settings
from orchestrator.store import write_text
from orchestrator.track import metrics
from orchestrator.track.metric_log import read_metrics
from orchestrator.track.samples import SKIPPED, Window, batch_of, read_windows

Action = Literal["none", "warn", "skip", "rollback", "stop"]
Kind = Literal["none", "non-finite", "spike"]

NAMED = 64
"""Samples of a wrong step that are told by their numbers."""
_DEVIATION = 1.4826
"""A normal distribution's standard deviation by its median deviation."""
_LEAST = 0.05
"""The deviation is taken to be no smaller, as a share of the value: a curve that hardly moves is no cause to warn."""
_TINY = 1e-12
_NAMED_IN_A_LINE = 16
_ADVICE = (
    "lower train.optimizer.learning_rate or lengthen the warm-up, then run the same command again; "
    "train.guard can skip such steps; in step 1 look at the samples and at train.from"
)


@dataclass(frozen=True)
class Verdict:
    """What the guard says of a step before its update."""

    kind: Kind = "none"
    action: Action = "none"
    of: str = ""
    """The metric that is wrong."""
    value: float = 0.0
    z: float | None = None
    """Of a spike: how many deviations it is above the median."""
    why: str = ""
    """In one line, for people."""


@dataclass(frozen=True)
class Anomaly:
    """A step whose numbers are wrong, as it is told."""

    step: int
    verdict: Verdict
    samples: tuple[int, ...]
    """The first of the step's samples."""
    more: int
    """How many others there are."""

    @property
    def line(self) -> str:
        """For people."""
        done = {"skip": ": its update is left out", "rollback": ": the run goes back to its newest checkpoint"}
        return f"step {self.step}: {self.verdict.why}{done.get(self.verdict.action, '')}; {self.named}"

    @property
    def named(self) -> str:
        """The samples, as far as a line holds them."""
        rest = len(self.samples) + self.more - _NAMED_IN_A_LINE
        return (
            "its samples are "
            + ", ".join(map(str, self.samples[:_NAMED_IN_A_LINE]))
            + (f" and {rest} more" if rest > 0 else "")
        )

    def facts(self) -> dict[str, object]:
        """Of the event `anomaly`: plain data that any reader of JSON takes."""
        found = self.verdict
        return {
            "step": self.step,
            "kind": found.kind,
            "metric": found.of,
            "value": found.value if math.isfinite(found.value) else str(found.value),
            "z": None if found.z is None else round(found.z, 2),
            "action": found.action,
            "why": found.why,
            "samples": list(self.samples),
            "more": self.more,
        }

    def error(self) -> NumericalError:
        """What ends the attempt."""
        message = f"{self.verdict.why}; {self.named}"
        if self.verdict.action != "rollback":
            return NumericalError(message, fix=_ADVICE)
        return RollbackError(message, step=self.step)


class RollbackError(NumericalError):
    """The run is to go on from the checkpoint before `step`, without the batches that led to it."""

    def __init__(self, message: str, *, fix: str | None = None, step: int = 0) -> None:
        super().__init__(message, fix=fix or "run the same command again: it goes on without these samples")
        self.step = step


@dataclass(frozen=True)
class Past:
    """What a guard knows of the steps before those that it will judge."""

    losses: tuple[float, ...] = ()
    grad_norms: tuple[float, ...] = ()
    """Of the last steps, without those that are no numbers."""
    interventions: int = 0
    """Updates that were left out, and rollbacks."""
    windows: tuple[Window, ...] = ()
    """Batches that rollbacks have left out."""


def read_past(run: Path, step: int, settings: Settings) -> Past:
    """What a run's folder tells a guard of the steps up to `step`."""
    losses: deque[float] = deque(maxlen=settings.window_steps)
    norms: deque[float] = deque(maxlen=settings.window_steps)
    skipped = 0
    for line in read_metrics(run):
        if line[metrics.STEP] > step:
            break
        for values, value in ((losses, line.get(metrics.LOSS)), (norms, line.get(metrics.GRADIENT_NORM))):
            if value is not None and math.isfinite(value):
                values.append(value)
        skipped += int(line.get(metrics.SKIPPED_UPDATES, 0))
    windows = tuple(read_windows(run))
    return Past(tuple(losses), tuple(norms), skipped + len(windows), windows)


class Guard:
    """Judges step after step, in their order.

    Args:
        scaled: losses are scaled (fp16): a gradient that overflows is the scaler's business.
    """

    def __init__(self, settings: Settings, past: Past, *, scaled: bool = False) -> None:
        self._settings, self._scaled = settings, scaled
        self._losses = _Recent(past.losses, settings.window_steps, by_share=True)
        self._norms = _Recent(map(_log, past.grad_norms), settings.window_steps, by_share=False)
        self._interventions = past.interventions

    def judge(self, step: int, loss: float, grad_norm: float) -> Verdict:
        """What to do about a step, given its loss over all ranks and the norm of its gradient. Call it once a step."""
        wrong = self._non_finite(step, loss, grad_norm) or self._spike(step, loss, grad_norm)
        if math.isfinite(loss):
            self._losses.add(loss)
        if math.isfinite(grad_norm):
            self._norms.add(_log(grad_norm))
        return wrong or Verdict()

    def _non_finite(self, step: int, loss: float, grad_norm: float) -> Verdict | None:
        found = ((metrics.LOSS, "loss", loss), (metrics.GRADIENT_NORM, "gradient norm", grad_norm))
        for of, name, value in found[: 1 if self._scaled else 2]:
            if not math.isfinite(value):
                why = f"the {name} of step {step} is {value}"
                return self._capped("non-finite", self._settings.non_finite, of, value, None, why)
        return None

    def _spike(self, step: int, loss: float, grad_norm: float) -> Verdict | None:
        if self._settings.spike == "off" or not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return None
        wrong: list[tuple[float, str, str, float, float]] = []
        if (far := self._losses.above(loss, self._settings.z)) is not None:
            wrong.append((far[0], metrics.LOSS, "loss", loss, far[1]))
        if (far := self._norms.above(_log(grad_norm), self._settings.z)) is not None:
            wrong.append((far[0], metrics.GRADIENT_NORM, "gradient norm", grad_norm, math.exp(far[1])))
        if not wrong:
            return None
        z, of, name, value, usual = max(wrong)
        why = f"the {name} of step {step} is {value:.4g}, {z:.0f} deviations above {usual:.4g}"
        return self._capped("spike", self._settings.spike, of, value, z, why)

    def _capped(self, kind: Kind, action: Action, of: str, value: float, z: float | None, why: str) -> Verdict:
        if action in ("skip", "rollback"):
            self._interventions += 1
            if self._interventions > self._settings.most:
                action, why = "stop", f"{why}, and train.guard.most allows {self._settings.most} skips and rollbacks"
        return Verdict(kind, action, of, value, z, why)


def left_out(step: int, after_step: int, windows: Sequence[Window], *, at_least: int) -> Window:
    """The batches that a rollback from `step` leaves out, once the run goes on after `after_step`.

    They begin with the next one, and the one that `step` has consumed is among them.
    """
    up_to_it = batch_of(step, windows) - batch_of(after_step + 1, windows) + 1
    return Window(after_step, max(at_least, up_to_it))


def roll_back(run: Path, error: RollbackError, *, to_step: int, settings: Settings) -> Window:
    """Note that the run goes on after `to_step`, its newest checkpoint's, without the batches that led to `error`."""
    windows = list(read_windows(run))
    window = left_out(error.step, to_step, windows, at_least=settings.skip_batches)
    document = [{"after_step": one.after_step, "batches": one.batches} for one in (*windows, window)]
    write_text(run / SKIPPED, json.dumps(document, indent=2) + "\n")
    return window


class _Recent:
    """The last values, and how far above them another is."""

    def __init__(self, values: Iterable[float], length: int, *, by_share: bool) -> None:
        self._length, self._by_share = length, by_share
        self._kept: deque[float] = deque()
        self._sorted: list[float] = []
        for value in values:
            self.add(value)

    def add(self, value: float) -> None:
        self._kept.append(value)
        insort(self._sorted, value)
        if len(self._kept) > self._length:
            del self._sorted[bisect_left(self._sorted, self._kept.popleft())]

    def above(self, value: float, limit: float) -> tuple[float, float] | None:
        """Deviations above the median, and that; None where they are no more than `limit`.

        None of the first values too: they are too few to know what is usual.
        """
        if len(self._sorted) < max(2, self._length // 2):
            return None
        middle = median(self._sorted)
        least = max(_LEAST * abs(middle) if self._by_share else _LEAST, _TINY)
        if value - middle <= limit * least:  # as nearly always: the deviation is no smaller
            return None
        deviation = _DEVIATION * median(abs(one - middle) for one in self._sorted)
        z = (value - middle) / max(deviation, least)
        return (z, middle) if z > limit else None


def _log(norm: float) -> float:
    return math.log(max(norm, _TINY))
