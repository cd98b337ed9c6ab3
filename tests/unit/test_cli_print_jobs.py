"""Jobs as people see them."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cli_print_jobs import print_job, print_job_line, print_jobs, print_log

ROW: dict[str, Any] = {
    "job": "slipway-tiny-1",
    "name": "tiny",
    "state": "training",
    "stage": "train",
    "run": "runs/tiny-0123",
    "step": 8,
    "steps": 40,
    "loss": 2.5,
    "tokens_per_s": 1234.5,
    "goodput": 0.981,
    "cost": None,
    "place": None,
    "why": None,
    "user": "ana@[desk]",
    "submitted_at": "2026-01-02T03:04:05+00:00",
    "ended_at": None,
}
NOTHING = dict.fromkeys(("step", "steps", "loss", "tokens_per_s", "goodput", "user", "submitted_at"))


def test_a_table_of_jobs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    print_jobs({"jobs": [ROW, {**ROW, **NOTHING, "state": "waiting", "place": 2}]})
    said = capsys.readouterr().out
    for shown in ("slipway-tiny-1", "8/40", "2.5000", "1,234", "98.1%", "ana@[desk]", "2026-01-02 03:04:05", "(2.)"):
        assert shown in said
    print_jobs({"jobs": []})
    assert capsys.readouterr().out == "none\n"


def test_a_death_is_told_below_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    death = {"who": "the driver", "where": "10.0.0.7", "why": "killed by SIGKILL", "last_words": ["error: [x] gone"]}
    print_job({**ROW, "death": death, "said": [], "outcome": {"run": "x"}})
    said = capsys.readouterr().out
    assert "the driver on 10.0.0.7 killed by SIGKILL\n  error: [x] gone" in said
    assert "outcome" not in said
    print_job({**ROW, "death": None, "said": ["stopped: saved up to step 8"]})
    assert "  stopped: saved up to step 8" in capsys.readouterr().out


def test_the_end_of_a_submission(capsys: pytest.CaptureFixture[str]) -> None:
    print_job_line({"job": "j-1", "run": "runs/x", "state": "succeeded"})
    print_job_line({"job": "j-1", "run": None, "state": "pending"})
    print_log({"job": "j-1", "log": "as [it] is\n"})
    assert capsys.readouterr().out == "j-1: succeeded  runs/x\nj-1: pending\nas [it] is\n"
