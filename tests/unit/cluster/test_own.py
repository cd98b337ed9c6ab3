"""What a Ray of our own hears, and what is left of it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.cluster.connect import _TMP_PREFIX, _sweep_dead
from orchestrator.cluster.own import deaf_to_sigterm, end_orphans


def test_what_is_started_in_the_block_does_not_hear_sigterm() -> None:
    with deaf_to_sigterm():
        deaf = subprocess.Popen(["sleep", "30"])
    hearing = subprocess.Popen(["sleep", "30"])
    for process in (deaf, hearing):
        process.terminate()
    assert hearing.wait(5) == -signal.SIGTERM
    with pytest.raises(subprocess.TimeoutExpired):
        deaf.wait(0.2)
    deaf.kill()
    deaf.wait(5)


def test_this_process_hears_it_after_the_block() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, _frame: heard.append(signum))
    try:
        with deaf_to_sigterm():
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            assert heard == []
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_thread_leaves_signals_alone() -> None:
    masks = []

    def look() -> None:
        with deaf_to_sigterm():
            masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert signal.SIGTERM not in masks[0]


_TMP = f"/tmp/{_TMP_PREFIX}"


def holding(name: str, path: Path) -> subprocess.Popen[bytes]:
    """A process that calls itself so, with a file open."""
    path.parent.mkdir(exist_ok=True)
    code = f"file = open({str(path)!r}, 'w'); print('open', flush=True); input()"
    pipe = subprocess.PIPE
    process = subprocess.Popen([name, "-c", code], executable=sys.executable, stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_orphans_are_known_by_their_name_and_their_logs(tmp_path: Path) -> None:
    dead = tmp_path / "slipway-ray-1-x"
    orphan = holding("ray::IDLE", dead / "worker.log")
    others = [holding("ray::IDLE", tmp_path / "slipway-ray-1-xy" / "worker.log"), holding("less", dead / "other.log")]
    end_orphans(dead)
    assert orphan.wait(5) == -signal.SIGKILL
    for process in others:
        assert process.poll() is None
        process.communicate(b"\n", timeout=5)


def test_what_a_killed_driver_has_left_is_swept_though_nobody_has_asked_how_it_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as driver:
        left = Path(f"{_TMP}{driver.pid}-test")
        left.mkdir()
        _sweep_dead()
        assert left.is_dir()
        driver.kill()
        while Path(f"/proc/{driver.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            pass
        _sweep_dead()
        assert not left.exists()
