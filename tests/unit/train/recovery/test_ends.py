"""What is said of an end by failure: in events.jsonl, and by the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import JobError, NumericalError, SlipwayError, TrainError
from orchestrator.job_train import Guard
from orchestrator.store import MARKER
from orchestrator.track.events import read_events
from orchestrator.track.samples import Window, read_windows
from orchestrator.train.guarding.guard import RollbackError
from orchestrator.train.recovery.ends import final_error, last_good_step, leave_out, record_failure
from orchestrator.train.recovery.failures import classify
from orchestrator.train.recovery.retries import Decision, Failed

STOP = Decision("stop", "another attempt would end the same way")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (JobError("no such metric", fix="name one"), JobError, "class user-mistake"),
        (RuntimeError("CUDA error"), TrainError, "class worker"),
    ],
)
def test_the_message_names_class_cause_and_step(error: Exception, kind: type[SlipwayError], said: str) -> None:
    final = final_error(Path("tiny-01"), Failed(classify(error), 8), STOP)
    assert type(final) is kind
    cause = str(error).splitlines()[0]
    assert final.message == f"tiny-01 failed: {cause} ({said}, last good step 8; {STOP.why})"
    assert final.fix


def test_without_a_checkpoint_no_step_is_good(tmp_path: Path) -> None:
    assert last_good_step(tmp_path) == 0
    assert "no step saved" in final_error(tmp_path, Failed(classify(RuntimeError("x")), 0), STOP).message


def test_the_last_good_step_is_of_the_newest_committed_checkpoint(tmp_path: Path) -> None:
    for step, committed in ((4, True), (8, True), (12, False)):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        if committed:
            (folder / MARKER).touch()
    assert last_good_step(tmp_path) == 8


def test_the_event_has_what_a_reader_needs(tmp_path: Path) -> None:
    record_failure(tmp_path, Failed(classify(RuntimeError("CUDA error")), 8), STOP, attempt=2)
    (event,) = read_events(tmp_path)
    assert {k: v for k, v in event.items() if k != "time"} == {
        "event": "failed", "attempt": 2, "class": "worker", "cause": "CUDA error", "step": 8, "action": "stop",
        "why": STOP.why,
    }  # fmt: skip


def test_a_rollback_leaves_batches_out_and_no_other_failure_does(tmp_path: Path) -> None:
    leave_out(tmp_path, Failed(classify(NumericalError("the loss is nan")), 8), Guard())
    assert read_windows(tmp_path) == []
    leave_out(tmp_path, Failed(classify(RollbackError("the loss is nan", step=10)), 8), Guard(skip_batches=5))
    assert read_windows(tmp_path) == [Window(8, 5)]
