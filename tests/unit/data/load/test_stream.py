"""The stream: samples are the flat stream whatever the shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.load.stream import Samples, TokenStream
from orchestrator.data.shards import write_shard


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


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_ids_of_any_width_come_out_alike(tmp_path: Path, dtype: type) -> None:
    for i in range(2):
        write_shard(tmp_path / f"{i}.arrow", [np.arange(100, 140, dtype=dtype)])
    stream = TokenStream(sorted(tmp_path.iterdir()))
    rows = stream.rows(np.array([0, 35]), 10)
    assert rows.dtype == np.int64
    assert rows.tolist() == [[*range(100, 110)], [135, 136, 137, 138, 139, 100, 101, 102, 103, 104]]
    assert stream.bytes_read == 20 * np.dtype(dtype).itemsize
