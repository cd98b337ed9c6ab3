"""Length buckets: every row once an epoch, little padding, the same order for all."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.load.buckets import LengthBuckets, padding

DATA = os.environ.get("SLIPWAY_TEST_DATA")


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=200),
    batch_rows=st.integers(1, 30),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 5),
)
def test_an_epoch_has_every_row_once(lengths: list[int], batch_rows: int, seed: int, epoch: int) -> None:
    buckets = LengthBuckets(lengths, batch_rows=batch_rows, seed=seed)
    batches = [buckets.batch(epoch * buckets.batches + i) for i in range(buckets.batches)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    sizes = sorted(len(batch) for batch in batches)
    assert sizes[1:] == [batch_rows] * (len(batches) - 1)
    assert sizes[0] == len(lengths) - batch_rows * (len(batches) - 1)


def test_epochs_and_seeds_differ_in_batches_and_in_their_order() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 1000)
    first, other = (LengthBuckets(lengths, batch_rows=16, seed=seed) for seed in (1, 2))
    epochs = [
        [tuple(sorted(buckets.batch(e * 63 + i).tolist())) for i in range(63)]
        for buckets, e in ((first, 0), (first, 1), (other, 0))
    ]
    for a, b in ((0, 1), (0, 2)):
        assert epochs[a] != epochs[b]
        assert len({*epochs[a]} & {*epochs[b]}) < 10
    again = LengthBuckets(lengths, batch_rows=16, seed=1)
    assert again.batch(100).tolist() == first.batch(100).tolist()


def test_batches_come_in_no_order_of_length() -> None:
    found = []
    for seed in range(20):
        buckets = LengthBuckets(np.arange(1000) + 1, batch_rows=10, seed=seed)
        means = [buckets.batch(i).mean() for i in range(100)]
        found.append(np.corrcoef(np.arange(100), means)[0, 1])
    assert np.abs(found).mean() < 0.15  # 0.08 for orders at random


def test_rows_of_one_length_are_shuffled_as_a_whole() -> None:
    buckets = LengthBuckets([7] * 64, batch_rows=8, seed=0)
    assert buckets.padding(0) == 0.0
    assert np.ptp(buckets.batch(0)) > 32


@pytest.mark.skipif(not DATA, reason="SLIPWAY_TEST_DATA is not set")
@pytest.mark.parametrize("batch_rows", [8, 16, 32, 64])
def test_padding_is_small_on_real_sentences(batch_rows: int) -> None:
    text = gzip.decompress((Path(DATA or "") / "sst2" / "train.tsv.gz").read_bytes()).decode()
    lengths = np.array([len(line.split("\t")[0].split()) + 2 for line in text.splitlines()])
    buckets = LengthBuckets(lengths, batch_rows=batch_rows, seed=3)
    shares = [buckets.padding(epoch) for epoch in range(3)]
    assert max(shares) < 0.05
    at_random = np.array_split(np.random.default_rng(0).permutation(len(lengths)), len(lengths) // batch_rows)
    assert padding(lengths, at_random) > 0.25
