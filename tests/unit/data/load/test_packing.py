"""Packing: every row once, no bin too full, little padding, and nothing attends across a border."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.load.packing import document_mask, layout, pack, restarting_positions, segment_ids


@given(lengths=st.lists(st.integers(1, 60), max_size=150), capacity=st.integers(1, 50))
def test_every_row_lies_in_one_bin_and_none_is_too_full(lengths: list[int], capacity: int) -> None:
    packing = pack(lengths, capacity)
    assert sorted(packing.rows.tolist()) == list(range(len(lengths)))
    clipped = np.minimum(lengths, capacity)
    for b in range(packing.bins):
        rows = packing.rows[packing.starts[b] : packing.starts[b + 1]]
        assert 0 < clipped[rows].sum() <= capacity
    assert packing.truncated == sum(length > capacity for length in lengths)
    least = -(-int(clipped.sum()) // capacity)
    assert packing.bins >= least


def best_fit_decreasing(lengths: list[int], capacity: int) -> int:
    """The plain algorithm: how many bins."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [(room, i) for i, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting)[1]] -= length
        else:
            rooms.append(capacity - length)
    return len(rooms)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=80), capacity=st.integers(40, 90))
def test_it_is_best_fit_decreasing(lengths: list[int], capacity: int) -> None:
    assert pack(lengths, capacity).bins == best_fit_decreasing(lengths, capacity)


@pytest.mark.parametrize("mean", [80, 250, 500])
def test_padding_is_small_on_lengths_like_those_of_chats(mean: int) -> None:
    lengths = np.random.default_rng(mean).lognormal(np.log(mean), 0.9, 5000).astype(np.int64) + 2
    packing = pack(lengths, 1024)
    assert packing.padding < 0.01
    used = sum(packing.lengths[packing.rows])
    assert packing.padding == pytest.approx(1 - used / (packing.bins * 1024))


def test_the_same_rows_give_the_same_bins() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 500)
    assert pack(lengths, 128).rows.tolist() == pack(lengths.tolist(), 128).rows.tolist()


def test_nothing_packs_into_nothing() -> None:
    packing = pack([], 8)
    assert (packing.bins, packing.padding, packing.rows.tolist()) == (0, 0.0, [])


def test_a_row_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 token"):
        pack([3, 0], 8)


def test_a_layout_says_where_each_token_comes_from() -> None:
    packing = pack([3, 9, 2, 1], 6)
    assert packing.truncated == 1
    shown = layout(packing, np.arange(packing.bins))
    assert shown.rows_BT.tolist() == [[1] * 6, [0, 0, 0, 2, 2, 3]]
    assert shown.positions_BT.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 1, 0]]
    assert shown.segments_BT.tolist() == [[1] * 6, [1, 1, 1, 2, 2, 3]]
    padded = layout(pack([2, 1], 5), np.array([0]))
    assert padded.rows_BT.tolist() == [[0, 0, 1, -1, -1]]
    assert padded.segments_BT.tolist() == [[1, 1, 2, 0, 0]]
    assert padded.positions_BT.tolist() == [[0, 1, 0, 0, 0]]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    length=st.integers(1, 15),
    offsets=st.lists(st.integers(0, 200), max_size=5),
)
def test_segments_of_a_stream_are_its_documents(sizes: list[int], length: int, offsets: list[int]) -> None:
    document = np.repeat(np.arange(len(sizes)), sizes)
    starts = np.array([o % max(1, len(document) - length) for o in offsets if length <= len(document)], dtype=np.int64)
    segments = segment_ids(np.cumsum(sizes), starts, length)
    positions = restarting_positions(segments)
    for start, row, places in zip(starts.tolist(), segments, positions, strict=True):
        own = document[start : start + length]
        assert row.tolist() == (own - own[0]).tolist()
        assert places.tolist() == [i - own.tolist().index(d) for i, d in enumerate(own.tolist())]


def test_attention_stays_in_its_document() -> None:
    mask = document_mask(np.array([[0, 0, 1, 1]]))[0]
    assert mask.astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
