"""Rows of every format, and what each says of a row that is none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.data.sources.listing import list_sources
from orchestrator.data.sources.rows import Part, read_rows
from orchestrator.data.units import cut_into_units, first_rows
from orchestrator.data.values import Rejected, Row
from orchestrator.job_data import Data, Source


def read(raw: bytes, folder: Path, name: str, *, limit: int = 1 << 20, **source: Any) -> list[Row | Rejected]:
    (folder / name).write_bytes(raw)
    return read_path(folder / name, limit=limit, **source)


def read_path(path: Path, *, limit: int = 1 << 20, columns: list[str] | None = None, **source: Any) -> list[Any]:
    made = Source(path=str(path), **source)
    found: list[Any] = []
    for file in list_sources(Data(sources=[made]), {}).files:
        found += read_rows(Part(file), made, limit_bytes=limit, columns=columns)
    return found


def values(found: list[Any]) -> list[Any]:
    return [list(f.fields.values()) if isinstance(f, Row) else str(f) for f in found]


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


class TestSeparated:
    def test_csv_has_quotes_and_line_ends_in_them(self, tmp_path: Path) -> None:
        raw = b'\xef\xbb\xbfid,text\r\n1,"a, ""b""\nc"\r\n2,d\r\n'
        assert values(read(raw, tmp_path, "f.csv")) == [["1", 'a, "b"\nc'], ["2", "d"]]

    def test_a_quotation_mark_in_tsv_is_a_letter(self, tmp_path: Path) -> None:
        raw = b'text\tlabel\n"half a quote\t1\nb\t0\n'
        assert values(read(raw, tmp_path, "f.tsv")) == [['"half a quote', "1"], ["b", "0"]]

    def test_a_file_without_header_is_told_its_columns(self, tmp_path: Path) -> None:
        found = read(b"a\t1\nb\t0\n", tmp_path, "f.tsv", header=["text", "label"])
        assert [f.fields for f in found if isinstance(f, Row)] == [
            {"text": "a", "label": "1"},
            {"text": "b", "label": "0"},
        ]

    def test_rows_of_another_shape_are_rejected_by_line(self, tmp_path: Path) -> None:
        raw = b"text,label\na,1\nb\nc,2,3\n\xff,4\nd,5\n"
        found = values(read(raw, tmp_path, "f.csv"))
        assert found == [
            ["a", "1"],
            "f.csv:3 (1 columns where there are 2: text, label)",
            "f.csv:4 (3 columns where there are 2: text, label)",
            "f.csv:5 (not UTF-8 at byte 0)",
            ["d", "5"],
        ]

    def test_a_quote_that_never_ends_does_not_take_the_memory(self, tmp_path: Path) -> None:
        raw = b'text\n"open\n' + b"x" * 50 + b"\n" * 5000 + b"end\n"
        found = values(read(raw, tmp_path, "f.csv", limit=1024))
        assert any("field larger than field limit" in f for f in found if isinstance(f, str))


class TestTables:
    TABLE = pa.table({"text": [f"row {i}" for i in range(1000)], "n": list(range(1000))})

    def write(self, path: Path) -> Path:
        if path.suffix == ".parquet":
            pq.write_table(self.TABLE, path, row_group_size=100)
        else:
            make = pa.ipc.new_stream if "stream" in path.name else pa.ipc.new_file
            with pa.OSFile(str(path), "wb") as sink, make(sink, self.TABLE.schema) as writer:
                writer.write_table(self.TABLE, max_chunksize=100)
        return path

    @pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow", "a.feather"])
    def test_every_row_is_read(self, tmp_path: Path, name: str) -> None:
        found = read_path(self.write(tmp_path / name), columns=["text"])
        assert [(f.number, f.fields) for f in found] == [(i + 1, {"text": f"row {i}"}) for i in range(1000)]

    @pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow"])
    def test_a_truncated_file_is_named(self, tmp_path: Path, name: str) -> None:
        path = self.write(tmp_path / name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        found = read_path(path, columns=["text"])
        assert str(found[-1]).startswith(f"{name}")
        assert "not readable as" in str(found[-1])

    @pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
    @pytest.mark.parametrize("raw", [b"", b"something else", b"PAR1" * 20, b"ARROW1\0\0" + b"\xff" * 100])
    def test_a_foreign_file_is_named(self, tmp_path: Path, name: str, raw: bytes) -> None:
        (found,) = read(raw, tmp_path, name)
        assert str(found).startswith(f"{name} (")

    def test_a_field_that_is_not_there_is_named_with_those_that_are(self, tmp_path: Path) -> None:
        (found,) = read_path(self.write(tmp_path / "a.parquet"), columns=["body"])
        assert str(found) == "a.parquet (no field 'body'; there are text, n)"

    def test_zero_rows_are_said(self, tmp_path: Path) -> None:
        pq.write_table(self.TABLE.slice(0, 0), tmp_path / "a.parquet")
        assert values(read_path(tmp_path / "a.parquet")) == ["a.parquet (no rows)"]

    def test_names_of_labels_come_with_a_saved_dataset(self, tmp_path: Path) -> None:
        features = {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}, "text": {"_type": "Value"}}
        schema = pa.schema({"text": pa.string(), "label": pa.int64()}).with_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
        folder = tmp_path / "saved" / "train"
        folder.mkdir(parents=True)
        with (
            pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, schema) as writer,
        ):
            writer.write_table(pa.table({"text": ["a", "b"], "label": [1, 0]}, schema=schema))
        found = read_path(tmp_path / "saved", format="huggingface")
        assert values(found) == [["a", "good"], ["b", "bad"]]


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
