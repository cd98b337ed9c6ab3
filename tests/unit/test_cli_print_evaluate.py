"""What people see of scores."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cli_print_evaluate import print_evaluation

DOCUMENT: dict[str, Any] = {
    "target": "runs/a/checkpoints/step-00000020",
    "dataset": "datasets/a",
    "split": "test",
    "step": 1200,
    "samples": 34567,
    "metrics": {"loss": 0.25, "macro_f1": 0.5, "nothing": None},
    "tables": {"confusion": {"columns": ["label", "[bad]", "good"], "rows": [["[bad]", 3, 1], ["good", 0, 12345]]}},
    "generated": [{"prompt": "a [b]", "text": "c [/d]"}],
}


def test_metrics_tables_and_texts_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_evaluation(DOCUMENT)
    shown = capsys.readouterr().out
    for said in ("step 1,200, 34,567 samples", "0.2500", "macro f1", "none", "[bad]", "12,345", "> a [b]", "c [/d]"):
        assert said in shown


def test_a_long_table_is_cut_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [[f"label {i}", i] for i in range(40)]
    print_evaluation({**DOCUMENT, "tables": {"many": {"columns": ["label", "count"], "rows": rows}}, "generated": None})
    shown = capsys.readouterr().out
    assert "label 29" in shown
    assert "label 30" not in shown
    assert "and 10 more rows" in shown
