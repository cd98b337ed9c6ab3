"""Faults on processes that are noted as workers: who is hit, what is remembered, what is refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import presence
from orchestrator.chaos import faults
from orchestrator.chaos.damage import NotNowError
from orchestrator.chaos.faults import Scene
from orchestrator.errors import JobError
from orchestrator.presence import Process

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def state(process: Process) -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def await_state(process: Process, wanted: str) -> None:
    until = time.monotonic() + 10
    while state(process) not in wanted and time.monotonic() < until:
        time.sleep(0.01)
    assert state(process) in wanted


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A run with two processes that are noted as its workers."""
    processes = [subprocess.Popen(SLEEP) for _ in range(2)]
    (tmp_path / "workers").mkdir()
    for rank, process in enumerate(processes):
        found = presence.process_of(process.pid)
        assert found is not None
        row = {"rank": rank, "attempt": 2, **vars(found)}
        (tmp_path / "workers" / f"rank-{rank:05d}.json").write_text(json.dumps(row))
    yield Scene(tmp_path, random.Random(1), patience_s=5.0)
    for process in processes:
        process.kill()
        process.wait()


def workers(scene: Scene) -> dict[int, Process]:
    return {worker.process.pid: worker.process for worker in presence.read_workers(scene.run)}


def test_a_killed_worker_dies_and_the_others_are_doomed(scene: Scene) -> None:
    known = workers(scene)
    blow = faults.give("kill-worker", scene)
    assert blow.pid is not None
    await_state(known[blow.pid], "Z")
    other = faults.give("kill-worker", scene)
    assert {blow.pid, other.pid} == set(known)
    await_state(known[other.pid or 0], "Z")
    assert set(scene.doomed) == set(known.values())
    with pytest.raises(NotNowError, match="no worker"):
        faults.give("kill-worker", scene)


def test_the_seed_chooses_whom(scene: Scene) -> None:
    chosen = set()
    for seed in range(8):
        scene.rng, scene.stopped = random.Random(seed), []
        chosen.add(faults.give("stop-worker", scene).pid)
        faults.release(scene)
    assert chosen == set(workers(scene))


def test_a_stopped_worker_goes_on_in_the_end(scene: Scene) -> None:
    blow = faults.give("stop-worker", scene)
    process = workers(scene)[blow.pid or 0]
    await_state(process, "T")
    assert set(scene.doomed) == set(workers(scene).values())
    faults.release(scene)
    await_state(process, "SR")


def test_a_slow_worker_is_stopped_now_and_then_and_lives(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_SLOW_S", 1.0)
    blow = faults.give("slow-worker", scene)
    await_state(workers(scene)[blow.pid or 0], "SR")
    assert scene.stopped == []
    assert scene.doomed == []


def test_what_can_never_be_given_is_refused_at_once(scene: Scene) -> None:
    with pytest.raises(JobError, match="Ray's head") as caught:
        faults.refuse("kill-node", scene)
    assert "ray start" in str(caught.value.fix)
    with pytest.raises(JobError, match="environment"):
        faults.refuse("kill-driver", scene)
    faults.refuse("kill-worker", scene)
    faults.refuse("flip-bit", scene)


def test_a_worker_that_drives_itself_is_not_killed_as_a_worker(tmp_path: Path) -> None:
    with presence.present(tmp_path, rank=0, attempt=1):
        presence.note_command(tmp_path)
        scene = Scene(tmp_path, random.Random(1), patience_s=5.0)
        for kind in ("kill-worker", "stop-worker"):
            with pytest.raises(JobError, match="also what drives it"):
                faults.refuse(kind, scene)
        faults.refuse("kill-driver", scene)


def test_without_connections_no_network_is_cut(scene: Scene) -> None:
    with pytest.raises(NotNowError, match="no two workers"):
        faults.give("cut-network", scene)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may")
def test_only_root_cuts_a_network(scene: Scene) -> None:
    with pytest.raises(JobError, match="does not cut"):
        faults.refuse("cut-network", scene)


DRIVER = """\
import signal, sys, time
from pathlib import Path
from orchestrator import presence
from orchestrator.track import events
run, code = Path(sys.argv[1]), int(sys.argv[2])
def stop(*_):
    if code:
        events.record(run, "ended", attempt=1, how="stopped")
    sys.exit(code)
signal.signal(signal.SIGTERM, stop)
presence.note_command(run)
time.sleep(60)
"""


@pytest.mark.parametrize("code", [143, 0])
def test_a_preempted_driver_has_to_say_that_it_has_saved(tmp_path: Path, code: int) -> None:
    (tmp_path / "drive.py").write_text(DRIVER)
    run = tmp_path / "run"
    run.mkdir()
    scene = Scene(run, random.Random(1), patience_s=20.0)
    with subprocess.Popen([sys.executable, "drive.py", "run", str(code)], cwd=tmp_path) as first:
        until = time.monotonic() + 20
        while scene.driver.process is None and time.monotonic() < until:
            time.sleep(0.01)
        assert faults.give("preempt", scene).pid == first.pid
    second = scene.driver.process
    assert second is not None
    while scene.driver.command().process != second and time.monotonic() < until:
        time.sleep(0.01)
    faults.give("preempt", scene)
    assert len(scene.violations) == (0 if code else 3)
    assert ("exit code 0 instead of 143" in " ".join(scene.violations)) is (code == 0)
    assert second in scene.doomed
    faults.give("kill-driver", scene)
    third = scene.driver.process
    assert third is not None
    third.send(signal.SIGKILL)
