"""The machines of a cluster, for people."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from orchestrator.cli_print_doctor import print_cluster

GOOD = {
    "host": "gpu-1", "address": "10.0.0.1", "cpus": 96.0, "gpus": 8.0, "gpu_name": "H100", "problem": None,
    "slipway": "0.1.0", "code": "0123456789ab", "torch": "2.13.0", "ray": "2.60.0", "python": "3.11.9",
    "disk_free_bytes": 1.5e12, "shm_free_bytes": 8e9, "clock_skew_s": -0.004,
    "write_bytes_per_s": 1.25e9, "read_bytes_per_s": None,
}  # fmt: skip
GONE = {**GOOD, "host": None, "address": "10.0.0.2", "gpu_name": None, "problem": "does not answer"}


def test_a_row_a_machine_and_a_line_a_check(capsys: pytest.CaptureFixture[str]) -> None:
    checks = [
        {"name": "clocks", "ok": True, "found": "within 0.004 s", "fix": "ntp"},
        {"name": "machines", "ok": False, "found": "10.0.0.2: does not answer", "fix": "restart Ray there"},
    ]
    text = StringIO()
    console = Console(file=text, width=400)
    print_cluster({"nodes": [GOOD, GONE], "checks": checks}, console)
    (good,) = [line for line in text.getvalue().splitlines() if "gpu-1 10.0.0.1" in line]
    for said in ("8 H100", "slipway 0.1.0 0123456789ab", "1,500.0 GB", "-0.004 s", "1,250 MB/s"):
        assert said in good
    assert "does not answer" in text.getvalue()
    lines = capsys.readouterr().out
    assert "ok    clocks         within 0.004 s" in lines
    assert "FAIL  machines       10.0.0.2: does not answer" in lines
    assert "fix: restart Ray there" in lines
