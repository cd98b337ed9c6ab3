"""Shards: what is written comes back, mapped and not copied, in the type it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.shards import open_shard, write_shard
from orchestrator.errors import DataError


@given(
    dtype=st.sampled_from([np.uint8, np.uint16, np.uint32]),
    documents=st.lists(st.lists(st.integers(0, 255), min_size=1, max_size=20), min_size=1, max_size=8),
)
def test_documents_come_back(tmp_path_factory: pytest.TempPathFactory, dtype: Any, documents: list[list[int]]) -> None:
    path = tmp_path_factory.getbasetemp() / "shard.arrow"
    top = np.iinfo(dtype).max
    arrays = [np.array(d, dtype=dtype) + dtype(top - 255) for d in documents]
    assert write_shard(path, arrays) == (sum(map(len, documents)), len(documents))
    shard = open_shard(path)
    assert shard.tokens.dtype == dtype
    assert [part.tolist() for part in np.split(shard.tokens, shard.document_ends)[:-1]] == [a.tolist() for a in arrays]
    assert shard.document_ends[-1] == len(shard.tokens)


def test_reading_copies_nothing(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.arrow", [np.arange(1_000_000, dtype=np.uint16)])
    before = pa.total_allocated_bytes()
    shard = open_shard(tmp_path / "a.arrow")
    assert int(shard.tokens[999_999]) == 999_999 % 65_536
    assert pa.total_allocated_bytes() - before < 100_000
    assert not shard.tokens.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        shard.tokens[0] = 1


def test_a_shard_opens_in_plain_arrow(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.arrow", [np.array([5, 6], dtype=np.uint16), np.array([7], dtype=np.uint16)])
    table = pa.ipc.open_file(tmp_path / "a.arrow").read_all()
    assert table.to_pydict() == {"tokens": [[5, 6, 7]], "document_ends": [[2, 3]]}


@pytest.mark.parametrize("cut", [0, 10, 200, -1])
def test_what_is_no_shard_is_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.arrow"
    write_shard(path, [np.arange(100, dtype=np.uint16)])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"a\.arrow is not a readable shard") as caught:
        open_shard(path)
    assert caught.value.exit_code == 3


def test_another_arrow_file_is_no_shard(tmp_path: Path) -> None:
    batch = pa.record_batch({"x": [1]})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(DataError, match="is not a readable shard"):
        open_shard(tmp_path / "a.arrow")


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.arrow is not a readable shard"):
        open_shard(tmp_path / "none.arrow")
