"""Records of detached services: whose lock is held is alive, whatever the files say."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import ServeError
from orchestrator.serve.host import records
from orchestrator.serve.host.processes import MARK
from orchestrator.serve.host.records import Record


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "slipway" / "services"


def record(port: int = 8123, mark: str = "none-has-this") -> Record:
    return Record(
        port=port,
        pid=os.getpid(),
        mark=mark,
        url=f"http://127.0.0.1:{port}/v1",
        model="tiny",
        export="/e",
        started_at=1.0,
        state="ready",
    )


HOLDER = """
import sys
from orchestrator.serve.host import records
with records.hold(int(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """Another process that supervises port 8123."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, "8123"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_folder_is_the_owners_alone(state: Path) -> None:
    state.mkdir(parents=True, mode=0o755)
    assert records.folder() == state
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_without_xdg_it_is_below_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert records.folder() == tmp_path / ".local" / "state" / "slipway" / "services"


def test_a_held_record_lives_and_comes_back_as_it_was() -> None:
    with records.hold(8123):
        records.write(record())
        assert records.living() == [record()]


def test_records_come_by_port() -> None:
    with records.hold(8123), records.hold(900), records.hold(80):
        for port in (8123, 80, 900):
            records.write(record(port))
        assert [r.port for r in records.living()] == [80, 900, 8123]


def test_a_record_without_a_process_is_removed(state: Path) -> None:
    with records.hold(8123):
        records.write(record())
    assert records.living() == []
    assert not (state / "8123.json").exists()


def test_a_lock_dies_with_its_process_and_with_it_the_record(holder: subprocess.Popen[str]) -> None:
    records.write(record())
    assert records.is_held(8123)
    assert len(records.living()) == 1
    holder.kill()
    holder.wait()
    assert not records.is_held(8123)
    assert records.living() == []


def test_a_service_whose_supervisor_is_dead_lives_while_it_has_a_process() -> None:
    orphan = subprocess.Popen(["sleep", "60"], env={**os.environ, MARK: "orphan-1"})
    try:
        records.write(record(mark="orphan-1"))
        assert [r.mark for r in records.living()] == ["orphan-1"]
    finally:
        orphan.kill()
        orphan.wait()
    assert records.living() == []


def test_a_second_supervisor_is_refused(holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_LOCK_WAIT_S", 0.1)
    with pytest.raises(ServeError, match="another supervisor serves on port 8123"), records.hold(8123):
        pass


def test_a_record_is_not_removed_under_its_supervisor(holder: subprocess.Popen[str], state: Path) -> None:
    records.write(record())
    records.remove_dead(8123)
    assert (state / "8123.json").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"port": 1}', "\0"])
def test_a_garbled_record_is_named(content: str) -> None:
    (records.folder() / "8123.json").write_text(content)
    with pytest.raises(ServeError, match=r"8123\.json is not a service's record"):
        records.living()
