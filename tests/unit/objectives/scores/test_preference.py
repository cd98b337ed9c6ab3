"""Implied rewards of pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.objectives.scores.preference import PreferenceScores

rewards = st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=1, max_size=20)


def test_a_tie_and_a_nan_are_not_higher() -> None:
    scores = PreferenceScores()
    scores.add([2.0, 1.0], [1.0, 1.0])
    assert scores.result().metrics == {"reward_accuracy": 0.5, "reward_margin": 0.5}
    scores.add(np.array([-1.0, 3.0]), np.array([2.0, math.nan]))
    assert scores.result().metrics["reward_accuracy"] == 0.25
    assert math.isnan(scores.result().metrics["reward_margin"])


@given(rewards, st.integers(1, 4))
def test_any_number_of_ranks_gives_the_same_scores(pairs: list[tuple[float, float]], num_ranks: int) -> None:
    chosen, rejected = np.array(pairs).T
    alone, together = PreferenceScores(), PreferenceScores()
    alone.add(chosen, rejected)
    for rank in range(num_ranks):
        part = PreferenceScores()
        part.add(chosen[rank::num_ranks], rejected[rank::num_ranks])
        together.merge([part.state()])
    assert together.result() == alone.result()
    assert together.result().metrics["reward_accuracy"] == sum(c > r for c, r in pairs) / len(pairs)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="must be as many as each other: they are 2 and 1"):
        PreferenceScores().add([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="no pairs to score"):
        PreferenceScores().result()
