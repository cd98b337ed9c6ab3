"""What the store says of a run: where its time went, what that costs, and whether it is being trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluation_fixtures import job_file, lay_out_dataset, lay_out_run

from orchestrator.attempts import writing_run
from orchestrator.job_file import load_job
from orchestrator.status import account_for_run, describe_run
from orchestrator.store import Store
from orchestrator.track.events import record
from orchestrator.track.metric_log import FILE
from orchestrator.track.metrics import DATA_WAIT, LOSS, STEP, STEP_TIME, TOKENS_PER_S

PRICED = ("cluster.cpu_hour_price=36.0", "train.workers={min: 2, cpus: 3}")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two workers: 90 s of start-up and one step of 10 s, recorded as it ends."""
    store, job = Store(tmp_path / "store"), load_job(job_file(tmp_path), PRICED)
    folder = lay_out_run(store, job, lay_out_dataset(store, job))
    record(folder, "started", step=0, attempt=1, workers=2, startup={"workers_s": 90.0})
    line = f'"{STEP}": 1, "{STEP_TIME}": 10.0, "{DATA_WAIT}": 2.0, "{LOSS}": 1.5, "{TOKENS_PER_S}": 6.0'
    (folder / FILE).write_text(f"{{{line}}}\n")
    return folder


def test_a_run_is_told_with_its_time_and_its_price(run: Path) -> None:
    store = Store(run.parents[1])
    told = account_for_run(run, store)
    assert {name: told[name] for name in describe_run(run, store)} == describe_run(run, store)
    assert told["goodput"]["useful_s"] == pytest.approx(16.0)
    assert told["goodput"]["data_wait_s"] == pytest.approx(4.0)
    assert told["goodput"]["startup_s"] == pytest.approx(180.0, abs=0.01)
    assert (told["attempts"], told["workers"], told["gpu_hours"]) == (1, 2, 0.0)
    assert told["worker_s"] == pytest.approx(2 * told["wall_s"], abs=0.01)
    assert told["cpu_hours"] == pytest.approx(200 * 3 / 3600, abs=1e-3)
    assert told["cost"] == pytest.approx(200 * 3 / 3600 * 36.0, abs=0.1)
    cause = "its process was killed, or its machine was lost"
    assert told["restarts"] == [{"class": "worker", "cause": cause, "step": 0, "recovered_in_s": None}]


def test_a_run_that_is_being_written_is_alive_and_has_not_died(run: Path) -> None:
    store = Store(run.parents[1])
    assert not account_for_run(run, store)["alive"]
    with writing_run(run):
        told = account_for_run(run, store)
        assert told["alive"]
        assert told["restarts"] == []
    assert not account_for_run(run, store)["alive"]


def test_a_look_does_not_keep_a_driver_from_its_run(run: Path) -> None:
    account_for_run(run, Store(run.parents[1]))
    with writing_run(run) as attempt:
        attempt.check()
