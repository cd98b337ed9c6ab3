"""Which checkpoint of a run is exported, where, and when again."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from evaluation_fixtures import job_file, lay_out_checkpoint, lay_out_dataset, lay_out_run
from export_fixtures import alter

from orchestrator.attempts import writing_run
from orchestrator.errors import StoreError
from orchestrator.export import stage
from orchestrator.export.prove import load_proven
from orchestrator.export.stage import Exported, chosen_checkpoint, export_at, export_run, newest_export
from orchestrator.job import JobSpec
from orchestrator.job_file import load_job
from orchestrator.store import Store, sweep


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


def test_weights_whose_checkpoint_is_still_written_are_exported_once(run: Path, job: JobSpec) -> None:
    checkpoint = lay_out_checkpoint(run, 30, job.model.config(300))
    (run / "weights").mkdir()
    ahead = checkpoint.rename(run / "weights" / checkpoint.name)
    assert chosen_checkpoint(run).step == 20
    assert exported(run).path.name == "step-00000020"  # whoever wrote them has died, and nobody finishes them
    with writing_run(run):
        made = exported(run)
    assert made == Exported(run / "export" / "step-00000030", reused=False)
    assert load_proven(made.path).manifest.step == 30
    ahead.rename(checkpoint)
    assert exported(run) == Exported(made.path, reused=True)


def test_weights_that_move_to_their_checkpoint_while_they_are_read_are_read_there(
    run: Path, job: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = lay_out_checkpoint(run, 30, job.model.config(300))
    (run / "weights").mkdir()
    ahead = checkpoint.rename(run / "weights" / checkpoint.name)

    def sweep_and_move(parent: Path, name: str | None = None) -> None:
        sweep(parent, name)
        if ahead.exists():
            ahead.rename(checkpoint)

    monkeypatch.setattr(stage, "sweep", sweep_and_move)
    with writing_run(run):
        made = exported(run)
    assert (made.path.name, made.reused) == ("step-00000030", False)
    load_proven(made.path)


def test_a_step_that_another_attempt_trained_anew_is_exported_anew(run: Path, job: JobSpec) -> None:
    def of_attempt(number: int) -> None:
        folder = lay_out_checkpoint(run, 30, job.model.config(300))
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "attempt": number}))

    of_attempt(1)
    made = exported(run)
    assert load_proven(made.path).manifest.attempt == 1
    assert exported(run).reused
    shutil.rmtree(run / "checkpoints" / "step-00000030")
    of_attempt(2)
    assert not exported(run).reused
    assert load_proven(made.path).manifest.attempt == 2


def test_what_an_export_does_not_read_is_not_hashed(run: Path, job: JobSpec) -> None:
    folder = lay_out_checkpoint(run, 30, job.model.config(300))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "zero.bin").write_bytes(b"other")
    row = {"path": "zero.bin", "bytes": 5, "sha256": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": [*manifest["files"], row]}))
    assert chosen_checkpoint(run).step == 30
    (folder / "zero.bin").write_bytes(b"torn")
    assert chosen_checkpoint(run).step == 20
    (folder / "zero.bin").write_bytes(b"other")
    alter(folder, lambda tensors: next(iter(tensors.values())).add_(1))
    assert chosen_checkpoint(run).step == 20


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
