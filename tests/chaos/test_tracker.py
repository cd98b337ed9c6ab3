"""W&B's endpoint misbehaves in each way: the training ends well, as fast as without it, and keeps what was not sent."""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from harness import Result
from tracker_fixtures import MODES, Trained, after_step, assert_nothing_left, spooled, train, wandb_endpoint, write_job

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 170
BATCH_TOKENS = 2048
"""So that a step takes tens of milliseconds, and a twentieth of one can be told from noise."""
KILLED_AT = 125
"""The newest checkpoint is five steps before it."""
MOST_SLOWER = 1.05
CLOSING_S = 40.0
"""From a run's last line to its end: the last checkpoint, and W&B's process, which gives up after 30 s."""
ATTEMPTS = 3
"""Of the comparison of step times: a shared machine has moments of its own, a cost would always be there."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, slipway: Callable[..., Result]) -> Path:
    """The folder of a run that has not begun."""
    folder = tmp_path_factory.mktemp("tracked")
    done = slipway("prepare", write_job(folder, steps=STEPS, batch_tokens=BATCH_TOKENS), "--store", folder / "store")
    assert done.code == 0, done.stderr
    return next((folder / "store" / "runs").iterdir())


def new_run(prepared: Path, name: str) -> Path:
    run = prepared.with_name(name)
    shutil.rmtree(run, ignore_errors=True)
    return Path(shutil.copytree(prepared, run))


def train_copy(prepared: Path, name: str, mode: str, url: str = "") -> Trained:
    return train(new_run(prepared, name), mode=mode, url=url)


def slower(prepared: Path, mode: str) -> float:
    """The median step with this endpoint, by that of the runs without W&B before and after it."""
    with wandb_endpoint(mode) as endpoint:
        before = train_copy(prepared, "before", "disabled").step_s
        with_it = train_copy(prepared, mode, "online", endpoint.url).step_s
        after = train_copy(prepared, "after", "disabled").step_s
    return with_it / statistics.mean((before, after))


@pytest.fixture(scope="module")
def untracked(prepared: Path) -> Trained:
    """A run without W&B."""
    return train_copy(prepared, "disabled", "disabled")


@pytest.mark.parametrize("mode", MODES)
def test_an_endpoint_that_misbehaves_costs_the_training_nothing(mode: str, prepared: Path, untracked: Trained) -> None:
    with wandb_endpoint(mode) as endpoint:
        done = train_copy(prepared, mode, "online", endpoint.url)
    assert done.code == 0, done.stderr
    assert endpoint.requests
    assert [line["train/step"] for line in done.lines] == list(range(1, STEPS + 1))
    assert [line["train/loss"] for line in done.lines] == [line["train/loss"] for line in untracked.lines]
    assert spooled(done.run) == list(range(1, STEPS + 1))
    assert done.closing_s < CLOSING_S
    assert_nothing_left(done)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="on one core W&B's process takes its time from the training")
@pytest.mark.parametrize("mode", ["hangs", "500", "vanishes"])
def test_a_step_takes_as_long_as_without_w_and_b(mode: str, prepared: Path) -> None:
    found: list[float] = []
    while not found or (min(found) > MOST_SLOWER and len(found) < ATTEMPTS):
        found.append(slower(prepared, mode))
    assert min(found) <= MOST_SLOWER, found


def test_what_dies_together_with_its_tracker_is_sent_by_the_next_attempt(prepared: Path) -> None:
    run = new_run(prepared, "together")

    def kill_family(worker: psutil.Process) -> bool:
        if not after_step(run, KILLED_AT)(worker):
            return False
        for process in worker.children(recursive=True):
            process.kill()
        return True

    assert train(run, mode="offline", until=kill_family).code == -9
    done = train(run, mode="offline")
    assert done.code == 0, done.stderr
    assert spooled(run) == list(range(1, STEPS + 1))


def test_the_endpoint_has_each_step_once_in_order_over_a_kill(prepared: Path) -> None:
    run = new_run(prepared, "well")
    with wandb_endpoint("well") as endpoint:
        train(run, mode="online", url=endpoint.url, until=after_step(run, KILLED_AT)).processes_left(limit_s=35)
        assert endpoint.states[-1:] == ["failed"]
        done = train(run, mode="online", url=endpoint.url)
    assert done.code == 0, done.stderr
    assert endpoint.steps == list(range(1, STEPS + 1))
    assert [row["_step"] for row in endpoint.history] == sorted({row["_step"] for row in endpoint.history})
    assert endpoint.states[-1] == "finished"
    assert_nothing_left(done)
