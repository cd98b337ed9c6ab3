"""Mixtures: nothing lost, nothing twice, shares never more than a block from exact, for any weights and phases."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.load.mixture import LARGEST_BLOCK, Mixture, Part, is_mixture, slots
from orchestrator.data.load.order import BlockwiseOrder, SampleOrder, deal
from orchestrator.job_data import Phase

NAMES = ["a", "b", "c", "d"]
weights = st.one_of(st.floats(0.001, 1000), st.sampled_from([0.1, 0.25, 0.5, 1.0, 2.0, 3.0]))


@st.composite
def phases(draw: st.DrawFn) -> list[Phase]:
    """Up to three phases, the last without end or not."""
    ends: list[int | None] = sorted(draw(st.sets(st.integers(1, 60), max_size=2)))  # type: ignore[assignment]
    ends.append(draw(st.sampled_from([None, 70])))
    named = st.dictionaries(st.sampled_from(NAMES), weights, min_size=1)
    return [Phase(until_step=end, weights=draw(named)) for end in ends]


def mixture(counts: list[int], curriculum: list[Phase], *, per_step: int = 6, seed: int = 5) -> Mixture:
    parts = [Part(name, 1.0 + i, []) for i, name in enumerate(NAMES)]
    return Mixture(parts, counts, curriculum=curriculum, samples_per_step=per_step, seed=seed)


@pytest.mark.parametrize(
    ("given_weights", "expected"),
    [
        ([1.0], [1]),
        ([1.0, 1.0], [1, 1]),
        ([0.7, 0.3], [7, 3]),
        ([0.7, 0.2, 0.1], [7, 2, 1]),
        ([3.0, 0.0, 1.0], [3, 0, 1]),
        ([0.2, 0.2, 0.2, 0.2, 0.2], [1, 1, 1, 1, 1]),
        ([1e-9, 1.0], [1, 9999]),
        ([1 / 3, 2 / 3], [1, 2]),
        ([1.0, 3.14159265], [2415, 7585]),
        ([1e-9, 1e-9, 1e-9, 1.0], [1, 1, 1, 9997]),
    ],
)
def test_weights_become_the_smallest_block_that_holds_them(given_weights: list[float], expected: list[int]) -> None:
    assert slots(given_weights).tolist() == expected


@given(given_weights=st.lists(st.one_of(st.just(0.0), weights), min_size=1, max_size=12).filter(any))
def test_slots_are_the_weights_to_a_ten_thousandth(given_weights: list[float]) -> None:
    counts = slots(given_weights)
    size = counts.sum()
    assert size <= LARGEST_BLOCK
    assert [count > 0 for count in counts] == [weight > 0 for weight in given_weights]
    exact = [Fraction(repr(weight)) / sum(Fraction(repr(w)) for w in given_weights) for weight in given_weights]
    for count, share in zip(counts.tolist(), exact, strict=True):
        if size < LARGEST_BLOCK:
            assert Fraction(count, int(size)) == share
        else:  # a share is off by one slot, and by what the least of 1 for the others may take from it
            assert abs(count - share * size) <= len(given_weights)


def test_many_parts_get_a_slot_each() -> None:
    assert slots([1.0] * 300 + [1e9]).tolist() == [1] * 300 + [9700]


@given(curriculum=phases(), seed=st.integers(0, 2**40), per_step=st.integers(1, 9))
def test_nothing_is_lost_and_nothing_comes_twice(curriculum: list[Phase], seed: int, per_step: int) -> None:
    mixed = mixture([7, 11, 3, 900], curriculum, per_step=per_step, seed=seed)
    ends = [0, *(phase.until_step for phase in curriculum[:-1] if phase.until_step)]
    found = mixed.numbers(np.arange(ends[-1] * per_step))
    last = slots([curriculum[-1].weights.get(name, 0.0) for name in NAMES])
    if last.sum() <= 2000:  # and two whole blocks of the phase that goes on
        found = mixed.numbers(np.arange(ends[-1] * per_step + 2 * int(last.sum())))
    for part in range(4):
        numbers = np.sort(found.numbers[found.parts == part])
        assert numbers.tolist() == list(range(len(numbers)))


@given(curriculum=phases(), seed=st.integers(0, 2**40))
def test_shares_stay_within_a_block_of_exact_and_add_up(curriculum: list[Phase], seed: int) -> None:
    per_step = 6
    mixed = mixture([7, 11, 3, 900], curriculum, seed=seed)
    parts = mixed.numbers(np.arange(100 * per_step)).parts
    firsts = [0, *(phase.until_step * per_step for phase in curriculum[:-1] if phase.until_step), len(parts)]
    for phase, first, last in zip(curriculum, firsts, firsts[1:], strict=False):
        counts = slots([phase.weights.get(name, 0.0) for name in NAMES])
        here = np.eye(4, dtype=np.int64)[parts[first:last]].cumsum(axis=0)
        exact = np.arange(1, last - first + 1)[:, None] * counts / counts.sum()
        assert np.abs(here - exact).max(initial=0) <= counts.sum()
        assert not here[:, counts == 0].any()
    for position in (0, 1, firsts[1], len(parts) // 2, len(parts)):
        assert mixed.consumed(position).tolist() == np.bincount(parts[:position], minlength=4).tolist()


@pytest.mark.parametrize("num_ranks", range(1, 8))
@given(curriculum=phases(), seed=st.integers(0, 2**40), step=st.integers(1, 10**6))
def test_a_step_is_the_same_at_any_world_size_and_after_any_resume(
    num_ranks: int, curriculum: list[Phase], seed: int, step: int
) -> None:
    alone = mixture([7, 11, 3, 900], curriculum, per_step=13, seed=seed).at(np.arange(13) + step * 13)
    order = BlockwiseOrder(mixture([7, 11, 3, 900], curriculum, per_step=13, seed=seed))
    shares = [deal(13, rank, num_ranks) for rank in range(num_ranks)]
    joined = np.concatenate([order.between(step * 13 + first, step * 13 + last) for first, last in shares])
    assert joined.tolist() == alone.tolist()


def test_each_part_goes_through_its_epochs() -> None:
    mixed = mixture([4, 2, 3, 1], [Phase(weights={"a": 0.5, "b": 0.25, "d": 0.25})])
    ids = mixed.at(np.arange(160))
    assert Counter(ids.tolist()) == {**dict.fromkeys(range(4), 20), 4: 20, 5: 20, 9: 40}
    first = [i for i in ids.tolist() if i < 4]
    orders = [first[k : k + 4] for k in range(0, 80, 4)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len({tuple(order) for order in orders}) > 5


def test_base_weights_hold_without_a_curriculum_and_the_last_phase_goes_on() -> None:
    base = mixture([5, 5, 5, 5], []).numbers(np.arange(1000)).parts
    assert np.bincount(base).tolist() == [100, 200, 300, 400]
    ended = mixture([5, 5, 5, 5], [Phase(until_step=2, weights={"c": 1.0}), Phase(until_step=3, weights={"b": 1.0})])
    assert ended.numbers(np.arange(60)).parts.tolist() == [2] * 12 + [1] * 48


def test_parts_and_seeds_have_orders_of_their_own() -> None:
    orders = []
    for seed in (1, 2):
        ids = mixture([50, 50, 0, 0], [Phase(weights={"a": 1.0, "b": 1.0})], seed=seed).at(np.arange(100))
        orders += [ids[ids < 50].tolist(), (ids[ids >= 50] - 50).tolist()]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize(
    ("weight", "curriculum", "expected"),
    [(None, [], False), (1.0, [], True), (None, [Phase(weights={"a": 1.0})], True)],
)
def test_weights_or_a_curriculum_make_a_mixture(weight: float | None, curriculum: list[Phase], expected: bool) -> None:
    assert is_mixture([Part("a", weight, [])], curriculum) is expected


def test_the_order_is_what_it_was() -> None:
    # Checkpoints of older versions go on in this order.
    mixed = mixture([3, 2, 2, 1], [Phase(until_step=1, weights={"a": 0.5, "b": 0.5}), Phase(weights={"c": 1, "a": 2})])
    assert mixed.at(np.arange(14)).tolist() == [3, 0, 4, 2, 1, 3, 1, 0, 6, 2, 5, 2, 0, 5]


@given(size=st.integers(1, 300), first=st.integers(0, 10**9), length=st.integers(0, 40_000))
def test_blocks_are_the_order_itself(size: int, first: int, length: int) -> None:
    order = SampleOrder(size, 3)
    blockwise = BlockwiseOrder(order)
    for start in (first, first + length, first):
        expected = order.at(np.arange(start, start + length))
        assert np.array_equal(blockwise.between(start, start + length), expected)
