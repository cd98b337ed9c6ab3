"""What an evaluation in the middle of a training leaves: the scores it gives, the tables it tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.objectives.scores.result import Scores, Table
from orchestrator.train.evaluate import Evaluation, write_scores

CONFUSION = Table(("truth", "a", "b"), (("a", 3, 1), ("b", 0, 5)))
TEXTS = Table(("prompt", "text"), (("The ", "ship"),))


def test_who_is_told_gets_the_tables_of_the_scores_and_what_was_written() -> None:
    told: list[tuple[int, Scores]] = []
    scores = Scores({"loss": 0.5}, {"confusion": CONFUSION})
    evaluate = Evaluation(lambda: scores, lambda: TEXTS, lambda step, found: told.append((step, found)))
    found = evaluate(20)
    assert told == [(20, found)]
    assert found.metrics == scores.metrics
    assert found.tables == {"confusion": CONFUSION, "generated": TEXTS}
    assert scores.tables == {"confusion": CONFUSION}, "the scores themselves stay as they were"


def test_a_model_that_writes_nothing_leaves_the_scores_alone() -> None:
    scores = Scores({"loss": 0.5}, {"confusion": CONFUSION})
    assert Evaluation(lambda: scores, None, lambda step, found: None)(3) is scores


def test_the_tables_are_json_in_the_runs_folder(tmp_path: Path) -> None:
    path = write_scores(tmp_path, 20, Scores({"loss": float("nan")}, {"confusion": CONFUSION}))
    assert path == tmp_path / "scores" / "step-00000020.json"
    assert json.loads(path.read_text()) == {
        "step": 20,
        "metrics": {"loss": None},
        "tables": {"confusion": {"columns": ["truth", "a", "b"], "rows": [["a", 3, 1], ["b", 0, 5]]}},
    }


def test_a_step_that_is_done_again_replaces_its_own(tmp_path: Path) -> None:
    for loss in (2.0, 1.0):
        path = write_scores(tmp_path, 5, Scores({"loss": loss}, {"generated": TEXTS}))
    assert json.loads(path.read_text())["metrics"] == {"loss": pytest.approx(1.0)}
    assert [p.name for p in path.parent.iterdir()] == ["step-00000005.json"]
