"""`slipway chaos` over real runs: a clean verdict where promises are kept, and another where they are not."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Result, command, environment, write_words

from orchestrator import presence
from orchestrator.track.metric_log import FILE, read_metrics
from orchestrator.track.samples import FOLDER, RECORD

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

JOB = """\
name: drill
data:
  sources: [{{path: {text}}}]
  tokenizer: {{vocab_size: 320}}
  split: {{validation: 0.1}}
model: {{layers: 2, width: 64, heads: 2, context: 64, dropout: 0.1}}
train:
  steps: 1000000
  batch_tokens: 1024
  precision: fp32
  workers: {{min: 1, max: 2}}
  checkpoint: {{every_steps: 20}}
  watchdog: {{step_s: 6}}
  log_every_steps: 100
"""
Chaos = Callable[..., Result]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    path = folder / "drill.yaml"
    path.write_text(JOB.format(text=write_words(folder / "text.txt", lines=4000)))
    return path


@pytest.fixture(scope="module")
def prepared(job: Path, tmp_path_factory: pytest.TempPathFactory, slipway: Chaos) -> Path:
    """A store with the dataset and the folder of the run, which nobody has begun."""
    store = tmp_path_factory.mktemp("prepared")
    done = slipway("prepare", job, "--store", store, "--json")
    assert done.code == 0, done.stderr
    return store


@pytest.fixture
def run(prepared: Path, tmp_path: Path) -> Iterator[Path]:
    """The folder of the run in a store of its own; whatever drives it in the end is ended."""
    shutil.copytree(prepared, tmp_path / "store")
    (folder,) = (tmp_path / "store" / "runs").iterdir()
    yield folder
    driver = presence.read_command(folder)
    if driver is not None:
        for signum, wait_s in ((signal.SIGTERM, 90), (signal.SIGKILL, 10)):
            driver.process.send(signum)
            until = time.monotonic() + wait_s
            while driver.process.is_alive and time.monotonic() < until:
                time.sleep(0.1)


@pytest.fixture
def start(run: Path) -> Iterator[Callable[[list[str]], subprocess.Popen[bytes]]]:
    """Starts what drives the run, and returns when it does."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(argv: list[str]) -> subprocess.Popen[bytes]:
        with (run.parent.parent / "driver.txt").open("ab") as log:
            around = environment(OMP_NUM_THREADS="1")
            started.append(subprocess.Popen(argv, env=around, stdout=log, stderr=log))
        until = time.monotonic() + 240
        while presence.read_command(run) is None and time.monotonic() < until:
            time.sleep(0.1)
        return started[-1]

    yield begin
    for process in started:
        process.terminate()
        process.wait(120)


def await_checkpoint(run: Path) -> None:
    until = time.monotonic() + 240
    while not list(run.glob("checkpoints/step-*/COMMITTED")) and time.monotonic() < until:
        time.sleep(0.1)


def alone(run: Path) -> list[str]:
    """A worker without Ray, which is its own driver."""
    return [sys.executable, "-m", "orchestrator.train.worker", "--run", str(run)]


def test_a_run_keeps_its_promises_through_kills_and_a_torn_checkpoint(
    job: Path, run: Path, start: Callable[[list[str]], subprocess.Popen[bytes]], slipway: Chaos
) -> None:
    start(command("run", job, "--store", run.parent.parent, "--until", "train", "--json"))
    asked = ("--schedule", "kill-worker,kill-driver,tear-checkpoint", "--every", "8s", "--for", "30s", "--seed", "7")
    done = slipway("chaos", run, *asked, "--json", timeout_s=600)
    assert done.code == 0, done.stdout + done.stderr
    found = done.document
    assert found["verdict"] == "pass"
    assert found["violations"] == []
    assert found["samples_lost"] == found["samples_repeated"] == 0
    assert {"kill-worker", "kill-driver"} <= {fault["kind"] for fault in found["faults"]}
    assert len(found["faults"]) + len(found["put_off"]) == 4
    for fault in found["faults"]:
        if fault["kind"] != "tear-checkpoint":
            assert fault["recovered_in_s"] > 0
            assert presence.process_of(fault["pid"]) is None
    assert found["steps_redone"] > 0
    assert 0 < found["goodput"] < 1
    now = presence.read_command(run)
    assert now is not None
    assert now.process.is_alive  # the run goes on
    assert "continuing drill" in (run / "logs" / "driver.log").read_text()


def test_a_broken_promise_is_found(
    run: Path, start: Callable[[list[str]], subprocess.Popen[bytes]], slipway: Chaos
) -> None:
    start(alone(run))
    await_checkpoint(run)
    done = slipway("chaos", run, "kill-driver", "--json", timeout_s=400)
    assert (done.code, done.document["verdict"]) == (0, "pass"), done.stdout + done.stderr
    (records,) = run.glob(f"{FOLDER}/attempt-1-rank-*.bin")
    raw = bytearray(records.read_bytes())
    raw[RECORD.itemsize] ^= 1  # the second step's
    records.write_bytes(raw)
    line = next(read_metrics(run))
    with (run / FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")
    done = slipway("chaos", run, "slow-worker", "--json", timeout_s=400)
    assert done.code == 5, done.stdout + done.stderr
    assert done.document["verdict"] == "fail"
    assert done.document["samples_lost"] == 16
    told = "\n".join(done.document["violations"])
    assert "step 2: no rank has noted samples 0 to 15" in told
    assert f"{FILE}: line" in told


def test_a_run_that_is_not_trained_is_refused(run: Path, slipway: Chaos) -> None:
    done = slipway("chaos", run, "kill-worker")
    assert done.code == 2
    assert "has no command.json" in done.stderr
    assert "slipway run JOB" in done.stderr
