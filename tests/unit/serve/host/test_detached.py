"""Services that outlive the command, as far as that goes without starting one; the rest is an integration test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import (
    CapacityError,
    DataError,
    JobError,
    ServeError,
    SlipwayError,
    StoreError,
    TrainError,
)
from orchestrator.job import Serve
from orchestrator.serve.host import detached, records
from orchestrator.serve.host.control import rebuilt
from orchestrator.serve.host.processes import HOST, MARK, kill_marked, marked
from orchestrator.serve.host.records import Record


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def record(pid: int, mark: str, port: int = 8123) -> Record:
    return Record(
        port=port, pid=pid, mark=mark, url="u", model="tiny", export="/e", started_at=time.time(), state="ready"
    )


SUPERVISOR = """
import signal, subprocess, sys
from orchestrator.serve.host import records
with records.hold(8123):
    child = subprocess.Popen(["sleep", "60"])
    signal.signal(signal.SIGTERM, lambda *_: (child.kill(), child.wait(), sys.exit()))
    print("ready", flush=True)
    signal.pause()
"""


@pytest.fixture
def supervisor() -> Iterator[subprocess.Popen[str]]:
    """A process with a child that ends both at SIGTERM, as a supervisor does; its mark is `fake`."""
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR], stdout=subprocess.PIPE, text=True, env={**os.environ, MARK: "fake"}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    records.write(record(process.pid, "fake"))
    yield process
    kill_marked("fake")
    process.wait()


def test_nothing_runs_at_first() -> None:
    assert detached.status() == []
    assert detached.stop() == []
    with pytest.raises(ServeError, match="no detached service runs on port 8123; there is none at all"):
        detached.stop(8123)


def test_stop_ends_a_service_and_its_children(supervisor: subprocess.Popen[str]) -> None:
    assert len(marked("fake")) == 2
    (row,) = detached.status()
    assert (row["state"], row["answers"], row["pid"]) == ("ready", False, supervisor.pid)
    with pytest.raises(ServeError, match="no detached service runs on port 9; there are on 8123"):
        detached.stop(9)
    assert [row["port"] for row in detached.stop(8123)] == [8123]
    assert marked("fake") == []
    assert detached.status() == []
    assert supervisor.wait(5) == 0


def test_what_a_killed_supervisor_left_is_lost_and_stop_ends_it(supervisor: subprocess.Popen[str]) -> None:
    supervisor.kill()
    supervisor.wait()
    (row,) = detached.status()
    assert row["state"] == "lost"
    before = time.monotonic()
    assert len(detached.stop()) == 1
    assert time.monotonic() - before < 5  # there is nobody to ask first
    assert marked("fake") == []


def test_a_process_that_does_not_end_by_asking_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detached, "_STOP_LIMIT_S", 0.3)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, env={**os.environ, MARK: "deaf"})
    assert process.stdout is not None
    process.stdout.readline()
    records.write(record(process.pid, "deaf"))
    detached.stop()
    assert process.wait(5) == -9


def test_a_reused_process_number_is_left_alone() -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        records.write(record(bystander.pid, "gone"))
        assert detached.stop() == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_port_in_use_is_refused_before_anything_starts(supervisor: subprocess.Popen[str]) -> None:
    def start(port: int) -> None:
        detached.start_detached(Path("/e"), settings=Serve(), model_name="tiny", port=port)

    with pytest.raises(ServeError, match=f"port 8123 serves tiny already .process {supervisor.pid}") as e:
        start(8123)
    assert "slipway serve --stop --port 8123" in str(e.value.fix)
    with socket.socket() as server:
        server.bind((HOST, 0))
        server.listen()
        with pytest.raises(ServeError, match="is in use"):
            start(server.getsockname()[1])


@pytest.mark.parametrize("kind", [JobError, DataError, CapacityError, TrainError, StoreError, ServeError])
def test_errors_come_back_as_they_were(kind: type[SlipwayError]) -> None:
    sent = kind("what was found", fix="what to do")
    back = rebuilt(sent.as_json()["error"])
    assert (type(back), back.message, back.fix, back.exit_code) == (kind, sent.message, sent.fix, kind.exit_code)


def test_a_supervisor_that_ends_without_a_word_leaves_its_log() -> None:
    records.log_path(8123).write_text("first\n" * 9 + "MemoryError\n")
    error = detached._silent_end(record(1, "x"), -9)
    assert error.message.startswith("the supervisor ended with code -9 before the service was ready: first")
    assert error.message.endswith("MemoryError")


def test_it_needs_neither_torch_nor_ray() -> None:
    code = "import sys, orchestrator.serve.host.detached; print(sorted({'torch', 'ray', 'fastapi'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
