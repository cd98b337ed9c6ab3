"""What people see of where a run's time went."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cli_print_runs import bar, print_account
from orchestrator.track.goodput import PARTS

SECONDS = dict(zip(PARTS, (600.0, 50.0, 100.0, 0.0, 20.0, 30.0, 100.0, 90.0, 10.0), strict=True))
DOCUMENT: dict[str, Any] = {
    "run": "runs/a",
    "state": "trained",
    "alive": True,
    "step": 1200,
    "steps": 5000,
    "attempts": 2,
    "workers": 4,
    "wall_s": 250.0,
    "worker_s": 1000.0,
    "gpu_hours": 0.0,
    "cpu_hours": 0.278,
    "cost": None,
    "goodput": {**{f"{part}_s": seconds for part, seconds in SECONDS.items()}, "fraction": 0.6},
    "restarts": [{"class": "hang", "cause": "rank [1] stood still", "step": 1100, "recovered_in_s": None}],
}


def test_every_part_is_shown_with_its_share(capsys: pytest.CaptureFixture[str]) -> None:
    print_account(DOCUMENT)
    shown = capsys.readouterr().out
    for part in PARTS:
        assert part.replace("_", " ") in shown
    for said in (
        "being trained",
        "step 1,200 of 5,000",
        "600.0",
        "60.0%",
        "unknown",
        "rank [1] stood still",
        "not yet",
    ):
        assert said in shown
    (whole,) = [line for line in shown.splitlines() if line and set(line.strip()) == {"█"}]
    assert len(whole.strip()) == 60


def test_a_run_that_has_not_begun_has_neither_bar_nor_restarts(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = dict.fromkeys(DOCUMENT["goodput"], 0.0)
    print_account({**DOCUMENT, "goodput": nothing, "restarts": []})
    shown = capsys.readouterr().out
    assert "█" not in shown
    assert "restarts" not in shown


@pytest.mark.parametrize(("share", "drawn"), [(0.0, ""), (1.0, "████"), (0.5, "██"), (0.28, "█▏"), (0.99, "████")])
def test_a_bar_is_drawn_to_an_eighth(share: float, drawn: str) -> None:
    assert bar(share, cells=4) == drawn
