"""`plan --probe`: real steps in a process of their own, of random tokens or of the dataset; what comes true of it."""

from __future__ import annotations

import json
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from harness import Runner, environment

from orchestrator.cluster.view import local_view
from orchestrator.errors import TrainError
from orchestrator.job import JobSpec
from orchestrator.plan import ClusterView, Node, Plan, make_plan
from orchestrator.run import prepare_only
from orchestrator.store import Store
from orchestrator.train.probing.probe import probe

ONE = ("train.workers={min: 1, max: 1}", "train.zero.stage=0")
STEPS = 300
TOLERANCE, TRIES = 0.15, 3
STEADY = ("train.checkpoint.every_steps=100", "train.evaluate.every_steps=null")
"""What is written and scored beside the steps takes their cores: the tiny job does so at every fourth step."""


def planned(job: JobSpec, store: Store, view: ClusterView | None = None) -> Plan:
    """As `slipway plan --probe` does it."""
    view = view or local_view()
    return make_plan(job, view, probe=probe(job, view, store=store, steps=8))


def test_a_job_without_a_dataset_is_probed_on_random_tokens(runner: Runner, store: Store) -> None:
    job = runner.job(*ONE)
    plan = planned(job, store)
    assert plan.hours is not None
    assert (said := re.match(r"measured by a probe of (\d+) steps on random tokens: ", plan.speed))
    assert int(said[1]) >= 8
    assert any("one worker alone took" in why and "stage 0" in why for why in plan.why)
    assert plan.memory_per_worker is not None
    assert 10_000_000 < plan.memory_per_worker.peak < 400_000_000
    assert not any(store.root.glob("*/*"))


def test_several_workers_are_scaled_from_one_that_has_their_share(runner: Runner, store: Store) -> None:
    job = runner.job("train.workers={min: 2, max: 2}", "train.zero.stage=2")
    view = ClusterView(nodes=[Node(cpus=2, memory_bytes=16 * 10**9)])
    found = probe(job, view, store=store, steps=8)
    assert (found.workers, found.stage, found.micro_batch, found.samples) == (1, 2, 5, "random")
    plan = make_plan(job, view, probe=found)
    assert plan.hours == pytest.approx(plan.total_tokens / (2 * found.tokens_per_s) / 3600)
    assert "scaled from 1 to 2 workers" in plan.speed


def test_steps_that_fail_are_told_of_as_training_tells_it(runner: Runner, store: Store) -> None:
    job = runner.job(*ONE, "train.optimizer.learning_rate=1e30", "train.schedule.warmup_steps=0")
    with pytest.raises(TrainError, match=r"the (loss|gradient norm) of step [2-9] is") as caught:
        probe(job, local_view(), store=store, steps=1)
    assert "learning_rate" in str(caught.value.fix)


@pytest.mark.slow
def test_a_pass_that_does_not_fit_is_halved_and_the_command_lives_on(runner: Runner, tmp_path: Path) -> None:
    sets = (*ONE, "train.batch_tokens=131072", "train.micro_batch=4096", "model.width=256")
    script = (
        "import json, sys; from pathlib import Path; from orchestrator.cluster.view import local_view;"
        "from orchestrator.job_file import load_job; from orchestrator.store import Store;"
        "from orchestrator.train.probing.probe import probe;"
        "job, store = load_job(Path(sys.argv[1]), sys.argv[3:]), Store(Path(sys.argv[2]));"
        "print(probe(job, local_view(), store=store, steps=1).model_dump_json())"
    )
    limit_bytes = 6 << 30
    done = subprocess.run(
        [sys.executable, "-c", script, str(runner.job_file), str(tmp_path), *sets],
        capture_output=True,
        text=True,
        timeout=280,
        env=environment(),
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes)),
    )
    assert done.returncode == 0, done.stderr
    assert "memory ran out with 4096 sample(s) in one forward pass: probing with 2048" in done.stderr
    assert json.loads(done.stdout)["micro_batch"] < 4096


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_time_that_a_probe_predicts_is_the_time_that_training_takes(runner: Runner, store: Store) -> None:
    """In turns, because other work on the machine comes and goes: the middle one of three counts."""
    ratios = []
    for seed in range(TRIES):
        job = runner.job(
            *ONE, *STEADY, f"train.steps={STEPS}", f"train.seed={seed}", "train.batch_tokens=2048", "model.width=128"
        )
        prepare_only(job, store=store, session=runner.session)
        (run,) = (path for path in store.runs.iterdir() if not (path / "metrics.jsonl").exists())
        before = planned(job, store)
        assert "random" not in before.speed
        worker = [sys.executable, "-m", "orchestrator.train.worker", "--run", str(run)]
        subprocess.run(worker, check=True, timeout=250, env=environment(), capture_output=True)
        after = planned(job, store)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        took_s = sum(line["time/step_s"] for line in lines)
        assert before.hours is not None
        assert after.hours is not None
        ratios.append((before.hours + after.hours) / 2 * 3600 / took_s)
    assert statistics.median(ratios) == pytest.approx(1.0, rel=TOLERANCE), ratios
