"""Who is noted to work on a run, and whether that is still so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import presence
from orchestrator.presence import Process

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(SLEEP) as process:
        yield process
        process.kill()


def own() -> Process:
    found = presence.process_of(os.getpid())
    assert found is not None
    return found


def test_a_worker_is_noted_while_it_works(tmp_path: Path) -> None:
    with presence.present(tmp_path, rank=3, attempt=7):
        (worker,) = presence.read_workers(tmp_path)
        assert (worker.rank, worker.attempt, worker.process) == (3, 7, own())
        assert worker.process.is_alive
        assert worker.process.is_here
    assert presence.read_workers(tmp_path) == []


def test_a_note_of_the_next_attempt_is_left_to_it(tmp_path: Path) -> None:
    with presence.present(tmp_path, rank=0, attempt=1):
        (note,) = (tmp_path / "workers").iterdir()
        note.write_text(note.read_text().replace('"attempt": 1', '"attempt": 2'))
    assert [worker.attempt for worker in presence.read_workers(tmp_path)] == [2]


def test_a_note_that_is_not_readable_is_none(tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "rank-00000.json").write_text("{")
    (tmp_path / "workers" / "rank-00001.json").write_text('{"rank": 1}')
    (tmp_path / presence.COMMAND).write_text("[]")
    assert presence.read_workers(tmp_path) == []
    assert presence.read_command(tmp_path) is None


def test_the_command_starts_the_same_program_again(tmp_path: Path) -> None:
    script = tmp_path / "drive.py"
    script.write_text(
        f"from orchestrator import presence; from pathlib import Path; presence.note_command(Path({str(tmp_path)!r}))"
    )
    first = subprocess.run([sys.executable, "drive.py", "--an", "option with spaces"], cwd=tmp_path, check=True)
    assert first.returncode == 0
    command = presence.read_command(tmp_path)
    assert command is not None
    assert command.argv == [sys.executable, "drive.py", "--an", "option with spaces"]
    assert command.cwd == str(tmp_path)
    assert not command.process.is_alive
    subprocess.run(command.argv, cwd=command.cwd, check=True)
    again = presence.read_command(tmp_path)
    assert again is not None
    assert again.process.pid != command.process.pid


def test_nothing_of_the_environment_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "squeamish-ossifrage")
    presence.note_command(tmp_path)
    with presence.present(tmp_path, rank=0, attempt=1):
        written = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert "ossifrage" not in written


def test_a_number_that_was_given_away_again_is_not_the_process() -> None:
    other = Process(os.getpid(), own().started - 1, own().host)
    assert not other.is_alive
    assert not other.send(signal.SIGKILL)


def test_a_process_of_another_machine_is_left_alone() -> None:
    elsewhere = Process(os.getpid(), own().started, "elsewhere")
    assert not elsewhere.is_here
    assert not elsewhere.send(signal.SIGKILL)


def test_a_stopped_process_lives_and_a_killed_one_that_nobody_has_waited_for_does_not(
    child: subprocess.Popen[bytes],
) -> None:
    process = presence.process_of(child.pid)
    assert process is not None
    assert process.send(signal.SIGSTOP)
    assert process.is_alive
    assert process.send(signal.SIGKILL)
    until = time.monotonic() + 10
    while process.is_alive and time.monotonic() < until:
        time.sleep(0.01)
    assert not process.is_alive
    assert Path(f"/proc/{child.pid}").exists()  # its parent, this test, has not asked how it ended
    assert not process.send(signal.SIGTERM)


def test_a_family_is_found_by_its_parents(child: subprocess.Popen[bytes]) -> None:
    process = presence.process_of(child.pid)
    assert process is not None
    assert presence.parent_of(process) == own()
    assert process in presence.descendants(own())
    assert presence.descendants(process) == []


def test_notes_are_whole_json(tmp_path: Path) -> None:
    presence.note_command(tmp_path)
    note = json.loads((tmp_path / presence.COMMAND).read_text())
    assert set(note) == {"argv", "cwd", "pid", "started", "host"}
