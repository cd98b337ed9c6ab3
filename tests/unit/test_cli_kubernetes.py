"""`slipway kubernetes render`: files, its one JSON document, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.errors import JobError

ROOT = Path(__file__).parents[2]


def call(out: Path, *more: str) -> str:
    job = str(ROOT / "jobs" / "tiny.yaml")
    done = CliRunner().invoke(app, ["kubernetes", "render", job, "--out", str(out), *more], catch_exceptions=False)
    return done.stdout


def test_it_writes_once_and_then_knows(tmp_path: Path) -> None:
    first = json.loads(call(tmp_path, "--json", "--store", "/shared", "--image", "r.example.org/s:1"))
    assert sorted(first["written"]) == sorted(path.name for path in tmp_path.iterdir())
    again = json.loads(call(tmp_path, "--json", "--store", "/shared", "--image", "r.example.org/s:1"))
    assert (again["written"], again["unchanged"]) == ([], first["written"])
    with (tmp_path / "rayjob.yaml").open(encoding="utf-8") as file:
        spec = yaml.load(file, Loader=yaml.CSafeLoader)["spec"]
    assert "--store /shared" in spec["entrypoint"]
    assert spec["rayClusterSpec"]["rayVersion"].startswith("2.")


def test_other_content_is_overwritten_when_told_to(tmp_path: Path) -> None:
    call(tmp_path)
    with pytest.raises(JobError, match=r"rayjob\.yaml"):
        call(tmp_path, "--set", "train.workers.cpus=2")
    said = call(tmp_path, "--set", "train.workers.cpus=2", "--force")
    assert f"written  {tmp_path / 'rayjob.yaml'}" in said
    assert f"unchanged  {tmp_path / 'storage.yaml'}" in said


def test_a_job_that_does_not_train_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no `train` section"):
        call(tmp_path / "out", "--set", "train=null")
    assert not (tmp_path / "out").exists()
