"""Masking: the shares, whole words, never a special token, and the same draw at any world size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.load.masking import IGNORED, Masking
from orchestrator.data.load.order import deal

VOCAB, SPECIAL, MASK = 1000, 5, 4
special = np.arange(VOCAB) < SPECIAL
continues = np.arange(VOCAB) % 3 == 0
PLAIN = Masking(MASK, special, seed=1)
WHOLE = Masking(MASK, special, seed=1, continues_word_V=continues & ~special)


def sample(rows: int, length: int, seed: int = 0) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(SPECIAL, VOCAB, (rows, length))
    ids[:, 0], ids[:, -1] = 1, 2
    return ids


def test_fifteen_in_a_hundred_are_predicted_and_eighty_of_these_masked() -> None:
    ids = sample(400, 130)
    inputs, labels = PLAIN.mask(ids, np.arange(400), epochs=0)
    chosen = labels != IGNORED
    assert (chosen.sum(axis=1) == round(128 * 0.15)).all()
    assert (labels[chosen] == ids[chosen]).all()
    assert (inputs[~chosen] == ids[~chosen]).all()
    masked, kept = (inputs == MASK)[chosen], (inputs == ids)[chosen]
    assert masked.mean() == pytest.approx(0.8, abs=0.02)
    assert kept.mean() == pytest.approx(0.1, abs=0.015)
    replaced = inputs[chosen][~masked & ~kept]
    assert replaced.min() >= SPECIAL
    assert len(np.unique(replaced)) > 400
    # No position is favoured: each of 128 is chosen 60 times of 400 in the mean.
    assert chosen[:, 1:-1].sum(axis=0).min() > 30
    assert chosen[:, 1:-1].sum(axis=0).max() < 95


@given(
    ids=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=12, max_size=12), min_size=1, max_size=8),
    whole=st.booleans(),
    epoch=st.integers(0, 2**40),
)
def test_special_tokens_stay_and_words_are_masked_whole(ids: list[list[int]], whole: bool, epoch: int) -> None:
    rows = np.array(ids)
    inputs, labels = (WHOLE if whole else PLAIN).mask(rows, np.arange(len(rows)), epochs=epoch)
    assert (inputs[special[rows]] == rows[special[rows]]).all()
    assert (labels[special[rows]] == IGNORED).all()
    chosen = labels != IGNORED
    ordinary = (~special[rows]).sum(axis=1)
    assert (chosen.sum(axis=1) <= np.maximum(1, np.rint(ordinary * 0.15))).all()
    if not whole:
        assert (chosen.sum(axis=1) == np.where(ordinary, np.maximum(1, np.rint(ordinary * 0.15)), 0)).all()
    else:
        for row, flags in zip(rows, chosen, strict=True):
            for t in range(1, len(row)):
                if continues[row[t]] and not special[row[t]] and not special[row[t - 1]]:
                    assert flags[t] == flags[t - 1]


def test_whole_words_reach_their_share_where_words_are_short() -> None:
    labels = WHOLE.mask(sample(200, 130), np.arange(200), epochs=0)[1]
    assert (labels != IGNORED).mean() == pytest.approx(0.15 * 128 / 130, abs=0.005)


@pytest.mark.parametrize("masking", [PLAIN, WHOLE])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
def test_the_draw_is_the_same_at_any_world_size_and_differs_by_epoch(masking: Masking, num_ranks: int) -> None:
    ids, samples = sample(13, 40), np.arange(100, 113)
    alone = masking.mask(ids, samples, epochs=3)
    shares = [slice(*deal(13, rank, num_ranks)) for rank in range(num_ranks)]
    parts = [masking.mask(ids[s], samples[s], epochs=np.full(len(samples[s]), 3)) for s in shares]
    for which in (0, 1):
        assert np.array_equal(np.concatenate([part[which] for part in parts]), alone[which])
    for other in (masking.mask(ids, samples, epochs=4), masking.mask(ids, samples + 50, epochs=3)):
        same = (other[1] != IGNORED) & (alone[1] != IGNORED)
        assert same.mean() < 0.08
    assert not np.array_equal(
        Masking(MASK, special, seed=2).mask(ids, samples, epochs=3)[1], PLAIN.mask(ids, samples, epochs=3)[1]
    )


def test_a_row_of_special_tokens_alone_has_no_label() -> None:
    inputs, labels = PLAIN.mask(np.array([[1, 2, 3]]), np.array([0]), epochs=0)
    assert inputs.tolist() == [[1, 2, 3]]
    assert (labels == IGNORED).all()
