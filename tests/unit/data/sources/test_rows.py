"""Rows of every format, and what each says of a row that is none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from data_fixtures import read_raw as read
from data_fixtures import row_values as values

from orchestrator.data.sources.listing import list_sources
from orchestrator.data.sources.rows import read_rows
from orchestrator.data.units import cut_into_units, first_rows
from orchestrator.data.values import Rejected, Row
from orchestrator.job_data import Data, Source


class TestText:
    @pytest.mark.parametrize(
        ("raw", "found"),
        [
            (b"one\r\ntwo\n", ["one\r\ntwo\n"]),
            ("naïve 🚢\x00".encode(), ["naïve 🚢\x00"]),
            (b"\xef\xbb\xbfwith a mark", ["with a mark"]),
            (b"", "f.txt (empty)"),
            (b" \n\t\n", "f.txt (empty)"),
            (b"\xef\xbb\xbf", "f.txt (empty)"),
            (b"good\xff\xfebad", "f.txt (not UTF-8 at byte 4)"),
            ("utf-16".encode("utf-16"), "f.txt (not UTF-8 at byte 0)"),
        ],
    )
    def test_a_file_is_one_document(self, tmp_path: Path, raw: bytes, found: Any) -> None:
        assert values(read(raw, tmp_path, "f.txt")) == [found]

    def test_a_long_text_is_several(self, tmp_path: Path) -> None:
        raw = b"".join(b"line %04d\n" % i for i in range(500))
        found = read(raw, tmp_path, "f.txt", limit=1024)
        assert "".join(row.fields["text"] for row in found if isinstance(row, Row)).encode() == raw
        assert [row.number for row in found if isinstance(row, Row)] == [1, 2, 3, 4, 5]

    def test_documents_begin_where_a_line_says_so(self, tmp_path: Path) -> None:
        raw = b"before\n = A = \nabout a\n = = not = = \n = B = \nabout b"
        found = read(raw, tmp_path, "f.txt", document_start=r"^ = [^=]+ = $")
        assert values(found) == [["before\n"], [" = A = \nabout a\n = = not = = \n"], [" = B = \nabout b\n"]]
        assert [row.number for row in found if isinstance(row, Row)] == [1, 2, 3]

    def test_a_bad_line_does_not_take_its_document_along(self, tmp_path: Path) -> None:
        found = read(b"#1\ngood\n\xff\nmore\n", tmp_path, "f.txt", document_start="^#")
        assert values(found) == ["f.txt:3 (not UTF-8 at byte 0)", ["#1\ngood\nmore\n"]]


class TestJsonLines:
    def test_each_line_is_a_row_or_rejected_by_its_number(self, tmp_path: Path) -> None:
        lines = [
            json.dumps({"text": "one\nline, naïve"}),
            "",
            '{"text": "two\\u2028lines"}',
            "not json",
            "[1]",
            '"text"',
            "[" * 100_000,
        ]
        raw = "\r\n".join(lines).encode() + b'\n\xff\n{"text": "last"}'
        assert values(read(raw, tmp_path, "f.jsonl")) == [
            ["one\nline, naïve"],
            ["two\u2028lines"],
            "f.jsonl:4 (not JSON)",
            "f.jsonl:5 (not a JSON object)",
            "f.jsonl:6 (not a JSON object)",
            "f.jsonl:7 (not JSON)",
            "f.jsonl:8 (not UTF-8 at byte 0)",
            ["last"],
        ]

    def test_a_long_line_is_rejected_and_the_next_is_read(self, tmp_path: Path) -> None:
        raw = b'{"text": "%s"}\n{"text": "b"}\n' % (b"a" * 5000)
        assert values(read(raw, tmp_path, "f.jsonl", limit=1024)) == ["f.jsonl:1 (a line over 1024 bytes)", ["b"]]

    @pytest.mark.parametrize("raw", [b"", b"\n \n"])
    def test_a_file_without_rows_is_rejected(self, tmp_path: Path, raw: bytes) -> None:
        assert values(read(raw, tmp_path, "f.jsonl")) == ["f.jsonl (no rows)"]

    def test_a_packed_file_that_breaks_off_gives_what_stands_before(self, tmp_path: Path) -> None:
        whole = gzip.compress(b"".join(b'{"text": "%d"}\n' % (i**9) for i in range(200_000)))
        found = read(whole[: len(whole) // 2], tmp_path, "f.jsonl.gz")
        assert len(found) > 1000
        assert str(found[-1]).startswith("f.jsonl.gz (broken gzip data: ")
        assert not any(isinstance(f, Rejected) for f in found[:-1])


class TestUnits:
    def test_a_large_file_is_cut_and_its_rows_keep_their_numbers(self, tmp_path: Path) -> None:
        path = tmp_path / "big.jsonl"
        path.write_text("".join(json.dumps({"text": f"row {i} " + "x" * 2000}) + "\n" for i in range(3000)))
        data = Data(sources=[Source(path=str(path))])
        units = cut_into_units(list_sources(data, {}).files, data)
        assert len(units) > 3
        rows = [[list(read_rows(p, data.sources[0], limit_bytes=1 << 20)) for p in unit] for unit in units]
        bases = first_rows(units, [[len(r) for r in unit] for unit in rows])
        found = [
            (row.number + base, row.fields["text"].split(" x")[0])
            for unit, own in zip(rows, bases, strict=True)
            for part, base in zip(unit, own, strict=True)
            for row in part
            if isinstance(row, Row)
        ]
        assert found == [(i + 1, f"row {i}") for i in range(3000)]

    def test_a_unit_is_of_one_source(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            for i in range(3):
                (tmp_path / name / f"{i}.txt").write_text("text")
        data = Data(sources=[Source(path=str(tmp_path / "a")), Source(path=str(tmp_path / "b"))])
        units = cut_into_units(list_sources(data, {}).files, data)
        assert [{p.file.source for p in unit} for unit in units] == [{0}, {1}]
