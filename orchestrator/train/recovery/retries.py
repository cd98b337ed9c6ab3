"""What follows a failure: another attempt, at once or later, or the end. A pure function of what has failed so far.

Only an attempt that has ended is decided on, never a status: one that flaps restarts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.job_train import Budget, Retries
from orchestrator.train.guarding.guard import RollbackError
from orchestrator.train.recovery.failures import Failure, FailureClass

_WAITS = frozenset({FailureClass.STORAGE, FailureClass.CONTROL_PLANE})
_OF_THE_CLUSTER = frozenset({FailureClass.PREEMPTION, FailureClass.CONTROL_PLANE})
"""These say the same each time and nothing about the step: machines come back when they come."""
_SAME_AT_MOST = 3
_FIRST_WAIT_S, _LONGEST_WAIT_S = 2.0, 60.0


@dataclass(frozen=True)
class Failed:
    """A failure, and how far the run had come."""

    failure: Failure
    step: int
    """The last good one: of the newest checkpoint, or 0."""


@dataclass(frozen=True)
class Decision:
    """What to do after a failure."""

    action: Literal["retry", "retry-smaller", "rollback", "stop"]
    why: str
    after_s: float = 0.0


def decide(history: Sequence[Failed], budgets: Retries) -> Decision:
    """What follows the last failure of `history`, which is in order and not empty.

    A class may be tried again as often as its budget says since the last progress: a checkpoint beyond all before.
    """
    last = history[-1].failure
    key = last.kind.value.replace("-", "_")
    rolls_back = isinstance(last.error, RollbackError)  # as often as the guard allows, which counts for itself
    if not (key in Retries.model_fields or rolls_back) or not last.retriable:  # other classes have no budget
        return Decision("stop", "another attempt would end the same way")
    since = _since_progress(history)
    signatures = [one.failure.signature for one in since[-_SAME_AT_MOST:]]
    if len(signatures) == _SAME_AT_MOST and len(set(signatures)) == 1 and last.kind not in _OF_THE_CLUSTER:
        return Decision("stop", f"the same {_SAME_AT_MOST} times in a row after step {history[-1].step}")
    if rolls_back:
        return Decision("rollback", "without the batches that led there")
    used = sum(one.failure.kind == last.kind for one in since)
    budget: Budget = getattr(budgets, key)
    if budget != "unlimited" and used > budget:
        return Decision("stop", f"train.retries.{key} allows {budget} without a new checkpoint")
    after_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(used - 1, 30)) if last.kind in _WAITS else 0.0
    allowed = "" if budget == "unlimited" else f" of {budget}"
    smaller = last.kind is FailureClass.OUT_OF_MEMORY
    return Decision("retry-smaller" if smaller else "retry", f"retry {used}{allowed}", after_s)


def _since_progress(history: Sequence[Failed]) -> Sequence[Failed]:
    """The failures after which no step beyond the best so far was saved."""
    best = max(one.step for one in history)
    first = next(i for i, one in enumerate(history) if one.step == best)
    return history[first:]
