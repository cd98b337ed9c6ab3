"""Pieces of flattened tensors on disk: any cut of a whole gives the whole back, and what is missing is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.train.engine.pieces import Piece, PieceReader, RankState, write_state

SIZE = 60
WHOLE = torch.arange(SIZE, dtype=torch.float32)


def write(folder: Path, cuts: list[int]) -> None:
    """A rank for each stretch between two cuts."""
    edges = [0, *sorted(cuts), SIZE]
    for rank in range(len(edges) - 1):
        piece = Piece(edges[rank], WHOLE[edges[rank] : edges[rank + 1]])
        write_state(folder, RankState(rank, len(edges) - 1, {"weight/a": piece}, {"step": 3.0}))


@given(
    cuts=st.lists(st.integers(0, SIZE), max_size=6),
    wanted=st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(sorted),
)
def test_any_part_is_read_from_any_cut(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], wanted: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("state")
    write(folder, cuts)
    start, end = wanted
    with PieceReader(folder) as reader:
        assert torch.equal(reader.read("weight/a", start, end), WHOLE[start:end])
        assert (reader.names, reader.size("weight/a"), reader.numbers) == ({"weight/a"}, SIZE, {"step": 3.0})


def test_types_are_kept(tmp_path: Path) -> None:
    counts = torch.tensor([2**40 + 1], dtype=torch.int64)
    write_state(tmp_path, RankState(0, 1, {"buffer/n": Piece(0, counts)}, {}))
    with PieceReader(tmp_path) as reader:
        assert torch.equal(reader.read("buffer/n", 0, 1), counts)


def test_a_file_that_is_gone_is_missed(tmp_path: Path) -> None:
    write(tmp_path, [20, 40])
    (tmp_path / "rank-00001-of-00003.safetensors").unlink()
    with pytest.raises(OSError, match=r"all ranks of one group is needed; there are rank-00000-of-00003.*, rank-00002"):
        PieceReader(tmp_path)


def test_files_of_two_groups_are_refused(tmp_path: Path) -> None:
    write(tmp_path, [])
    write(tmp_path, [20])
    with pytest.raises(OSError, match="all ranks of one group"):
        PieceReader(tmp_path)


def test_numbers_that_nobody_wrote_are_named(tmp_path: Path) -> None:
    for rank, start in enumerate((0, 30)):
        piece = Piece(start, WHOLE[start : start + 20])
        write_state(tmp_path, RankState(rank, 2, {"weight/a": piece}, {}))
    with PieceReader(tmp_path) as reader:
        assert torch.equal(reader.read("weight/a", 30, 50), WHOLE[30:50])
        with pytest.raises(OSError, match="numbers 20 to 40 of weight/a are in no file"):
            reader.read("weight/a", 10, 40)


def test_a_garbled_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, [])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(OSError, match=r"rank-00000-of-00001\.safetensors"):
        PieceReader(tmp_path)
