"""The table of metrics, and the one number that stands for a run's speed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.track import metrics
from orchestrator.track.metrics import MEANINGS, TOKENS_PER_S, typical_tokens_per_s


def test_every_name_has_a_unit_and_a_meaning() -> None:
    names = {value for name, value in vars(metrics).items() if name.isupper() and isinstance(value, str)}
    assert names == set(MEANINGS)
    assert all(
        re.fullmatch(r"(train|eval|time|data|memory|goodput)/[a-z_]+(/NAME)?", name) and meaning
        for name, (_, meaning) in MEANINGS.items()
    )


def test_names_carry_their_units() -> None:
    assert {unit for name, (unit, _) in MEANINGS.items() if name.endswith("_s") and "_per_s" not in name} == {"s"}
    assert MEANINGS[TOKENS_PER_S][0] == "tokens/s"


@pytest.mark.parametrize(
    ("rates", "typical"),
    [
        ([], None),
        ([7.04], 7.0),
        ([1.0, 2.0], 1.5),
        ([1.0, 2.0, 10.0], 10.0),
        ([1.0, 1.0, 10.0, 12.0, 500.0], 12.0),
        ([0.0, 3.0], 3.0),
    ],
)
def test_the_first_steps_do_not_count_where_there_are_others(rates: list[float], typical: float | None) -> None:
    assert typical_tokens_per_s([{TOKENS_PER_S: rate} for rate in rates]) == typical


def test_lines_without_a_rate_are_left_out() -> None:
    assert typical_tokens_per_s([{}, {TOKENS_PER_S: 5.0}]) == 5.0


def test_the_manual_has_the_table() -> None:
    rows = [f"| `{name}` | {unit} | {meaning} |" for name, (unit, meaning) in MEANINGS.items()]
    manual = Path(__file__).parents[3] / "docs" / "metrics.md"
    told = [line for line in manual.read_text(encoding="utf-8").splitlines() if re.match(r"\| `[a-z]+/", line)]
    assert told == rows
