"""Failures of real workers: what is killed, stopped or wrong, and the same command to the end."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import Runner, losses, steps

from orchestrator.cluster.connect import Session
from orchestrator.errors import NumericalError
from orchestrator.run import Outcome

DISTURBED_AT = 6


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, job_file: Path, session: Session) -> tuple[Path, str]:
    """A run of the tiny job that nothing disturbs."""
    store = tmp_path_factory.mktemp("unbroken")
    outcome = Runner(job_file, session)(store)
    assert outcome.run is not None
    return store, outcome.run


def workers() -> list[psutil.Process]:
    """Of Ray Train, below this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


@contextlib.contextmanager
def disturbing(store: Path, how: Callable[[psutil.Process], None]) -> Iterator[list[psutil.Process]]:
    """Does something to one of the workers once a few steps are done and a checkpoint stands; the workers of then."""
    over = threading.Event()
    there: list[psutil.Process] = []

    def disturb() -> None:
        while not over.wait(0.02):
            found = list(store.glob("runs/*/metrics.jsonl"))
            saved = any(store.glob("runs/*/checkpoints/*/COMMITTED"))
            if saved and found and len(found[0].read_bytes().splitlines()) >= DISTURBED_AT:
                there.extend(workers())
                how(there[-1])
                return

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield there
    finally:
        over.set()
        thread.join()


def run_disturbed(
    runner: Runner, store: Path, how: Callable[[psutil.Process], None], *sets: str
) -> tuple[Outcome, list[psutil.Process]]:
    with disturbing(store, how) as there:
        return runner(store, *sets), there


def events(store: Path, run: str, name: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (store / run / "events.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == name]


def assert_unbroken(store: Path, run: str, unbroken: tuple[Path, str]) -> None:
    assert steps(store, run) == list(range(1, 41))
    assert losses(store, run) == losses(*unbroken)


def test_a_killed_worker_costs_the_steps_since_the_checkpoint(
    unbroken: tuple[Path, str], runner: Runner, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "datasets").symlink_to(unbroken[0] / "datasets")
    outcome, there = run_disturbed(runner, tmp_path, psutil.Process.kill)
    run = outcome.run or ""
    assert_unbroken(tmp_path, run, unbroken)
    (failed,) = events(tmp_path, run, "failed")
    assert (failed["class"], failed["action"], failed["attempt"]) == ("worker", "retry", 1)
    assert failed["step"] == outcome.resumed_from_step
    assert f"going on from step {failed['step']}" in capfd.readouterr().err
    assert len(there) == 2
    assert not [process for process in there if process.is_running()]


def test_a_stopped_worker_is_found_by_the_others_and_the_run_goes_on(
    unbroken: tuple[Path, str], runner: Runner, tmp_path: Path
) -> None:
    (tmp_path / "datasets").symlink_to(unbroken[0] / "datasets")
    stopped_at: list[float] = []

    def stop(process: psutil.Process) -> None:
        process.send_signal(signal.SIGSTOP)
        stopped_at.append(time.time())

    outcome, there = run_disturbed(runner, tmp_path, stop, "train.watchdog={step_s: 6, checkpoint_s: 6}")
    run = outcome.run or ""
    assert_unbroken(tmp_path, run, unbroken)
    (failed,) = events(tmp_path, run, "failed")
    assert (failed["class"], failed["action"]) == ("hang", "retry")
    (hang,) = events(tmp_path, run, "hang")
    assert (hang["phase"] in ("step", "checkpoint"), hang["limit_s"]) == (True, 6)
    (stacks,) = (tmp_path / run / "stacks").iterdir()  # a stopped process writes none
    assert stacks.name == f"attempt-1-rank-{hang['rank']}.txt"
    assert "run_worker" in stacks.read_text()
    assert stacks.stat().st_mtime - stopped_at[0] < 6 + 10
    assert not [process for process in there if process.is_running()]


def test_a_loss_that_is_no_number_ends_the_run_at_once(
    unbroken: tuple[Path, str], runner: Runner, tmp_path: Path
) -> None:
    (tmp_path / "datasets").symlink_to(unbroken[0] / "datasets")
    wrong = ("train.optimizer.learning_rate=1e39", "train.schedule.warmup_steps=0", "train.workers={min: 1, max: 1}")
    with pytest.raises(NumericalError, match=r"the loss of step \d+ is .*\(class numerical, no step saved") as raised:
        runner(tmp_path, *wrong)
    assert "learning_rate" in (raised.value.fix or "")
    (folder,) = (tmp_path / "runs").iterdir()
    (failed,) = events(tmp_path, f"runs/{folder.name}", "failed")
    assert (failed["class"], failed["step"], failed["action"]) == ("numerical", 0, "stop")
    assert list((folder / "wandb").glob("offline-run-*"))
