"""Attempts: whoever was overtaken writes no more, and the next one waits for workers that still live."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator import attempts
from orchestrator.attempts import Attempt, FencedError, writing_run
from orchestrator.errors import StoreError

DRIVER = """
import sys
from pathlib import Path
from orchestrator.attempts import writing_run
with writing_run(Path(sys.argv[1])) as attempt:
    print(attempt.number, flush=True)
    sys.stdin.read()
"""
WORKER = """
import sys, time
from pathlib import Path
from orchestrator.attempts import Attempt, FencedError
run, lingers_s = Path(sys.argv[1]), float(sys.argv[2])
attempt = Attempt(run, 1)
with attempt.working():
    print("working", flush=True)
    try:
        while True:
            attempt.check()
            time.sleep(0.02)
    except FencedError:
        time.sleep(lingers_s)
        (run / "worker-ended").touch()
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-0123"
    path.mkdir()
    return path


@pytest.fixture
def start(run: Path) -> Iterator[Start]:
    """Starts a script on the run; returns once it has said its first line."""
    started: list[subprocess.Popen[str]] = []

    def begin(script: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, str(run), *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline()
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_attempts_are_counted(run: Path) -> None:
    for number in (1, 2, 3):
        with writing_run(run) as attempt:
            assert attempt.number == number
            attempt.check()


def test_an_older_attempt_is_fenced(run: Path) -> None:
    with writing_run(run) as first:
        pass
    with writing_run(run) as second:
        second.check()
        with pytest.raises(FencedError, match="attempt 1 of tiny-0123 was overtaken by attempt 2"):
            first.check()
        with pytest.raises(FencedError, match="was overtaken"), first.working():
            pass
    assert FencedError.exit_code == StoreError.exit_code


def test_a_second_driver_is_refused(run: Path, start: Start) -> None:
    driver = start(DRIVER)
    said = f"the run tiny-0123 is being written by process {driver.pid}"
    with pytest.raises(StoreError, match=said), writing_run(run):
        pass
    Attempt(run, 1).check()  # the refused one took nothing away from it


def test_the_lock_of_a_killed_driver_is_free(run: Path, start: Start) -> None:
    driver = start(DRIVER)
    driver.kill()
    driver.wait()
    with writing_run(run) as attempt:
        assert attempt.number == 2


def test_workers_of_a_killed_driver_are_waited_for(run: Path, start: Start) -> None:
    with writing_run(run):
        pass
    start(WORKER, "0.4")
    with writing_run(run):
        assert (run / "worker-ended").exists()


def test_a_worker_that_hangs_is_taken_over_from(run: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "WAIT_FOR_WORKERS_S", 0.3)
    with writing_run(run):
        pass
    start(WORKER, "60")
    began_at = time.monotonic()
    with writing_run(run) as attempt:
        assert time.monotonic() - began_at >= 0.3
        assert not (run / "worker-ended").exists()
        with attempt.working():  # its own workers come in beside the one that hangs
            attempt.check()


def test_workers_of_one_attempt_work_side_by_side(run: Path) -> None:
    with writing_run(run) as attempt, attempt.working(), attempt.working():
        pass


@pytest.mark.parametrize("text", ["", "{", '{"attempt": "two"}', "[]", "{}"])
def test_an_unreadable_number_is_told(run: Path, text: str) -> None:
    (run / "attempt.json").write_text(text)
    with pytest.raises(StoreError, match=r"attempt\.json is not readable"), writing_run(run):
        pass
