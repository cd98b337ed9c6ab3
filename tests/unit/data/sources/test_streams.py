"""Bytes, lines and pieces: whatever the range they are read in, the same ones, each once, in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import itertools
import zlib
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.sources import streams
from orchestrator.data.sources.file import SourceFile
from orchestrator.data.sources.streams import SourceStream, lines, pieces, require_unchanged
from orchestrator.data.values import RowError
from orchestrator.errors import DataError


def source_file(path: Path) -> SourceFile:
    status = path.stat()
    return SourceFile(0, path.name, str(path), status.st_size, status.st_mtime_ns)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("streams") / "file"


def read_lines(path: Path, cuts: list[int], limit: int = 1 << 20) -> list[bytes | None]:
    found = []
    for start, end in itertools.pairwise([0, *cuts, max(1, path.stat().st_size)]):
        with SourceStream(source_file(path), start=max(0, start - 1)) as stream:
            found += [line for _, line in lines(stream, start=start, end=end, limit_bytes=limit)]
    return found


TEXT = st.lists(st.binary(max_size=9), max_size=12).map(b"\n".join)


@given(raw=TEXT, cuts=st.lists(st.integers(1, 60), max_size=4))
def test_lines_are_the_same_however_the_file_is_cut(raw: bytes, cuts: list[int], scratch: Path) -> None:
    scratch.write_bytes(raw)
    inside = sorted({c for c in cuts if c < len(raw)})
    expected = raw.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert read_lines(scratch, inside) == expected


@pytest.mark.parametrize("block", [3, 64, 1 << 20])
def test_a_long_line_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(streams.SourceStream.read, "__defaults__", (block,))
    path = tmp_path / "long"
    path.write_bytes(b"first\n" + b"x" * 1000 + b"\nlast\n" + b"y" * 500)
    assert read_lines(path, [], limit=100) == [b"first", None, b"last", None]


@given(
    text=st.text(alphabet="aé🚢\n", max_size=300),
    piece=st.integers(4, 40),
    parts=st.integers(1, 5),
    window=st.sampled_from([1, 8, 64]),
)
def test_pieces_are_the_same_however_the_file_is_cut(
    text: str, piece: int, parts: int, window: int, scratch: Path
) -> None:
    raw = text.encode()
    scratch.write_bytes(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "_LINE_END_WINDOW_BYTES", window)
        whole = read_pieces(scratch, [(0, None)], piece)
        step = piece * parts
        ranges = [(start, min(start + step, len(raw))) for start in range(0, max(1, len(raw)), step)]
        assert read_pieces(scratch, ranges, piece) == whole
    assert b"".join(raw for _, raw in whole) == raw
    for _, one in whole:
        one.decode()  # never cut inside a character
        assert len(one) <= 2 * piece + window + 4


def read_pieces(path: Path, ranges: list[tuple[int, int | None]], piece: int) -> list[tuple[int, bytes]]:
    found = []
    for start, end in ranges:
        with SourceStream(source_file(path), start=start) as stream:
            found += [p for p in pieces(stream, start=start, end=end, piece_bytes=piece) if p[1]]
    return found


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".zst"])
def test_packed_files_are_unpacked_as_they_are_read(tmp_path: Path, ending: str) -> None:
    raw = b"".join(b"line %d\n" % i for i in range(50_000))
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": lambda b: pa.compress(b, "zstd", asbytes=True)}[ending]
    path = tmp_path / f"a{ending}"
    path.write_bytes(pack(raw))
    with SourceStream(source_file(path)) as stream:
        assert b"".join(iter(stream.read, b"")) == raw


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (gzip.compress(bytes(range(256)) * 400, mtime=0)[:-40], "broken gzip data: "),
        (b"this is no gzip", "broken gzip data: "),
        (gzip.compress(b"abc" * 1000, mtime=0)[:-8] + b"\0" * 8, "broken gzip data: "),
    ],
    ids=["cut", "no gzip", "wrong sum"],
)
def test_broken_packing_is_said(tmp_path: Path, raw: bytes, reason: str) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(raw)
    with pytest.raises(RowError, match=reason), SourceStream(source_file(path)) as stream:
        list(iter(stream.read, b""))


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    with path.open("wb") as file:
        for _ in range(512):
            file.write(packer.compress(bytes(1 << 20)))
        file.write(packer.flush())
    read: list[int] = []
    with pytest.raises(RowError, match="unpacks to over 200 times its"), SourceStream(source_file(path)) as stream:
        read.extend(map(len, iter(stream.read, b"")))
    assert sum(read) <= 128 << 20


def test_a_file_that_is_gone_or_changed_stops(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    listed = source_file(path)
    require_unchanged(listed)
    path.write_text("after it")
    with pytest.raises(DataError, match=r"a.txt changed while it was read: it had 6 bytes and has 8"):
        require_unchanged(listed)
    path.unlink()
    with pytest.raises(DataError, match=r"a.txt was listed and is gone"):
        require_unchanged(listed)
    with pytest.raises(DataError, match=r"a.txt was listed and is gone"):
        SourceStream(listed)


def test_a_folder_in_the_place_of_a_file_is_not_readable(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="not readable: Is a directory"):
        SourceStream(source_file(tmp_path))
