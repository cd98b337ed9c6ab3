"""Which step is the best, and when a run ends early."""

from __future__ import annotations

import pytest

from orchestrator.checkpoint.layout import Progress, to_delete
from orchestrator.errors import JobError
from orchestrator.job_train import EarlyStopping, Evaluate
from orchestrator.train.selection import judged


def follow(values: list[float], settings: Evaluate) -> list[Progress]:
    progress, seen = Progress(), []
    for i, value in enumerate(values, 1):
        progress = judged(progress.model_copy(update={"step": i}), {"loss": value, "accuracy": value}, settings)
        seen.append(progress)
    return seen


def test_the_best_is_the_lowest_loss_and_the_highest_accuracy() -> None:
    values = [3.0, 2.0, 2.5, 1.0, 4.0]
    assert [p.best_step for p in follow(values, Evaluate(best="loss"))] == [1, 2, 2, 4, 4]
    assert [p.best_step for p in follow(values, Evaluate(best="accuracy"))] == [1, 1, 1, 1, 5]
    assert [p.best_step for p in follow(values, Evaluate())] == [None] * 5


def test_a_run_ends_when_nothing_became_better_for_long_enough() -> None:
    settings = Evaluate(every_steps=1, best="loss", early_stopping=EarlyStopping(patience=2))
    seen = follow([3.0, 2.0, 2.5, 1.9, 1.9, 2.0], settings)
    assert [p.ended_early for p in seen] == [False, False, False, False, False, True]
    assert seen[-1].is_end(steps=100)
    assert (seen[-1].best_step, seen[-1].best_value) == (4, 1.9)


def test_a_change_that_is_too_small_is_none() -> None:
    settings = Evaluate(every_steps=1, best="loss", early_stopping=EarlyStopping(patience=2, min_change=0.5))
    assert [p.best_step for p in follow([3.0, 2.8, 2.4], settings)] == [1, 1, 3]


def test_a_metric_that_there_is_not_names_those_there_are() -> None:
    with pytest.raises(JobError, match="macro_f1, which is no metric here") as caught:
        judged(Progress(step=1), {"loss": 1.0, "perplexity": 2.7}, Evaluate(best="macro_f1"))
    assert "loss, perplexity" in str(caught.value)


def test_retention_never_gives_up_the_best() -> None:
    assert to_delete([10, 20, 30, 40], keep_last=2, best_step=10) == [20]
    assert to_delete([10, 20, 30, 40], keep_last=2, best_step=None) == [10, 20]
    assert to_delete([10, 20], keep_last=3, best_step=10) == []
