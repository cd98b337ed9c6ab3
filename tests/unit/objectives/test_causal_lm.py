"""What a micro-batch teaches, and how much it counts in its step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.load.order import deal, micro_batches
from orchestrator.train.objectives import causal_lm

CONTEXT = 5


def test_each_token_is_the_target_of_the_one_before() -> None:
    batch = causal_lm(np.arange(12).reshape(2, 6), target_tokens=40, context=CONTEXT)
    assert batch.inputs_BT.tolist() == [[0, 1, 2, 3, 4], [6, 7, 8, 9, 10]]
    assert batch.targets_BT.tolist() == [[1, 2, 3, 4, 5], [7, 8, 9, 10, 11]]
    assert batch.weight == 10 / 40


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
@given(samples=st.integers(1, 60), accumulation=st.integers(1, 9))
def test_the_weights_of_a_step_sum_to_one(num_ranks: int, samples: int, accumulation: int) -> None:
    ids = np.zeros((samples, CONTEXT + 1), dtype=np.int64)
    weights = [
        causal_lm(ids[first:last], target_tokens=samples * CONTEXT, context=CONTEXT).weight
        for rank in range(num_ranks)
        for first, last in micro_batches(*deal(samples, rank, num_ranks), accumulation)
    ]
    assert len(weights) == num_ranks * accumulation
    assert sum(weights) == pytest.approx(1.0)


def test_an_empty_micro_batch_counts_nothing_but_can_be_passed_forward() -> None:
    batch = causal_lm(np.zeros((0, CONTEXT + 1), dtype=np.int64), target_tokens=40, context=CONTEXT)
    assert batch.weight == 0.0
    assert batch.inputs_BT.shape == batch.targets_BT.shape == (1, CONTEXT)
