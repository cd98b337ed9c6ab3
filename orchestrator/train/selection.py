"""Which step is the best so far, and whether it is time to stop. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.checkpoint.layout import Progress
from orchestrator.errors import JobError
from orchestrator.job_train import Evaluate
from orchestrator.objectives.scores.direction import direction_of


def judged(progress: Progress, scores: Mapping[str, float], settings: Evaluate) -> Progress:
    """Progress with the scores of its step, and with what follows from them for the best and for the end.

    Raises:
        JobError: `best` names no metric of this objective.
    """
    progress = progress.model_copy(update={"scores": dict(scores)})
    if settings.best is None:
        return progress
    if settings.best not in scores:
        raise JobError(
            f"train.evaluate.best is {settings.best}, which is no metric here",
            fix=f"name one of {', '.join(sorted(scores))}",
        )
    value = scores[settings.best]
    if _is_better(value, progress.best_value, settings):
        return progress.model_copy(update={"best_step": progress.step, "best_value": value, "without_better": 0})
    waited = progress.without_better + 1
    stopping = settings.early_stopping
    ended = stopping is not None and waited >= stopping.patience
    return progress.model_copy(update={"without_better": waited, "ended_early": ended})


def _is_better(value: float, best: float | None, settings: Evaluate) -> bool:
    if best is None:
        return True
    change = settings.early_stopping.min_change if settings.early_stopping else 0.0
    return value < best - change if direction_of(str(settings.best)) == "min" else value > best + change
