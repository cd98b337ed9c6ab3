"""What the driver does about a failure that asks to go back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.attempts import writing_run
from orchestrator.errors import NumericalError
from orchestrator.job import JobSpec
from orchestrator.store import MARKER
from orchestrator.track.events import read_events
from orchestrator.track.samples import Window, read_windows
from orchestrator.train.driver.launch import _after, _Task
from orchestrator.train.guarding.guard import RollbackError


def task_of(run: Path, job: JobSpec) -> _Task:
    """Of a run with a checkpoint of step 8."""
    saved = run / "checkpoints" / "step-00000008"
    saved.mkdir(parents=True)
    (saved / MARKER).touch()
    nothing: Any = None
    return _Task(job, run, nothing, nothing, nothing)


def test_a_rollback_leaves_out_batches_and_goes_on(
    tmp_path: Path, tiny_job: Callable[..., JobSpec], capsys: pytest.CaptureFixture[str]
) -> None:
    task = task_of(tmp_path, tiny_job("train.guard.skip_batches=3"))
    with writing_run(tmp_path) as attempt:
        decision = _after(task, [], RollbackError("the loss of step 10 is nan", step=10), attempt=attempt)
    assert decision.action == "rollback"
    assert read_windows(tmp_path) == [Window(8, 3)]
    (failed,) = [event for event in read_events(tmp_path) if event["event"] == "failed"]
    assert (failed["class"], failed["action"], failed["step"]) == ("numerical", "rollback", 8)
    assert "going on from step 8 (without the batches that led there)" in capsys.readouterr().err


def test_a_plain_numerical_error_stops(tmp_path: Path, tiny_job: Callable[..., JobSpec]) -> None:
    task = task_of(tmp_path, tiny_job())
    with writing_run(tmp_path) as attempt:
        assert _after(task, [], NumericalError("the loss of step 10 is nan"), attempt=attempt).action == "stop"
    assert read_windows(tmp_path) == []
