"""How an export did: of its checkpoint, of the weights that go before one, or of the run's metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.checkpoint.layout import PROGRESS, Progress
from orchestrator.serve.rollout.scores import scores_of
from orchestrator.store import commit, delete_committed, writing


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").touch()
    return tmp_path


def save(folder: Path, **progress: float) -> Path:
    with writing(folder) as tmp:
        (tmp / PROGRESS).write_text(
            Progress.model_validate({"step": 8, "scores": {"accuracy": 0.5}, **progress}).model_dump_json()
        )
        commit(tmp, folder, {"step": 8})
    return folder


def test_a_checkpoint_is_asked_then_the_metrics(run: Path) -> None:
    export = run / "export" / "step-00000008"
    weights = save(run / "weights" / export.name, validation_loss=3.0)
    assert scores_of(export) == {"accuracy": 0.5, "validation_loss": 3.0}
    checkpoint = save(run / "checkpoints" / export.name, train_loss=2.0)
    assert scores_of(export) == {"accuracy": 0.5, "train_loss": 2.0}
    delete_committed(weights)
    delete_committed(checkpoint)
    lines = [
        {"train/step": 7, "train/loss": 9.0},
        {"train/step": 8, "train/loss": 2.0, "eval/loss": 2.5, "eval/f1": 0.5},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert scores_of(export) == {"train_loss": 2.0, "validation_loss": 2.5, "loss": 2.5, "f1": 0.5}


def test_an_import_has_none(tmp_path: Path) -> None:
    assert scores_of(tmp_path / "exports" / "theirs-0123") == {}
