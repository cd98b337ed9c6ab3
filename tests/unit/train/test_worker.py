"""A worker alone, on real data: what its evaluations leave in the run's folder, and where its time is said to go."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from evaluation_fixtures import job_file, lay_out_classified, lay_out_dataset

from orchestrator.attempts import writing_run
from orchestrator.checkpoint.layout import step_of
from orchestrator.checkpoint.reader import committed_steps
from orchestrator.cluster.view import local_view
from orchestrator.data.dataset import open_dataset
from orchestrator.errors import StoreError
from orchestrator.job import JobSpec
from orchestrator.job_file import load_job
from orchestrator.plan import make_plan
from orchestrator.runfolder import create_run, read_run
from orchestrator.status import account_for_run
from orchestrator.store import Store
from orchestrator.track import metrics
from orchestrator.track.events import read_events
from orchestrator.track.goodput import PARTS
from orchestrator.track.metric_log import read_metrics
from orchestrator.train.group import TorchGroup, join_group
from orchestrator.train.worker import run_worker

SHORT = ("train.steps=4", "train.evaluate.every_steps=2", "train.zero.stage=0")


@pytest.fixture(autouse=True)
def _without_wandb(monkeypatch: pytest.MonkeyPatch, alone: TorchGroup) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def trained(job: JobSpec, dataset: Path, run: Path) -> list[dict[str, Any]]:
    """What a run's evaluations left, in the order of their steps."""
    plan = make_plan(job, local_view(), vocab_size=open_dataset(dataset).vocab_size)
    create_run(run, job=job, plan=plan, dataset=dataset, identity="0123456789ab")
    with writing_run(run) as attempt:
        run_worker(run, attempt=attempt, group=join_group())
    return [json.loads(path.read_text()) for path in sorted((run / "scores").iterdir())]


def scored(run: Path) -> dict[int, float]:
    return {line["train/step"]: line["eval/loss"] for line in read_metrics(run) if "eval/loss" in line}


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"is no run: it has no job\.yaml") as refused:
        read_run(tmp_path)
    assert "slipway prepare JOB" in str(refused.value.fix)


def test_a_decoders_evaluations_leave_what_it_writes(tmp_path: Path) -> None:
    store, job = Store(tmp_path / "store"), load_job(job_file(tmp_path), SHORT)
    run = store.runs / "tiny-0123456789ab"
    first, second = trained(job, lay_out_dataset(store, job), run)
    assert [first["step"], second["step"]] == [2, 4]
    assert {found["step"]: found["metrics"]["loss"] for found in (first, second)} == scored(run)
    for found in (first, second):
        assert found["tables"]["generated"]["columns"] == ["prompt", "text"]
        assert [row[0] for row in found["tables"]["generated"]["rows"]] == ["def add(", "class"]


def test_a_classifiers_evaluations_leave_its_tables(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    before = lay_out_classified(store, tmp_path)
    job = load_job(before / "job.yaml", SHORT)
    first, second = trained(job, read_run(before)[1], store.runs / "classification-ba9876543210")
    for found in (first, second):
        assert set(found["tables"]) == {"classes", "confusion"}
        counts = [row[1:] for row in found["tables"]["confusion"]["rows"]]
        assert [sum(row) for row in counts] == [4, 4, 4]
        right = sum(row[i] for i, row in enumerate(counts))
        assert found["metrics"]["accuracy"] == pytest.approx(right / 12)


def test_without_prompts_nothing_is_left(tmp_path: Path) -> None:
    store, job = Store(tmp_path / "store"), load_job(job_file(tmp_path), [*SHORT, "serve.probe_prompts=[]"])
    run = store.runs / "tiny-0123456789ab"
    with pytest.raises(FileNotFoundError):
        trained(job, lay_out_dataset(store, job), run)
    assert set(scored(run)) == {2, 4}


def test_a_killed_run_accounts_for_every_second(tmp_path: Path) -> None:
    """kill -9 between two checkpoints, then the same again to the end."""
    long = ("train.steps=240", "train.checkpoint.every_steps=40", "train.zero.stage=0", "serve.probe_prompts=[]")
    store = Store(tmp_path / "store")
    job, run = load_job(job_file(tmp_path), long), store.runs / "tiny-0123456789ab"
    dataset = lay_out_dataset(store, job)
    plan = make_plan(job, local_view(), vocab_size=open_dataset(dataset).vocab_size)
    create_run(run, job=job, plan=plan, dataset=dataset, identity="0123456789ab")
    worker = subprocess.Popen([sys.executable, "-m", "orchestrator.train.worker", "--run", str(run)])
    while worker.poll() is None and (sum(1 for _ in read_metrics(run)) < 50 or not committed_steps(run)):
        time.sleep(0.02)
    assert account_for_run(run, store)["alive"]
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    done = sum(1 for _ in read_metrics(run))
    (open_death,) = account_for_run(run, store)["restarts"]
    assert open_death["recovered_in_s"] is None
    saved = step_of(committed_steps(run)[-1].name) or 0
    assert open_death["step"] in (saved, saved - 40)  # it may have died before it told of the last one
    with writing_run(run) as attempt:
        run_worker(run, attempt=attempt, group=join_group())

    happened = [event["event"] for event in read_events(run) if event["event"] != "checkpoint"]
    assert happened == ["started", "first-step", "resumed", "first-step", "ended"]
    (resumed,) = [event for event in read_events(run) if event["event"] == "resumed"]
    assert (resumed["step"], resumed["recomputed"]["steps"]) == (saved, done - saved)
    found = account_for_run(run, store)
    parts = {part: found["goodput"][f"{part}_s"] for part in PARTS}
    assert sum(parts.values()) == pytest.approx(found["wall_s"], abs=0.01)
    assert parts["recomputed"] == pytest.approx(resumed["recomputed"]["seconds"], abs=0.002)
    lines = list(read_metrics(run))
    useful = sum(line[metrics.STEP_TIME] - line[metrics.DATA_WAIT] for line in lines)
    assert parts["useful"] == pytest.approx(useful, abs=0.002)
    assert all(parts[part] > 0 for part in ("startup", "recovery", "checkpoint_stall", "recomputed"))
    (restart,) = found["restarts"]
    assert (restart["class"], restart["cause"]) == ("worker", "its process was killed, or its machine was lost")
    assert restart["recovered_in_s"] == pytest.approx(parts["recovery"], abs=0.002)
    assert 0 < lines[-1][metrics.GOODPUT] <= 1
    assert not found["alive"]
