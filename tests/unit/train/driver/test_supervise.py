"""What the driver knows of an attempt while it trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.job import JobSpec
from orchestrator.train.driver import supervise


def test_a_run_costs_its_workers_time(
    tiny_job: Callable[..., JobSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(supervise.time, "monotonic", lambda: now_s)
    cost = supervise._costs(tiny_job("cluster.cpu_hour_price=7.2"), tmp_path, workers=2)
    assert cost() == 0.0
    now_s += 1800.0
    assert cost() == pytest.approx(7.2)


def test_without_a_price_there_is_no_cost(tiny_job: Callable[..., JobSpec], tmp_path: Path) -> None:
    assert supervise._costs(tiny_job(), tmp_path, workers=2)() is None
