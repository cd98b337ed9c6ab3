"""`slipway runs` over a store: what is listed, and what is told of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from catalogue_fixtures import lay_out_runs
from evaluation_fixtures import job_file, lay_out_dataset, lay_out_run
from typer.testing import CliRunner

from orchestrator.catalogue.database import FILE
from orchestrator.cli import app
from orchestrator.compare import tag_run
from orchestrator.errors import JobError
from orchestrator.job_file import load_job
from orchestrator.store import Store
from orchestrator.track.events import record


def call(*words: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, words), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(tmp_path / "store")
    for run in lay_out_runs(found, 4)[:2]:
        tag_run(run, add=["early"], remove=[])
    return found


def test_runs_are_listed_by_what_is_asked(store: Store) -> None:
    def numbers(*words: object) -> list[int]:
        rows = call("runs", "list", "--store", store.root, *words)["runs"]
        return [int(row["name"].rpartition("-")[2], 16) for row in rows]

    assert numbers() == [3, 2, 1, 0]
    assert len(call("runs", "--store", store.root)["runs"]) == 4
    assert numbers("--state", "exported") == [3, 1]
    assert numbers("--tag", "early") == [1, 0]
    assert numbers("--job", "job2") == [2]
    assert numbers("--since", "2023-11-14T22:15:00+00:00", "--limit", 1) == [3]
    assert numbers("--since", "1d") == []
    assert (store.root / FILE).is_file()
    with pytest.raises(JobError, match="is no state"):
        call("runs", "list", "--store", store.root, "--state", "lost")


def test_a_run_is_told_with_who_has_launched_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    job = load_job(job_file(tmp_path))
    run = lay_out_run(store, job, lay_out_dataset(store, job))
    record(run, "launched", attempt=1, workers=2, by="ana@laptop", host="head", submission="slipway-1")
    told = call("runs", "show", run.name, "--store", store.root)
    (launched,) = told["jobs"]
    assert {name: launched[name] for name in ("attempt", "submitter", "host", "submission")} == {
        "attempt": 1,
        "submitter": "ana@laptop",
        "host": "head",
        "submission": "slipway-1",
    }
    assert (told["children"], told["served"], told["state"], told["job"]) == ([], [], "trained", "tiny")
    shown = CliRunner().invoke(app, ["runs", "show", run.name, "--store", str(store.root)])
    assert "ana@laptop" in shown.stdout
    listed = CliRunner().invoke(app, ["runs", "list", "--store", str(store.root)], env={"COLUMNS": "160"})
    assert run.name in listed.stdout
