"""Sums in any order, and the three shares."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.objectives.scores.arithmetic import Series, precision_recall_f1


@given(st.lists(st.floats(-1e6, 1e6), max_size=20), st.randoms(use_true_random=False), st.integers(0, 20))
def test_a_sum_is_the_same_however_its_numbers_are_dealt(numbers: list[float], random: Random, cut: int) -> None:
    whole, dealt = Series(), Series()
    whole.add(numbers)
    mixed = random.sample(numbers, len(numbers))
    dealt.add(np.array(mixed[cut:]))
    for number in mixed[:cut]:
        dealt.add(number)
    assert dealt.sum() == whole.sum() == math.fsum(numbers)


def test_a_series_keeps_a_copy_and_sums_what_is_not_finite() -> None:
    series, mine = Series(), np.array([[1.0, 2.0]])
    series.add(mine)
    mine[:] = 5.0
    assert series.values().tolist() == [1.0, 2.0]
    series.add(math.inf)
    assert series.sum() == math.inf
    series.add(-math.inf)
    with np.errstate(invalid="ignore"):
        assert math.isnan(series.sum())


def test_shares_of_nothing_are_0() -> None:
    precision, recall, f1 = precision_recall_f1(np.array([3, 0, 0]), np.array([4, 0, 2]), np.array([6, 0, 0]))
    assert precision.tolist() == [0.75, 0.0, 0.0]
    assert recall.tolist() == [0.5, 0.0, 0.0]
    assert f1.tolist() == pytest.approx([0.6, 0.0, 0.0])
