"""The reader of `.wandb` files, against frames that are written here."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.track.wandb_file import read_records

BLOCK = 32 * 1024
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def framed(records: list[bytes]) -> bytes:
    """As LevelDB's log: in blocks, each record cut where a block ends, behind W&B's header."""
    raw = b":W&B\x3a\xa1\x00"
    for record in records:
        pieces, left = 0, record
        while left or not pieces:
            room = BLOCK - len(raw) % BLOCK
            if room < 7:
                raw += bytes(room)
                room = BLOCK
            piece, left = left[: room - 7], left[room - 7 :]
            kind = {(True, True): FULL, (True, False): FIRST, (False, False): MIDDLE, (False, True): LAST}
            raw += struct.pack("<IHB", 0, len(piece), kind[pieces == 0, not left]) + piece
            pieces += 1
    return raw


lengths = st.lists(st.one_of(st.integers(0, 300), st.integers(BLOCK - 40, 3 * BLOCK)), max_size=12)


@given(lengths)
def test_every_record_is_read_whatever_its_length(tmp_path_factory: pytest.TempPathFactory, lengths: list[int]) -> None:
    records = [bytes([number % 251]) * length for number, length in enumerate(lengths)]
    path = tmp_path_factory.mktemp("frames") / "run.wandb"
    path.write_bytes(framed(records))
    assert list(read_records(path)) == records


@given(lengths.filter(bool), st.floats(0, 1, exclude_max=True))
def test_a_file_that_ends_in_the_middle_gives_what_is_whole(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], share: float
) -> None:
    records = [bytes([number % 251]) * length for number, length in enumerate(lengths)]
    path = tmp_path_factory.mktemp("frames") / "run.wandb"
    raw = framed(records)
    path.write_bytes(raw[: int(share * len(raw))])
    found = list(read_records(path))
    assert found == records[: len(found)]
    assert len(found) < len(records)
