"""Which checkpoint of a run is exported, where, and when again."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from evaluation_fixtures import job_file, lay_out_checkpoint, lay_out_dataset, lay_out_run

from orchestrator.errors import StoreError
from orchestrator.export.prove import load_proven
from orchestrator.export.stage import Exported, chosen_checkpoint, export_at, export_run, newest_export
from orchestrator.job import JobSpec
from orchestrator.job_file import load_job
from orchestrator.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def job(tmp_path: Path) -> JobSpec:
    return load_job(job_file(tmp_path))


@pytest.fixture
def run(store: Store, job: JobSpec) -> Path:
    return lay_out_run(store, job, lay_out_dataset(store, job))


def exported(run: Path) -> Exported:
    with contextlib.ExitStack() as stack:
        return export_run(run, at_end=stack.callback)


def test_the_newest_checkpoint_is_exported_once(run: Path) -> None:
    made = exported(run)
    assert (made.path, made.reused) == (run / "export" / "step-00000020", False)
    assert exported(run) == Exported(made.path, reused=True)
    assert newest_export(run) == made.path
    manifest = load_proven(made.path).manifest
    assert (manifest.run, manifest.origin, manifest.step) == (run.name, "trained", 20)


def test_the_best_checkpoint_is_exported_where_a_metric_chooses(run: Path, job: JobSpec) -> None:
    lay_out_checkpoint(run, 30, job.model.config(300), best_step=10)
    assert chosen_checkpoint(run).step == 10
    assert exported(run).path.name == "step-00000010"


def test_an_export_of_an_older_format_is_written_again(run: Path) -> None:
    made = exported(run).path
    manifest = json.loads((made / "manifest.json").read_text())
    (made / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    assert exported(run) == Exported(made, reused=False)
    load_proven(made)


def test_a_run_without_a_checkpoint_says_so(store: Store, job: JobSpec) -> None:
    folder = store.runs / "empty"
    folder.mkdir(parents=True)
    with pytest.raises(StoreError, match="empty has no checkpoint yet"):
        chosen_checkpoint(folder)


def test_an_export_is_found_by_path_and_name_and_a_checkpoint_is_none(store: Store, run: Path) -> None:
    made = exported(run).path
    assert export_at(store, str(made)) == made
    assert export_at(store, f"runs/{run.name}/export/{made.name}") == made
    assert export_at(store, run.name) is None
    assert export_at(store, f"runs/{run.name}/checkpoints/step-00000020") is None
    store.exports.mkdir()
    made.rename(store.exports / "theirs-0123")
    assert export_at(store, "theirs-0123") == store.exports / "theirs-0123"
