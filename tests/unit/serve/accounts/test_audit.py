"""The audit log: only ever longer, and nothing in it can be changed unseen."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import DataError
from orchestrator.serve.accounts.audit import GENESIS, AuditLog, read_audit, verify_audit


def filled(path: Path, events: int = 5) -> AuditLog:
    log = AuditLog(path)
    for number in range(events):
        log.append("key created", key=f"key-{number}", name="Ána")
    return log


def test_each_line_has_the_hash_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "audit.jsonl"
    filled(path)
    events = list(read_audit(path))
    assert [event["key"] for event in events] == [f"key-{number}" for number in range(5)]
    assert events[0]["previous"] == GENESIS
    report = verify_audit(path)
    assert (report.lines, report.torn, report.problem) == (5, 0, None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(line=st.integers(0, 3), what=st.sampled_from(["change", "remove", "swap", "insert"]))
def test_whatever_is_done_to_a_line_shows(tmp_path: Path, line: int, what: str) -> None:
    path = tmp_path / "audit.jsonl"
    path.unlink(missing_ok=True)
    filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    if what == "change":
        lines[line] = lines[line].replace(b"key-", b"KEY-")
    elif what == "remove":
        del lines[line]
    elif what == "swap":
        lines[line], lines[line + 1] = lines[line + 1], lines[line]
    else:
        lines.insert(line, b'{"event": "nothing"}\n')
    path.write_bytes(b"".join(lines))
    assert verify_audit(path).problem is not None


def test_a_torn_line_stays_and_the_chain_goes_on_over_it(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = filled(path, 2)
    path.write_bytes(path.read_bytes()[:-20])
    log.append("key revoked", key="key-0")
    report = verify_audit(path)
    assert (report.lines, report.torn, report.problem) == (3, 1, None)
    assert [event["event"] for event in read_audit(path)] == ["key created", "key revoked"]
    path.write_bytes(path.read_bytes().replace(b"key-1", b"key-2"))
    assert verify_audit(path).problem is not None


def test_a_line_longer_than_a_block_is_found_whole(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    for _ in range(3):
        log.append("rollout", why="x" * 100_000)
    assert verify_audit(tmp_path / "audit.jsonl").problem is None


def test_a_flood_of_refusals_is_a_line_a_second(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    for _ in range(1000):
        log.deny("wrong key", None)
        log.deny("limit", "key-1")
    assert not path.exists()
    deadline = time.monotonic() + 10
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    log.flush()
    denied = {(event["reason"], event["key"]): event["requests"] for event in read_audit(path)}
    assert denied == {("wrong key", None): 1000, ("limit", "key-1"): 1000}


def test_processes_write_in_turn(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    code = (
        "import sys, pathlib\nfrom orchestrator.serve.accounts.audit import AuditLog\n"
        "log = AuditLog(pathlib.Path(sys.argv[1]))\nfor n in range(40): log.append('rollout', number=n)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, path]) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert verify_audit(path).problem is None
    assert sorted(event["number"] for event in read_audit(path)) == sorted(list(range(40)) * 3)


def test_no_log_yet(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no audit log"):
        verify_audit(tmp_path / "audit.jsonl")


def test_lines_are_json(tmp_path: Path) -> None:
    filled(tmp_path / "audit.jsonl", 1)
    assert json.loads((tmp_path / "audit.jsonl").read_text(encoding="utf-8"))["name"] == "Ána"
