"""The loader: samples are the flat stream whatever the shards, and each rank reads its part of one global order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.load.loader import Samples, TokenStream, TrainLoader
from orchestrator.data.load.order import deal, micro_batches
from orchestrator.data.shards import write_shard
from orchestrator.errors import JobError


def stream_of(folder: Path, sizes: list[int]) -> tuple[TokenStream, np.ndarray]:
    """A stream of shards of so many tokens, and the same tokens as one array."""
    flat = np.random.default_rng(sum(sizes)).integers(0, 60_000, sum(sizes), dtype=np.uint16)
    paths = []
    for i, part in enumerate(np.split(flat, np.cumsum(sizes)[:-1])):
        paths.append(folder / f"train-{i:05d}.arrow")
        write_shard(paths[-1], [part])
    return TokenStream(paths), flat


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), context=st.integers(1, 50))
def test_samples_are_the_flat_stream_over_borders_of_shards(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], context: int
) -> None:
    stream, flat = stream_of(tmp_path_factory.getbasetemp(), sizes)
    samples = Samples(stream, context)
    assert len(stream) == len(flat)
    assert samples.count == (len(flat) - 1) // context
    ids = samples.read(np.arange(samples.count))
    for i, row in enumerate(ids):
        assert row.tolist() == flat[i * context : i * context + context + 1].tolist()
    # Every token but what is left at the end is a target once: none is lost to padding, none counts twice.
    assert ids[:, 1:].flatten().tolist() == flat[1 : 1 + samples.count * context].tolist()
    assert len(flat) - 1 - samples.count * context < context


def test_samples_come_in_the_order_asked_for(tmp_path: Path) -> None:
    samples = Samples(stream_of(tmp_path, [30, 5, 30])[0], 8)
    assert samples.read(np.array([5, 0, 5])).tolist() == [samples.read(np.array([i]))[0].tolist() for i in (5, 0, 5)]


@pytest.mark.parametrize(
    ("tokens", "context", "expected"), [(5, 8, 5), (8, 8, 8), (2, 8, 2), (9, 8, None), (1, 8, None)]
)
def test_a_short_split_is_one_short_sample(tmp_path: Path, tokens: int, context: int, expected: int | None) -> None:
    stream, flat = stream_of(tmp_path, [tokens])
    short = Samples(stream, context).short()
    assert (None if short is None else short.tolist()) == (None if expected is None else [flat.tolist()])


def test_a_split_without_shards_has_no_sample() -> None:
    nothing = Samples(TokenStream([]), 8)
    assert (nothing.count, nothing.short()) == (0, None)


@pytest.mark.parametrize("tokens", [1, 8])
def test_a_context_longer_than_the_data_is_refused(tmp_path: Path, tokens: int) -> None:
    stream, _ = stream_of(tmp_path, [tokens])
    said = f"model.context is 8, but the training split has {tokens} tokens: not one sample"
    with pytest.raises(JobError, match=said) as caught:
        TrainLoader(stream, context=8, samples_per_step=2, seed=0)
    assert caught.value.exit_code == 2
    assert f"at most {max(1, tokens - 1)}" in str(caught.value.fix)


def loader(folder: Path, *, samples_per_step: int = 10, seed: int = 3) -> TrainLoader:
    return TrainLoader(stream_of(folder, [100, 1, 250, 49])[0], context=8, samples_per_step=samples_per_step, seed=seed)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_the_ranks_together_read_what_one_worker_reads(tmp_path: Path, num_ranks: int, accumulation: int) -> None:
    train = loader(tmp_path)
    for step in range(1, 12):  # over two borders of epochs
        parts = [
            train.read(step, first, last)
            for rank in range(num_ranks)
            for first, last in micro_batches(*deal(10, rank, num_ranks), accumulation)
        ]
        assert np.concatenate(parts).tolist() == train.read(step, 0, 10).tolist()


def test_an_epoch_reads_every_sample_once(tmp_path: Path) -> None:
    train = loader(tmp_path, samples_per_step=7)
    assert train.num_samples == 49
    epochs = [[tuple(row) for step in range(e * 7 + 1, e * 7 + 8) for row in train.read(step, 0, 7)] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert len(set(epochs[0])) == 49
    assert epochs[0] != epochs[1]


def test_a_step_is_the_same_in_another_process_and_another_with_another_seed(tmp_path: Path) -> None:
    first, again, other = loader(tmp_path), loader(tmp_path), loader(tmp_path, seed=4)
    assert first.read(40, 0, 10).tolist() == again.read(40, 0, 10).tolist()
    assert first.read(40, 0, 10).tolist() != other.read(40, 0, 10).tolist()


def test_nothing_is_read_for_an_empty_share(tmp_path: Path) -> None:
    assert loader(tmp_path).read(1, 4, 4).shape == (0, 9)
