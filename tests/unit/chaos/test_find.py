"""The processes of a run: its workers, what hosts them, and a driver that is started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import presence
from orchestrator.chaos import find
from orchestrator.errors import JobError
from orchestrator.presence import Process, Worker
from orchestrator.track import events

SLEEP = "import time; time.sleep(60)"


def started(process: subprocess.Popen[bytes]) -> Process:
    found = presence.process_of(process.pid)
    assert found is not None
    return found


def note(run: Path, process: Process, *, rank: int, attempt: int) -> None:
    path = run / "workers" / f"rank-{rank:05d}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"rank": rank, "attempt": attempt, **vars(process)}))


@pytest.fixture
def children() -> Iterator[list[Process]]:
    processes = [subprocess.Popen([sys.executable, "-c", SLEEP]) for _ in range(3)]
    yield [started(process) for process in processes]
    for process in processes:
        process.kill()
        process.wait()


def test_workers_are_those_of_the_newest_attempt_that_live(tmp_path: Path, children: list[Process]) -> None:
    assert find.workers(tmp_path) == []
    first, second, old = children
    note(tmp_path, first, rank=0, attempt=4)
    note(tmp_path, second, rank=1, attempt=4)
    note(tmp_path, old, rank=2, attempt=3)
    note(tmp_path, Process(first.pid, first.started - 1, first.host), rank=3, attempt=9)
    assert find.workers(tmp_path) == [Worker(0, 4, first), Worker(1, 4, second)]
    assert [process for process in find.overtaken(tmp_path) if process.is_alive] == [old]


def test_a_worker_that_no_raylet_has_started(tmp_path: Path) -> None:
    own = presence.process_of(os.getpid())
    assert own is not None
    assert find.raylet_of(Worker(0, 1, own)) is None


def test_the_raylet_above_a_worker(tmp_path: Path) -> None:
    shell = shutil.which("sh")
    assert shell is not None
    (tmp_path / "raylet").symlink_to(shell)
    for extra, head in (("--head", True), ("--port=1", False)):
        call = [str(tmp_path / "raylet"), "-c", f'{sys.executable} -c "{SLEEP}" & wait', "x", extra]
        with subprocess.Popen(call) as raylet:
            until = time.monotonic() + 10
            while not (below := presence.descendants(started(raylet))) and time.monotonic() < until:
                time.sleep(0.01)
            found = find.raylet_of(Worker(0, 1, below[0]))
            assert found == started(raylet)
            assert find.is_head(found) is head
            for process in (*below, found):
                process.send(signal.SIGKILL)


def test_the_end_of_a_run_and_its_beginnings(tmp_path: Path) -> None:
    assert (find.is_finished(tmp_path), find.begun(tmp_path)) == (False, 0)
    events.record(tmp_path, "started", attempt=1, step=0)
    events.record(tmp_path, "ended", attempt=1, how="stopped")
    assert (find.is_finished(tmp_path), find.begun(tmp_path)) == (False, 1)
    events.record(tmp_path, "resumed", attempt=3, step=4)
    events.record(tmp_path, "ended", attempt=3, how="finished")
    events.record(tmp_path, "chaos", kind="kill-driver", pid=1)
    assert (find.is_finished(tmp_path), find.begun(tmp_path)) == (True, 3)
    events.record(tmp_path, "launched", attempt=4, workers=1)
    assert not find.is_finished(tmp_path)


DRIVER = """\
import os, sys, time
from pathlib import Path
from orchestrator import presence
presence.note_command(Path(sys.argv[1]))
print("drives with", os.environ.get("OF_THE_RUN"), flush=True)
time.sleep(60)
"""


@pytest.fixture
def driven(tmp_path: Path) -> Iterator[find.Driver]:
    """A run that a program drives."""
    (tmp_path / "drive.py").write_text(DRIVER)
    (tmp_path / "run").mkdir()
    call, environ = [sys.executable, "drive.py", "run"], {**os.environ, "OF_THE_RUN": "a = b"}
    with subprocess.Popen(call, cwd=tmp_path, env=environ, stdout=subprocess.DEVNULL) as process:
        driver = find.Driver(tmp_path / "run")
        until = time.monotonic() + 20
        while driver.process is None and time.monotonic() < until:
            time.sleep(0.01)
        yield driver
        process.kill()


def test_a_run_that_nothing_drives(tmp_path: Path) -> None:
    driver = find.Driver(tmp_path)
    assert driver.process is None
    with pytest.raises(JobError, match=presence.COMMAND):
        driver.command()
    with pytest.raises(JobError, match="environment"):
        driver.environ()


def test_the_same_command_is_given_again_with_its_environment(
    driven: find.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_RUN", "of the drill")
    first, environ = driven.process, driven.environ()
    assert first is not None
    assert environ["OF_THE_RUN"] == "a = b"
    first.send(signal.SIGKILL)
    while first.is_alive:
        time.sleep(0.01)
    assert driven.process is None
    driven.start_again(environ)
    second = driven.process
    assert second is not None
    assert second != first
    log = driven.run / "logs" / "driver.log"
    until = time.monotonic() + 20
    while driven.command().process != second and time.monotonic() < until:
        time.sleep(0.01)
    while "drives" not in log.read_text() and time.monotonic() < until:
        time.sleep(0.01)
    assert log.read_text() == "drives with a = b\n"
    assert os.getsid(second.pid) == second.pid  # Ctrl-C of this terminal is none of it
    second.send(signal.SIGTERM)
    while driven.process is not None and time.monotonic() < until:
        time.sleep(0.01)
    assert driven.exit_codes() == [-signal.SIGTERM]
