"""The order of samples: a permutation an epoch, the same at any world size, dealt in nearly equal shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.load.order import SampleOrder, deal, micro_batches, permute

seeds = st.integers(0, 2**63)
NUM_RANKS = pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])


@given(size=st.integers(1, 3000), seed=seeds, epoch=st.integers(0, 2**40))
def test_an_epoch_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    image = permute(np.arange(size), size, seed, epoch)
    assert np.array_equal(np.sort(image), np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 257, 1023, 1025, 65537])
def test_an_epoch_is_a_permutation_beside_powers_of_two(size: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, 7, 3)), np.arange(size))


@given(indices=st.lists(st.integers(0, 2**40 - 1), min_size=2, max_size=50, unique=True), seed=seeds)
def test_large_sizes_take_no_memory_and_keep_samples_apart(indices: list[int], seed: int) -> None:
    size = 2**40
    image = permute(np.array(indices), size, seed, 0)
    assert len(set(image.tolist())) == len(indices)
    assert ((image >= 0) & (image < size)).all()


def test_the_order_is_what_it_was() -> None:
    # Checkpoints of older versions go on in this order: a change here needs a new RUN_FORMAT.
    assert permute(np.arange(10), 10, 0, 0).tolist() == [7, 5, 1, 8, 6, 3, 4, 0, 9, 2]
    assert permute(np.arange(10), 10, 0, 1).tolist() == [9, 4, 6, 8, 7, 3, 1, 5, 2, 0]


@given(size=st.integers(20, 2000), seed=seeds)
def test_epochs_and_seeds_differ(size: int, seed: int) -> None:
    everything = np.arange(size)
    orders = [permute(everything, size, s, e).tolist() for s, e in ((seed, 0), (seed, 1), (seed + 1, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert everything.tolist() not in orders


def test_neighbours_are_scattered() -> None:
    # A sample's neighbour comes from anywhere: the mean distance of a random order is a third of its length.
    size = 10_000
    order = permute(np.arange(size), size, 5, 0)
    assert abs(np.abs(np.diff(order)).mean() - size / 3) < size / 50
    assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 0.05


@given(size=st.integers(2, 300), seed=seeds, positions=st.lists(st.integers(0, 300), max_size=30))
def test_any_position_can_be_asked_for_alone(size: int, seed: int, positions: list[int]) -> None:
    order = SampleOrder(size, seed)
    whole = order.at(np.arange(301))
    assert order.at(np.array(positions, dtype=np.int64)).tolist() == [whole[p] for p in positions]
    for epoch in range(300 // size):
        assert sorted(whole[epoch * size : (epoch + 1) * size]) == list(range(size))


@NUM_RANKS
@given(samples=st.integers(1, 100), size=st.integers(1, 200), seed=seeds, step=st.integers(1, 50))
def test_the_global_order_is_the_same_at_any_world_size(
    num_ranks: int, samples: int, size: int, seed: int, step: int
) -> None:
    order = SampleOrder(size, seed)
    alone = order.at(np.arange(samples) + (step - 1) * samples)
    shares = [deal(samples, rank, num_ranks) for rank in range(num_ranks)]
    joined = [order.at(np.arange(first, last) + (step - 1) * samples) for first, last in shares]
    assert np.concatenate(joined).tolist() == alone.tolist()


@NUM_RANKS
@given(samples=st.integers(0, 10_000))
def test_shares_are_contiguous_and_nearly_equal(num_ranks: int, samples: int) -> None:
    shares = [deal(samples, rank, num_ranks) for rank in range(num_ranks)]
    assert [first for first, _ in shares] == [0, *(last for _, last in shares[:-1])]
    assert shares[-1][1] == samples
    sizes = [last - first for first, last in shares]
    assert max(sizes) - min(sizes) <= 1


@NUM_RANKS
@given(samples=st.integers(0, 500), count=st.integers(1, 40))
def test_every_rank_makes_the_same_number_of_micro_batches(num_ranks: int, samples: int, count: int) -> None:
    for rank in range(num_ranks):
        first, last = deal(samples, rank, num_ranks)
        cuts = micro_batches(first, last, count)
        assert len(cuts) == count
        assert [index for a, b in cuts for index in range(a, b)] == list(range(first, last))
        sizes = [b - a for a, b in cuts]
        assert max(sizes) - min(sizes) <= 1
