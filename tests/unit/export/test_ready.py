"""A process that stands ready: a line in, an export or an error out, and one wrong run ends nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path

from evaluation_fixtures import job_file, lay_out_dataset, lay_out_run

from orchestrator.export.ready import answer
from orchestrator.job_file import load_job
from orchestrator.store import Store, is_committed


def test_each_line_is_answered_by_one(tmp_path: Path) -> None:
    job, store = load_job(job_file(tmp_path)), Store(tmp_path / "store")
    run = lay_out_run(store, job, lay_out_dataset(store, job))
    (tmp_path / "empty").mkdir()
    answers = io.StringIO()
    answer([json.dumps(str(folder)) for folder in (tmp_path / "empty", run, run)], answers)
    wrong, *good = map(json.loads, answers.getvalue().splitlines())
    assert wrong["error"]["kind"] == "job"
    assert "empty" in wrong["error"]["message"]
    assert good == [{"export": str(run / "export" / "step-00000020")}] * 2
    assert is_committed(Path(good[0]["export"]))
