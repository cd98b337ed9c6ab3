"""The mean loss over targets: the same however they are dealt to ranks."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.objectives.scores.mean_loss import MeanLoss
from orchestrator.objectives.scores.result import Scores, Table


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 1000)), min_size=1, max_size=20),
    st.integers(0, 20),
    st.randoms(use_true_random=False),
)
def test_it_is_the_same_for_any_number_of_ranks(batches: list[tuple[float, int]], cut: int, random: Random) -> None:
    mixed = random.sample(batches, len(batches))
    ranks = [MeanLoss(), MeanLoss()]
    for rank, share in zip(ranks, (mixed[:cut], mixed[cut:]), strict=True):
        for summed, count in share:
            rank.add(summed, count)
    merged = MeanLoss()
    merged.merge(rank.state() for rank in ranks)
    mean = math.fsum(summed for summed, _ in batches) / sum(count for _, count in batches)
    assert merged.result().metrics == {"loss": mean}


def test_a_state_does_not_change_when_more_is_added() -> None:
    loss = MeanLoss()
    loss.add(6.0, 3)
    state = loss.state()
    loss.add(100.0, 1)
    again = MeanLoss()
    again.merge([state])
    assert again.result().metrics == {"loss": 2.0}


def test_it_stands_before_other_scores() -> None:
    loss, table = MeanLoss(), Table(("label",), (("a",),))
    loss.add(1.0, 4)
    found = loss.beside(Scores({"accuracy": 0.5}, {"classes": table}))
    assert list(found.metrics.items()) == [("loss", 0.25), ("accuracy", 0.5)]
    assert found.tables == {"classes": table}


def test_without_targets_there_is_no_loss() -> None:
    for scored in (MeanLoss().result, lambda: MeanLoss().beside(Scores({}))):
        with pytest.raises(ValueError, match="no targets to score"):
            scored()
