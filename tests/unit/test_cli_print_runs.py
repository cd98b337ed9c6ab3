"""What people see of where a run's time went."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cli_print_runs import bar, print_account, print_runs
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
    "jobs": [
        {
            "attempt": 2,
            "launched_at": "2026-11-20T12:00:00.000+00:00",
            "workers": 4,
            "submitter": "ana@laptop",
            "host": "head",
            "submission": "slipway-1",
        }
    ],
    "children": ["runs/tuned-1"],
    "served": [],
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
        "ana@laptop",
        "began with it: runs/tuned-1",
    ):
        assert said in shown
    (whole,) = [line for line in shown.splitlines() if line and set(line.strip()) == {"█"}]
    assert len(whole.strip()) == 60


def test_a_run_that_has_not_begun_has_neither_bar_nor_restarts(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = dict.fromkeys(DOCUMENT["goodput"], 0.0)
    print_account({**DOCUMENT, "goodput": nothing, "restarts": [], "jobs": [], "children": []})
    shown = capsys.readouterr().out
    assert "█" not in shown
    assert "restarts" not in shown


@pytest.mark.parametrize(("share", "drawn"), [(0.0, ""), (1.0, "████"), (0.5, "██"), (0.28, "█▏"), (0.99, "████")])
def test_a_bar_is_drawn_to_an_eighth(share: float, drawn: str) -> None:
    assert bar(share, cells=4) == drawn


def test_runs_are_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    print_runs({"runs": []})
    assert capsys.readouterr().out == "none\n"
    numbers = {"step": 1200, "steps": 5000, "train_loss": 2.5, "validation_loss": None, "tokens_per_s": 1234.5}
    row = {"name": "a-1", "state": "started", **numbers, "worked_at": None, "tags": [], "served": []}
    print_runs({"runs": [row]})
    plain = capsys.readouterr().out
    for said in ("a-1", "started", "1,200/5,000", "2.5000", "1,234"):
        assert said in plain
    assert "tags" not in plain
    unreadable = {**dict.fromkeys(row), "name": "b-1", "state": "unreadable", "tags": ["old"], "served": []}
    print_runs({"runs": [row, unreadable]})
    told = capsys.readouterr().out
    assert "tags" in told
    assert "old" in told
    assert "unreadable" in told
