"""What follows from what the machines of a cluster say of themselves."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cluster.doctor import Check
from orchestrator.cluster.doctor_judge import judge

GOOD: dict[str, Any] = {
    "id": "a", "address": "10.0.0.1", "host": "one", "problem": None, "cpus": 8.0, "gpus": 2.0,
    "python": "3.11.9", "slipway": "0.1.0", "code": "0123456789ab", "torch": "2.13.0", "ray": "2.60.0",
    "deepspeed": "0.19.8", "token_mode": True, "disk_free_bytes": 90e9, "shm_free_bytes": 9e9, "tmp_free_bytes": 9e9,
    "clock_skew_s": 0.01, "clock_error_s": 0.002, "storage_problem": None,
    "write_bytes_per_s": 4e8, "read_bytes_per_s": 9e8,
}  # fmt: skip
OTHER = {**GOOD, "id": "b", "address": "10.0.0.2", "host": "two"}
NETWORK = {"backend": "gloo", "machines": 2, "problem": None, "bytes_per_s": 1.2e9, "latency_s": 2e-4}


def checks(*nodes: dict[str, Any], network: dict[str, Any] | None = NETWORK) -> dict[str, Check]:
    return {check.name: check for check in judge(nodes, network, "/shared/slipway")}


def test_a_good_cluster_has_nothing_wrong_and_says_its_figures() -> None:
    found = checks(GOOD, OTHER)
    assert [check.name for check in found.values() if not check.ok] == []
    assert found["machines"].found == "2 machine(s) with 16 CPUs and 4 GPUs answer"
    assert found["torch"].found == "2.13.0 everywhere"
    assert found["network"].found == "all-reduce by gloo over 2 machines: 1.20 GB/s each way, 0.20 ms a small one"
    assert "all write 400 MB/s at least and read 900" in found["storage"].found


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("torch", {"torch": "2.12.0"}, "2.13.0, but 2.12.0 on two (10.0.0.2)"),
        ("code", {"code": "ba9876543210"}, "0123456789ab, but ba9876543210 on two (10.0.0.2)"),
        ("token mode", {"token_mode": False}, "off on two (10.0.0.2)"),
        ("clocks", {"clock_skew_s": -7.5}, "-7.5 s on two (10.0.0.2)"),
        ("disk", {"disk_free_bytes": 2e9}, "2.0 GB free on two (10.0.0.2)"),
        ("/dev/shm", {"shm_free_bytes": 6e7}, "0.1 GB free on two (10.0.0.2)"),
        ("/tmp", {"tmp_free_bytes": 1e8}, "0.1 GB free on two (10.0.0.2)"),
        ("storage", {"write_bytes_per_s": 5e6}, "5 MB/s on two (10.0.0.2)"),
        ("storage", {"storage_problem": "read-only"}, "read-only on two (10.0.0.2)"),
    ],
)
def test_what_is_wrong_with_a_machine_is_said_with_its_name_and_a_fix(
    name: str, change: dict[str, Any], said: str
) -> None:
    found = checks(GOOD, GOOD, {**OTHER, **change})
    assert [check.name for check in found.values() if not check.ok] == [name]
    assert found[name].found == said
    assert found[name].fix


def test_a_clock_that_could_be_right_is_not_called_wrong() -> None:
    assert checks(GOOD, {**OTHER, "clock_skew_s": 3.0, "clock_error_s": 1.5})["clocks"].ok


def test_a_machine_that_does_not_answer_is_judged_by_that_alone() -> None:
    blank = {"id": "b", "address": "10.0.0.2", "host": None, "problem": "does not answer", "cpus": 8.0, "gpus": 0.0}
    found = checks(GOOD, blank, network=None)
    assert [check.name for check in found.values() if not check.ok] == ["machines"]
    assert found["machines"].found == "10.0.0.2: does not answer"
    assert list(checks(blank, network=None)) == ["machines"]


def test_a_network_that_does_not_carry_an_all_reduce() -> None:
    broken = {**NETWORK, "problem": "Connect timeout", "bytes_per_s": None, "latency_s": None}
    assert checks(GOOD, OTHER, network=broken)["network"].found == (
        "no all-reduce between the machines: Connect timeout"
    )
    assert not checks(GOOD, OTHER, network={**NETWORK, "bytes_per_s": 1e6})["network"].ok


def test_a_package_that_is_nowhere_is_wrong() -> None:
    assert checks({**GOOD, "deepspeed": None}, {**OTHER, "deepspeed": None})["deepspeed"].found == "not installed"
