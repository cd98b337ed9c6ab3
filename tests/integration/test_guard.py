"""Steps that go wrong on one of two ranks leave nothing behind, at any ZeRO stage; a flipped bit is found."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation_fixtures import job_file, lay_out_dataset
from guard_fixtures import CASES, FLIPPED, WRONG, WRONG_RANK, Case
from harness import Runner, run_ranks

from orchestrator.cluster.connect import Session
from orchestrator.cluster.view import local_view
from orchestrator.data.dataset import open_dataset
from orchestrator.job_file import load_job
from orchestrator.objectives.task import make_feed
from orchestrator.plan import make_plan
from orchestrator.runfolder import create_run, read_run
from orchestrator.store import Store
from orchestrator.track import metrics
from orchestrator.track.events import read_events
from orchestrator.track.metric_log import read_metrics
from orchestrator.track.samples import SampleAccount, account_for_samples

SHORT = (
    "train.steps=12",
    "train.checkpoint.every_steps=4",
    "train.zero.stage=0",
    "train.log_every_steps=1",
    "serve.probe_prompts=[]",
)
Start = Callable[..., tuple[Path, "subprocess.CompletedProcess[str]"]]
Found = list[dict[str, Any]]


def ranks(folder: Path, count: int, what: str) -> Found:
    """What each rank has found."""
    folder.mkdir()
    run_ranks("guard_fixtures.py", folder, count, what)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


@pytest.fixture(scope="module")
def skips(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return ranks(tmp_path_factory.mktemp("skips") / "2", 2, "skips")


@pytest.fixture(scope="module", params=[2, 3])
def flips(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Found:
    return ranks(tmp_path_factory.mktemp("flips") / str(request.param), request.param, "flips")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_skipped_step_leaves_all_as_it_was_on_all_ranks(skips: Found, case: Case) -> None:
    for rank in skips:
        found = rank[case.name]
        assert found["verdicts"] == [[WRONG, "non-finite", "skip"], [WRONG + 1, "spike", "skip"]]
        assert found["unharmed"] == 0
        assert found["changed"] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_follows_is_as_if_the_wrong_batch_had_not_been(skips: Found, case: Case) -> None:
    for rank in skips:
        found = rank[case.name]
        assert [harmed for harmed, _ in found["losses"]] == [unharmed for _, unharmed in found["losses"]]
        assert found["differ"] == []


def test_buffers_that_a_pass_changes_go_back_too(skips: Found) -> None:
    assert [rank["buffers"] for rank in skips] == [{"changed": []}] * 2


@pytest.mark.parametrize("case", FLIPPED, ids=lambda case: case.name)
def test_a_flipped_bit_of_one_rank_ends_all_and_names_it(flips: Found, case: Case) -> None:
    named = f"rank {WRONG_RANK} differ" if len(flips) > 2 else "ranks 0, 1 differ from each other"
    for rank in flips:
        assert named in rank[case.name]["error"]


@pytest.fixture
def poisoned(tmp_path: Path) -> Start:
    """A worker alone, whose loss is no number on some batches; each call starts it again."""

    def start(batches: str, *sets: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
        store = Store(tmp_path / "store")
        run = store.runs / "tiny-0123456789ab"
        if not run.exists():
            job = load_job(job_file(tmp_path), [*SHORT, *sets])
            dataset = lay_out_dataset(store, job)
            plan = make_plan(job, local_view(), vocab_size=open_dataset(dataset).vocab_size)
            create_run(run, job=job, plan=plan, dataset=dataset, identity="0123456789ab")
        script = Path(__file__).parents[1] / "poisoned_worker.py"
        call = [sys.executable, str(script), batches, "--run", str(run)]
        around = {**os.environ, "PYTHONPATH": str(script.parents[1]), "OMP_NUM_THREADS": "1"}
        return run, subprocess.run(call, capture_output=True, text=True, timeout=240, env=around, check=False)

    return start


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run) if event["event"] == name]


def samples(run: Path) -> SampleAccount:
    job, dataset = read_run(run)
    with contextlib.ExitStack() as leases:
        return account_for_samples(run, order=make_feed(job, open_dataset(dataset), leases).samples, epoch=None)


def test_a_rollback_goes_on_from_the_checkpoint_without_the_wrong_batches(poisoned: Start) -> None:
    sets = ("train.guard.non_finite=rollback", "train.guard.skip_batches=2")
    run, first = poisoned("6,9", *sets)
    assert first.returncode == 5
    assert "the loss of step 6 is nan; its samples are" in first.stderr
    assert json.loads((run / "skipped.json").read_text()) == [{"after_step": 4, "batches": 2}]
    _, second = poisoned("6,9")
    assert second.returncode == 5
    assert "the loss of step 7 is nan" in second.stderr
    assert json.loads((run / "skipped.json").read_text())[1:] == [{"after_step": 4, "batches": 3}]
    _, third = poisoned("6,9")
    assert third.returncode == 0, third.stderr
    assert [line[metrics.STEP] for line in read_metrics(run)] == list(range(1, 13))
    assert [(e["step"], e["attempt"], e["action"], e["value"]) for e in events(run, "anomaly")] == [
        (6, 1, "rollback", "nan"),
        (7, 2, "rollback", "nan"),
    ]
    found = samples(run)
    assert (found.steps, found.samples_lost, found.samples_repeated, found.problems) == (12, 0, 0, [])
    assert found.samples_skipped == 5 * 4


def test_skipped_updates_stand_in_the_metrics_up_to_the_cap(poisoned: Start) -> None:
    run, done = poisoned("3,5,9", "train.guard.non_finite=skip", "train.guard.most=2")
    assert done.returncode == 5
    assert "the loss of step 9 is nan, and train.guard.most allows 2 skips and rollbacks" in done.stderr
    assert "step 3: the loss of step 3 is nan: its update is left out; its samples are" in done.stderr
    lines = list(read_metrics(run))
    assert [line[metrics.STEP] for line in lines if metrics.SKIPPED_UPDATES in line] == [3, 5]
    assert [line[metrics.STEP] for line in lines if line[metrics.LOSS] is None] == [3, 5]
    assert [e["action"] for e in events(run, "anomaly")] == ["skip", "skip", "stop"]
    (failed,) = events(run, "failed")
    assert (failed["class"], failed["step"], failed["action"]) == ("numerical", 8, "stop")


def sums(folder: Path) -> Path:
    """A job that learns to add, on 400 rows in batches of 8."""
    rng = random.Random(5)
    pairs = [(rng.random(), rng.random()) for _ in range(400)]
    rows = [{"number": i, "x": pair, "y": sum(pair)} for i, pair in enumerate(pairs)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    job = {
        "name": "sums",
        "data": {
            "kind": "columns",
            "sources": [{"path": str(folder / "rows.jsonl")}],
            "columns": {"number": "int64", "x": "float32[2]", "y": "float32"},
            "split": {"validation": 0.1},
        },
        "model": {"kind": "custom", "class": "tests.poisoned_network:Poisoned", "context": 2},
        "train": {
            "steps": 16,
            "batch_tokens": 16,
            "precision": "fp32",
            "zero": {"stage": 0},
            "checkpoint": {"every_steps": 4},
            "guard": {"non_finite": "rollback", "skip_batches": 3},
            "log_every_steps": 1,
        },
        "track": {"wandb": {"mode": "offline"}},
    }
    path = folder / "sums.yaml"
    path.write_text(json.dumps(job), encoding="utf-8")
    return path


def test_a_run_goes_back_by_itself_and_on_to_its_end(
    session: Session, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])  # where Python finds the network
    runner = Runner(sums(tmp_path), session)
    prepared = runner(tmp_path, until="prepare")
    with contextlib.ExitStack() as leases:
        feed = make_feed(runner.job(), open_dataset(tmp_path / str(prepared.dataset)), leases)
        marker = int(feed.read(7, 0, 8).tensors["number"][3])
    outcome = runner(tmp_path, f"model.settings={{marker: {marker}}}")
    folder = tmp_path / (outcome.run or "")
    assert outcome.resumed_from_step == 4
    assert [line[metrics.STEP] for line in read_metrics(folder)] == list(range(1, 17))
    assert json.loads((folder / "skipped.json").read_text()) == [{"after_step": 4, "batches": 3}]
    (failed,) = events(folder, "failed")
    assert (failed["class"], failed["action"], failed["step"]) == ("numerical", "rollback", 4)
    (anomaly,) = events(folder, "anomaly")
    assert (anomaly["step"], anomaly["action"], len(anomaly["samples"])) == (7, "rollback", 8)
    assert samples(folder).problems == []
    assert "going on from step 4 (without the batches that led there)" in capfd.readouterr().err
