"""What a machine says of itself: on this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cluster.doctor_probe import Probe, code_digest


def test_facts_name_versions_and_room(tmp_path: Path) -> None:
    facts = Probe().facts(str(tmp_path / "not" / "there"))
    assert facts["ray"].startswith("2.")
    assert facts["code"] == code_digest()
    assert facts["disk_free_bytes"] > 0
    assert facts["shm_free_bytes"] > 0
    assert not (tmp_path / "not").exists()


def test_storage_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    speeds = Probe().storage(str(tmp_path), 3_000_001)
    assert speeds["write_bytes_per_s"] > 0
    assert speeds["read_bytes_per_s"] > 0
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        Probe().storage(str(tmp_path / "none"), 10)


def test_one_machine_meets_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    probe = Probe()
    probe.meet(f"127.0.0.1:{probe.free_port()}", 0, 1, backend="gloo", address="127.0.0.1")
    assert probe.reduce("gloo")["latency_s"] > 0
