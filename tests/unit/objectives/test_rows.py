"""Labelled rows as samples: every one once an epoch at any world size, little padding, weights that hold."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from encoder_fixtures import FRAME, ids, read_step, table
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import JobError
from orchestrator.job_data import Phase
from orchestrator.objectives.classification import ClassificationRows
from orchestrator.objectives.encoder_inputs import IDS, LOSS, MASK, framed, padded_length
from orchestrator.objectives.rows import RowExamples, RowFeed, RowTable, cut_rows

NOTHING = np.zeros(0, np.uint16)


def texts(count: int, *, seed: int = 0, longest: int = 120) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(3.0, 0.8, count).astype(int), 1, longest)
    return {
        "input_ids": [ids(rng, n) for n in lengths],
        "pair_ids": [NOTHING] * count,
        "label": np.arange(count, dtype=np.int32) % 2,
    }


def rows_of(made: RowTable, context: int = 128) -> ClassificationRows:
    return ClassificationRows(made, FRAME, context=context)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> ClassificationRows:
    shards = [texts(40, seed=1), texts(3, seed=2), texts(60, seed=3)]
    return rows_of(table(tmp_path_factory.mktemp("rows"), shards))


def test_rows_are_numbered_over_shards(tmp_path: Path) -> None:
    shards = [texts(3, seed=1), texts(2, seed=2)]
    made = table(tmp_path, shards)
    flat = [row for shard in shards for row in shard["input_ids"]]  # type: ignore[attr-defined]
    assert len(made) == 5
    assert [made.row("input_ids", i).tolist() for i in range(5)] == [row.tolist() for row in flat]
    assert made.lengths("input_ids").tolist() == [len(row) for row in flat]
    assert made.numbers("label").tolist() == [0, 1, 0, 0, 1]
    assert made.bytes_read == 2 * sum(map(len, flat))


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_every_row_comes_once_an_epoch_at_any_world_size(
    rows: ClassificationRows, num_ranks: int, accumulation: int
) -> None:
    feed = RowFeed(rows, samples_per_step=10, seed=5)
    orders = []
    for epoch in range(2):
        seen: list[int] = []
        for step in range(epoch * 11 + 1, epoch * 11 + 12):
            batches = read_step(feed, step, num_ranks=num_ranks, accumulation=accumulation)
            assert len(batches) == num_ranks * accumulation
            assert sum(batch.counts[LOSS] for batch in batches) == feed.totals(step)[LOSS]
            seen += [row for batch in batches for row in batch.rows]
        assert sorted(seen) == list(range(103))
        orders.append(seen)
        alone = RowFeed(rows, samples_per_step=10, seed=5)
        steps = range(epoch * 11 + 1, epoch * 11 + 12)
        assert seen == [row for step in steps for row in alone.read(step, 0, 10).rows]
    assert orders[0] != orders[1]


def test_a_rank_of_a_short_batch_without_rows_still_has_a_pass(rows: ClassificationRows) -> None:
    feed = RowFeed(rows, samples_per_step=100, seed=0)
    totals = [feed.totals(step)[LOSS] for step in (1, 2)]
    assert sorted(totals) == [3, 100]
    short = totals.index(3) + 1
    batches = read_step(feed, short, num_ranks=4)
    assert sorted(batch.counts[LOSS] for batch in batches) == [0, 1, 1, 1]
    empty = next(batch for batch in batches if not batch.counts[LOSS])
    assert (empty.tokens, len(empty.rows), empty.tensors["targets"].tolist()) == (0, 0, [-100])
    assert empty.tensors[IDS].tolist() == [[2, 3, 0, 0, 0, 0, 0, 0]]
    assert empty.tensors[MASK].sum() == 2


def test_little_is_padded(tmp_path: Path) -> None:
    rows = rows_of(table(tmp_path, [texts(4000)]))
    feed = RowFeed(rows, samples_per_step=32, seed=0)
    batches = [feed.read(step, 0, 32) for step in range(1, 126)]
    tokens = sum(batch.tokens for batch in batches)
    longest = sum(len(b.rows) * int(b.tensors[MASK].sum(1).max()) for b in batches)
    assert tokens == rows.pieces.lengths.sum()
    assert 1 - tokens / longest < 0.05
    for batch in batches:
        width = batch.tensors[IDS].shape[1]
        assert width % 8 == 0
        assert width - int(batch.tensors[MASK].sum(1).max()) < 8


def test_weights_hold_in_every_step_and_epochs_are_told(tmp_path: Path) -> None:
    made = table(tmp_path, [texts(30), texts(20, seed=1), texts(7, seed=2)], parts=[("a", 3.0, 2), ("b", 1.0, 1)])
    feed = RowFeed(rows_of(made), samples_per_step=16, seed=2)
    counts: Counter[int] = Counter()
    for step in range(1, 15):
        batch = [row for ranks in read_step(feed, step, num_ranks=3) for row in ranks.rows]
        assert sum(row >= 50 for row in batch) == 4
        assert feed.totals(step) == {LOSS: 16}
        counts.update(batch)
    assert [counts[row] for row in range(50, 57)] == [8] * 7
    seen = feed.seen(14)
    assert seen["b"].epochs == pytest.approx(8.0)
    assert seen["a"].epochs == pytest.approx(14 * 12 / 50)
    assert seen["b"].tokens == pytest.approx(8 * rows_of(made).pieces.lengths[50:].sum(), abs=1)
    phases = [Phase(until_step=2, weights={"b": 1.0}), Phase(weights={"a": 1.0})]
    phased = RowFeed(rows_of(made), samples_per_step=4, seed=2, curriculum=phases)
    assert [min(phased.read(step, 0, 4).rows) >= 50 for step in (1, 2, 3)] == [True, True, False]


def test_without_weights_nothing_is_told_of_parts(rows: ClassificationRows) -> None:
    assert RowFeed(rows, samples_per_step=4, seed=0).seen(3) == {}


def test_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="the training split has no rows"):
        RowFeed(rows_of(RowTable([])), samples_per_step=4, seed=0)


@given(at=st.integers(0, 103))
def test_examples_are_the_split_however_it_is_cut(rows: ClassificationRows, at: int) -> None:
    examples = RowExamples(rows)
    assert examples.count == 103
    assert sorted([*examples.read(0, at).rows, *examples.read(at, 103).rows]) == list(range(103))


def test_at_most_so_many_examples_are_the_first_rows_whole() -> None:
    class Cut:
        table = None
        part = LOSS
        pieces = cut_rows(np.full(4, 9), np.full(4, 9), {1: [(0, 5, 5), (5, 9, 4)]}, one_target=True)

        def collate(self, numbers: np.ndarray) -> list[int]:
            return sorted(numbers.tolist())

    cut = Cut()
    found = [RowExamples(cut, most=most) for most in (1, 2, 3, 4, 9)]  # type: ignore[arg-type]
    assert [examples.count for examples in found] == [1, 1, 3, 4, 5]
    assert found[2].read(0, 3) == [0, 1, 2]


def test_pieces_of_a_cut_row_stand_between_whole_ones() -> None:
    pieces = cut_rows(np.array([3, 9, 4]), np.array([5, 11, 6]), {1: [(0, 5, 7), (5, 9, 6)]}, one_target=False)
    assert pieces.rows.tolist() == [0, 1, 1, 2]
    assert pieces.firsts.tolist() == [0, 0, 5, 0]
    assert pieces.ends.tolist() == [3, 5, 9, 4]
    assert pieces.lengths.tolist() == [5, 7, 6, 6]
    assert pieces.targets.tolist() == [3, 5, 4, 4]


def test_a_frame_stands_around_one_text_and_two() -> None:
    first, second = np.array([10, 11, 12], np.uint16), np.array([20, 21], np.uint16)
    tensors = framed([(first, None), (first, second)], FRAME, context=32)
    assert tensors[IDS].tolist() == [[2, 10, 11, 12, 3, 0, 0, 0], [2, 10, 11, 12, 3, 20, 21, 3]]
    assert tensors["token_type_ids"].tolist() == [[0] * 8, [0, 0, 0, 0, 0, 1, 1, 1]]
    assert tensors[MASK].tolist() == [[True] * 5 + [False] * 3, [True] * 8]


@pytest.mark.parametrize(("longest", "context", "wanted"), [(1, 64, 8), (8, 64, 8), (9, 64, 16), (61, 62, 62)])
def test_lengths_are_rounded_up_but_not_beyond_the_context(longest: int, context: int, wanted: int) -> None:
    assert padded_length(longest, context) == wanted
