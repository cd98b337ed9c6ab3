"""What `slipway prepare` leaves for a training without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluation_fixtures import job_file, lay_out_dataset

from orchestrator.cluster.connect import Session
from orchestrator.data.dataset import open_dataset
from orchestrator.job_file import load_job
from orchestrator.run import lay_out_run
from orchestrator.store import Store


def test_the_runs_folder_is_said_each_time_and_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, job = Store(tmp_path / "store"), load_job(job_file(tmp_path))
    dataset = open_dataset(lay_out_dataset(store, job))
    lay_out_run(job, store, Session(), dataset)
    (folder,) = store.runs.iterdir()
    before = (folder / "plan.json").stat().st_mtime_ns
    lay_out_run(job, store, Session(), dataset)
    assert (folder / "plan.json").stat().st_mtime_ns == before
    assert capsys.readouterr().err.count(f"orchestrator.train.worker --run {folder}") == 2
