"""Row shards: what was written comes back without a copy, and what is no shard is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.labelled.shards import open_rows, write_rows
from orchestrator.errors import DataError

COLUMNS = {
    "ids": [np.array([1, 2], np.uint16), np.array([], np.uint16), np.array([65535], np.uint16)],
    "label": np.array([3, 4, 5], np.int32),
    "pixels": np.arange(6, dtype=np.float32).reshape(3, 2),
    "words": [["a", "漢"], [], [""]],
    "name": ["x", "", "🚢"],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    assert write_rows(tmp_path / "rows.arrow", COLUMNS, {"kind": "chat"}) == 3
    return tmp_path / "rows.arrow"


def test_rows_come_back(path: Path) -> None:
    shard = open_rows(path)
    assert (len(shard), shard.columns, shard.metadata) == (3, list(COLUMNS), {"kind": "chat"})
    for name, values in COLUMNS.items():
        for i, wanted in enumerate(values):
            found = shard.row(name, i)
            if isinstance(wanted, np.ndarray):
                assert (found.dtype, found.tolist()) == (wanted.dtype, wanted.tolist())
            else:
                assert found == wanted
    assert isinstance(shard.row("label", 0), int)
    with pytest.raises(IndexError, match="row 3 of 3"):
        shard.row("ids", 3)


def test_values_and_offsets_are_views(path: Path) -> None:
    shard = open_rows(path)
    assert shard.values("ids").tolist() == [1, 2, 65535]
    assert shard.offsets("ids").tolist() == [0, 2, 2, 3]
    assert shard.lengths("ids").tolist() == [2, 0, 1]
    assert shard.lengths("label").tolist() == [1, 1, 1]
    for name in ("ids", "label", "pixels"):
        assert not shard.values(name).flags.owndata
        assert not shard.values(name).flags.writeable
    with pytest.raises(DataError, match="holds text, not numbers"):
        shard.values("words")
    with pytest.raises(DataError, match=r"rows\.arrow has no column tags; it has ids, label"):
        shard.row("tags", 0)


@given(st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=9), min_size=1, max_size=9))
def test_lists_of_any_lengths(tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]]) -> None:
    path = tmp_path_factory.mktemp("rows") / "x.arrow"
    write_rows(path, {"ids": [np.array(row, np.uint32) for row in rows]}, {})
    shard = open_rows(path)
    assert [shard.row("ids", i).tolist() for i in range(len(shard))] == rows


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_file_cut_short_is_named(path: Path, share: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"rows\.arrow is not a readable shard of rows"):
        open_rows(path)


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    batch = pa.record_batch({"ids": pa.array([1])})
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(DataError, match=r"x\.arrow is not .*: an Arrow file of something else"):
        open_rows(tmp_path / "x.arrow")
    with pytest.raises(DataError, match=r"none\.arrow is not a readable shard"):
        open_rows(tmp_path / "none.arrow")
