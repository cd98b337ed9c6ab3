"""Machines that come and go: raylets of one CPU each on this machine, and one command that trains on them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import Result, command, environment, losses, steps
from nodes_fixtures import Nodes

from orchestrator.cluster.connect import prepare_environment

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(900)]

JOB = """\
name: nodes
data:
  sources: [{{path: {text}}}]
  tokenizer: {{vocab_size: 320}}
model: {{layers: 2, width: 128, heads: 2, context: 128}}
train:
  steps: 100000
  batch_tokens: 8192
  optimizer: {{learning_rate: 1.0e-4}}
  schedule: {{name: constant}}
  precision: fp32
  workers: {{min: 1, max: 2, grow_after_s: 1, wait_s: 90}}
  checkpoint: {{every_steps: 20}}
"""
Slipway = Callable[..., Result]
Event = dict[str, Any]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    prepare_environment()
    with tempfile.TemporaryDirectory(prefix="slipway-nodes-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        found = Nodes(folder)
        try:
            yield found
        finally:
            found.end()


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("\n".join(f"{i} ropes, {i * i} sails and a gull" for i in range(20_000)))
    path = tmp_path / "nodes.yaml"
    path.write_text(JOB.format(text=tmp_path / "text.txt"))
    return path


class Driven:
    """A run that a command drives, `run` here or `submit` there."""

    def __init__(self, verb: str, job: Path, store: Path, address: str, *more: str) -> None:
        args = command(verb, job, "--store", store, "--until", "train", "--json", "--address", address, *more)
        self.store = store
        self.process = subprocess.Popen(
            args, stdout=subprocess.PIPE, stderr=(store.parent / "stderr").open("a"), text=True, env=environment()
        )

    @property
    def run(self) -> str:
        (found,) = self.store.glob("runs/*")
        return f"runs/{found.name}"

    def events(self, name: str) -> list[Event]:
        found = list(self.store.glob("runs/*/events.jsonl"))
        lines = map(json.loads, found[0].read_text().splitlines()) if found else ()
        return [line for line in lines if line["event"] == name]

    def await_event(self, name: str, count: int, *, limit_s: float = 120.0) -> Event:
        """The so manieth event of a name."""
        deadline = time.monotonic() + limit_s
        while len(self.events(name)) < count:
            assert time.monotonic() < deadline, f"no {name} {count}: {self.said()}"
            assert self.process.poll() is None, self.said()
            time.sleep(0.1)
        return self.events(name)[count - 1]

    def await_steps(self, more: int) -> None:
        """Until so many more steps are done."""
        lines = self.store / self.run / "metrics.jsonl"
        done = len(lines.read_bytes().splitlines()) if lines.exists() else 0
        deadline = time.monotonic() + 120
        while not lines.exists() or len(lines.read_bytes().splitlines()) < done + more:
            assert time.monotonic() < deadline, self.said()
            assert self.process.poll() is None, self.said()
            time.sleep(0.05)

    def said(self) -> str:
        return (self.store.parent / "stderr").read_text()[-4000:]

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=90)
        return self.process.returncode


def unbroken(job: Path, store: Path, dataset_of: Path, count: int, slipway: Slipway) -> list[float]:
    """The losses of so many steps of one worker that nothing disturbs."""
    store.mkdir()
    (store / "datasets").symlink_to(dataset_of / "datasets")
    slipway("prepare", job, "--store", store, "--set", f"train.steps={count}")
    (run,) = (store / "runs").iterdir()
    call = [sys.executable, "-m", "orchestrator.train.worker", "--run", str(run)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=400, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    return losses(store, f"runs/{run.name}")


def test_a_node_is_lost_one_comes_and_one_is_taken_back(
    nodes: Nodes, job: Path, slipway: Slipway, tmp_path: Path
) -> None:
    nodes.add()
    driven = Driven("run", job, tmp_path / "store", nodes.gcs)
    driven.await_event("checkpoint", 2)
    nodes.kill(1)
    assert driven.await_event("failed", 1)["class"] == "node"
    fewer = driven.await_event("resized", 1)
    assert (fewer["from"], fewer["to"]) == (2, 1)
    driven.await_event("first-step", 2)
    nodes.add()
    more = driven.await_event("resized", 2)
    assert (more["from"], more["to"]) == (1, 2)
    assert len(driven.events("failed")) == 1  # nothing failed: it was asked to make way
    driven.await_event("first-step", 3)
    driven.await_steps(5)
    nodes.drain(2)
    taken = driven.await_event("failed", 2)
    assert (taken["class"], taken["action"]) == ("preemption", "retry")
    last = driven.await_event("resized", 3)
    assert (last["from"], last["to"], last["step"]) == (2, 1, taken["step"])
    driven.await_event("first-step", 4)
    driven.await_steps(5)
    assert driven.stop() == 143, driven.said()
    done = steps(driven.store, driven.run)
    assert done == list(range(1, len(done) + 1))
    resumed_at = [event["step"] for event in driven.events("resumed")]
    assert resumed_at[1:] == [more["step"], last["step"]]
    redone = [event["recomputed"]["steps"] for event in driven.events("resumed")]
    assert redone[0] <= 20  # the loss costs an interval at most; the others nothing
    assert redone[1:] == [0, 0]
    curve = losses(driven.store, driven.run)
    assert curve == pytest.approx(unbroken(job, tmp_path / "alone", driven.store, len(curve), slipway), rel=1e-5)


def workers_of(driven: Driven) -> list[int]:
    """The process numbers of its ranks."""
    notes = sorted((driven.store / driven.run / "workers").glob("rank-*.json"))
    return [json.loads(note.read_text())["pid"] for note in notes]


def test_a_drill_takes_a_machine_away(nodes: Nodes, job: Path, slipway: Slipway, tmp_path: Path) -> None:
    nodes.add()
    driven = Driven("run", job, tmp_path / "store", nodes.gcs)
    driven.await_event("checkpoint", 2)
    done = slipway("chaos", driven.store / driven.run, "kill-node", "--json", timeout_s=400)
    assert (done.code, done.document["verdict"]) == (0, "pass"), done.stdout + done.stderr
    (fault,) = done.document["faults"]
    assert fault["kind"] == "kill-node"
    assert fault["recovered_in_s"] > 0
    assert driven.events("failed")[0]["class"] == "node"
    fewer = driven.await_event("resized", 1)
    assert (fewer["from"], fewer["to"]) == (2, 1)
    assert driven.stop() == 143, driven.said()


def test_a_submitted_run_saves_when_a_worker_or_the_job_is_told_to_end_and_waits_for_machines(
    nodes: Nodes, job: Path, tmp_path: Path
) -> None:
    from ray.job_submission import JobSubmissionClient

    nodes.add()
    two = ("--set", "train.workers={min: 2, max: 2, wait_s: 90}", "--set", "train.checkpoint.every_steps=100000")
    driven = Driven("submit", job, tmp_path / "store", nodes.dashboard, *two)
    driven.await_event("first-step", 1)
    driven.await_steps(3)
    psutil.Process(workers_of(driven)[1]).terminate()  # as a machine that shuts down ends its processes
    told = driven.await_event("failed", 1)
    assert (told["class"], told["action"], told["cause"]) == ("preemption", "retry", "a worker was told to end")
    assert told["step"] >= 3  # the checkpoint that was made for it
    assert driven.await_event("resumed", 1)["step"] == told["step"]
    driven.await_event("first-step", 2)
    nodes.kill(1)
    assert driven.await_event("failed", 2)["class"] == "node"
    deadline = time.monotonic() + 60
    while "waiting up to 90 s for room" not in driven.said():
        assert time.monotonic() < deadline, driven.said()
        time.sleep(0.2)
    nodes.add()
    driven.await_event("first-step", 3)
    driven.await_steps(3)
    submitted = re.search(r"submitted (slipway-nodes-\w+);", (tmp_path / "stderr").read_text())
    assert submitted is not None
    JobSubmissionClient(nodes.dashboard).stop_job(submitted[1])
    out, _ = driven.process.communicate(timeout=120)
    assert (driven.process.returncode, json.loads(out)["status"]) == (143, "STOPPED"), driven.said()
    done = steps(driven.store, driven.run)
    assert f"saved up to step {done[-1]}" in driven.said()
    assert done == list(range(1, len(done) + 1))
