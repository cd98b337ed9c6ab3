"""Next-sentence pairs: half follow, half come from elsewhere, whole sentences, and the same for all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.load.next_sentence import PairIds, SentencePairs
from orchestrator.errors import DataError

Documents = list[list[int]]
documents = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=8), min_size=2, max_size=12)
IDS = PairIds(cls=1, sep=2, pad=0)


def pairs_of(sizes: Documents, *, context: int = 24, seed: int = 3) -> SentencePairs:
    return SentencePairs(
        np.cumsum([sum(document) for document in sizes]),
        np.cumsum([size for document in sizes for size in document]),
        context=context,
        seed=seed,
    )


@given(sizes=documents, context=st.integers(5, 40), seed=st.integers(0, 2**40), epoch=st.integers(0, 9))
def test_both_parts_fit_lie_in_one_document_and_say_whether_they_follow(
    sizes: Documents, context: int, seed: int, epoch: int
) -> None:
    pairs = pairs_of(sizes, context=context, seed=seed)
    document = np.repeat(np.arange(len(sizes)), [sum(d) for d in sizes])
    assert pairs.count == max(1, len(document) // (context - 3))
    for sample in range(pairs.count):
        a, b, is_next = pairs.pair(epoch, sample)
        assert 0 <= a.first < a.last
        assert 0 <= b.first < b.last
        assert (a.last - a.first) + (b.last - b.first) <= context - 3
        assert len({*document[a.first : a.last]}) == len({*document[b.first : b.last]}) == 1
        if is_next:
            assert b.first == a.last
            assert document[a.first] == document[b.first]
        else:
            assert document[a.first] != document[b.first]
        if len(sizes[document[a.first]]) == 1:
            assert not is_next
        assert pairs_of(sizes, context=context, seed=seed).pair(epoch, sample) == (a, b, is_next)


def test_half_of_the_pairs_follow_and_epochs_differ() -> None:
    pairs = pairs_of([[5] * 40] * 30, context=48)
    epochs = [[pairs.pair(epoch, sample) for sample in range(pairs.count)] for epoch in range(8)]
    assert np.mean([[pair.is_next for pair in epoch] for epoch in epochs]) == pytest.approx(0.5, abs=0.04)
    assert sum(a == b for a, b in zip(epochs[0], epochs[1], strict=True)) < pairs.count * 0.15
    cuts = {pair.a.last - pair.a.first for pair in epochs[0]}
    assert cuts == {5, 10, 15, 20, 25, 30, 35, 40}
    elsewhere = {pair.b.first // 200 for epoch in epochs for pair in epoch if not pair.is_next}
    assert elsewhere == set(range(30))


def test_an_epoch_begins_a_sample_all_over_the_text() -> None:
    pairs = pairs_of([[5] * 40] * 10, context=43)
    firsts = [pairs.pair(0, sample).a.first for sample in range(pairs.count)]
    assert all(abs(first - sample * 40) <= 5 for sample, first in enumerate(firsts))


def test_a_batch_is_cls_a_sep_b_sep() -> None:
    sizes = [[3, 4, 2], [5, 1], [2]]
    pairs = pairs_of(sizes, context=16)
    tokens = np.arange(100, 117)
    batch = pairs.batch(lambda first, last: tokens[first:last], IDS, np.arange(pairs.count), epoch=2)
    for i in range(pairs.count):
        a, b, is_next = pairs.pair(2, i)
        row = [1, *tokens[slice(*a)], 2, *tokens[slice(*b)], 2]
        assert batch.ids_BT[i].tolist() == row + [0] * (16 - len(row))
        assert batch.lengths_B[i] == len(row)
        a_part, b_part = a.last - a.first + 2, b.last - b.first + 1
        assert batch.segments_BT[i].tolist() == [0] * a_part + [1] * b_part + [0] * (16 - len(row))
        assert batch.is_next_B[i] == is_next


def test_one_document_makes_no_pairs() -> None:
    with pytest.raises(DataError, match="need two documents, but the split has 1") as caught:
        pairs_of([[3, 4, 5]])
    assert "document_start" in str(caught.value.fix)
