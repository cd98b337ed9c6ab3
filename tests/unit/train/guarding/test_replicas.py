"""Ranks that differ are named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import TrainError
from orchestrator.train.guarding.replicas import require_alike
from orchestrator.train.recovery.failures import FailureClass, classify


@given(st.integers(1, 9), st.integers(-(2**63), 2**63 - 1))
def test_equal_ranks_pass(count: int, checksum: int) -> None:
    require_alike([checksum] * count, step=3)
    require_alike([None] * count, step=3)


@given(st.integers(3, 9), st.data())
def test_a_minority_is_named(count: int, data: st.DataObject) -> None:
    wrong = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=(count - 1) // 2))
    with pytest.raises(TrainError) as raised:
        require_alike([1 + rank if rank in wrong else 0 for rank in range(count)], step=3)
    assert f" {', '.join(map(str, sorted(wrong)))} differ" in raised.value.message


def test_without_a_majority_all_are_named() -> None:
    with pytest.raises(TrainError, match="ranks 0, 1 differ from each other, and no majority tells"):
        require_alike([1, 2], step=3)


def test_it_is_tried_again_from_a_checkpoint() -> None:
    with pytest.raises(TrainError) as raised:
        require_alike([1, 2], step=3)
    assert classify(raised.value).kind is FailureClass.WORKER
