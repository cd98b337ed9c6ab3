"""W&B as a view of a run: each step once, and nothing lost where something fails."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import pytest
from tracker_fixtures import after_step, assert_nothing_left, spooled, train, wandb_endpoint, write_job

from orchestrator.cluster.connect import Session
from orchestrator.job_file import load_job
from orchestrator.run import prepare_only
from orchestrator.store import Store

STEPS = 40
KILLED_AT = 25
"""The newest checkpoint is five steps before it."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, session: Session) -> Path:
    """The folder of a run that has not begun."""
    folder = tmp_path_factory.mktemp("tracked")
    job = write_job(folder, steps=STEPS, batch_tokens=512)
    prepare_only(load_job(job, []), store=Store(folder / "store"), session=session)
    return next((folder / "store" / "runs").iterdir())


@pytest.fixture
def run(prepared: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of it beside it."""
    return Path(shutil.copytree(prepared, prepared.with_name(request.node.name)))


def test_a_worker_that_is_killed_has_sent_its_steps_and_none_is_sent_twice(run: Path) -> None:
    killed = train(run, mode="offline", until=after_step(run, KILLED_AT))
    assert killed.code == -9
    assert_nothing_left(killed)
    first = spooled(run)
    assert first == list(range(1, len(first) + 1))
    assert len(first) >= KILLED_AT - 1
    done = train(run, mode="offline")
    assert done.code == 0, done.stderr
    assert spooled(run) == list(range(1, STEPS + 1))
    assert_nothing_left(done)


def test_an_endpoint_that_refuses_the_key_costs_nothing_but_itself(run: Path) -> None:
    with wandb_endpoint("401") as endpoint:
        done = train(run, mode="online", url=endpoint.url)
    assert done.code == 0, done.stderr
    assert "W&B failed" in done.stderr
    assert "training goes on" in done.stderr
    assert [line["train/step"] for line in done.lines] == list(range(1, STEPS + 1))
    assert spooled(run) == list(range(1, STEPS + 1))
    assert_nothing_left(done)


def test_a_process_of_wandb_that_dies_is_begun_anew(run: Path) -> None:
    killed: list[int] = []

    def kill_core(worker: psutil.Process) -> bool:
        if not killed and after_step(run, KILLED_AT)(worker):
            cores = [child for child in worker.children(recursive=True) if child.name() == "wandb-core"]
            for core in cores:
                core.kill()
                killed.append(core.pid)
        return False

    done = train(run, mode="offline", until=kill_core)
    assert (done.code, len(killed)) == (0, 1), done.stderr
    assert "training goes on" in done.stderr
    assert spooled(run) == list(range(1, STEPS + 1))
    assert_nothing_left(done)
