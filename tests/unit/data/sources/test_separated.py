"""CSV and TSV: rows, their numbers, and what a damaged line or an open quotation mark takes along."""

from __future__ import annotations

import csv
import io
import tempfile
import time
from pathlib import Path

import pytest
from data_fixtures import read_raw as read
from data_fixtures import row_values as values
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.sources.file import SourceFile
from orchestrator.data.sources.separated import read_separated
from orchestrator.data.values import Rejected, Row


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

    def test_a_row_has_the_number_of_its_first_line(self, tmp_path: Path) -> None:
        found = read(b'text,label\n"a\nb",1\n\nc,2\n', tmp_path, "f.csv")
        assert [f.number for f in found if isinstance(f, Row)] == [2, 5]

    @given(st.lists(st.lists(st.text("ab\",'\n é", max_size=6), min_size=2, max_size=2), max_size=6))
    def test_what_the_library_writes_is_read_back(self, rows: list[list[str]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([["x", "y"], *rows])
        with tempfile.TemporaryDirectory() as folder:
            found = read(text.getvalue().encode(), Path(folder), "f.csv")
        assert values(found) == (rows or ["f.csv (no rows)"])


class TestHeader:
    def test_blank_lines_before_it_are_left_out(self, tmp_path: Path) -> None:
        found = read(b"\xef\xbb\xbf\n  \r\ntext,label\na,1\n", tmp_path, "f.csv")
        assert values(found) == [["a", "1"]]
        assert found[0].number == 4  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        ("raw", "reason"),
        [
            (b"te\xffxt\na\n", "line 1, the header: not UTF-8 at byte 2"),
            (b"\nte\0xt\na\n", "line 2, the header: a NUL character"),
            (b'"text\na\n', "line 1, the header: a quotation mark that is not closed; rows 1 to 2 are in it"),
            (b"text,id,text\na,b,c\n", "two columns are named 'text'"),
            (b"x" * 2000 + b"\na\n", "line 1, the header: a line over 1024 bytes"),
        ],
    )
    def test_a_bad_one_rejects_the_file(self, tmp_path: Path, raw: bytes, reason: str) -> None:
        (found,) = read(raw, tmp_path, "f.csv", limit=1024)
        assert isinstance(found, Rejected)
        assert found.row is None
        assert found.reason.startswith(reason)

    def test_columns_without_a_name_are_no_reason(self, tmp_path: Path) -> None:
        assert values(read(b"text,,\na,,\n", tmp_path, "f.csv")) == [["a", ""]]


class TestDamage:
    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b"\xff", "line 3: not UTF-8 at byte 0"),
            (b"x\0", "line 3: a NUL character"),
            (b"x" * 2000, "line 3: a line over 1024 bytes"),
        ],
    )
    def test_a_line_in_a_quoted_cell_takes_its_row_only(self, tmp_path: Path, line: bytes, reason: str) -> None:
        raw = b'text,label\n"a\n' + line + b'\nb",1\nc,2\n'
        assert values(read(raw, tmp_path, "f.csv", limit=1024)) == [f"f.csv:2 ({reason})", ["c", "2"]]

    def test_a_damaged_line_still_tells_where_the_cell_ends(self, tmp_path: Path) -> None:
        raw = b'text,label\n"a\n\xff",1\nc,2\n'
        assert values(read(raw, tmp_path, "f.csv")) == ["f.csv:2 (line 3: not UTF-8 at byte 0)", ["c", "2"]]

    def test_lines_that_a_row_of_another_shape_took_in_are_named(self, tmp_path: Path) -> None:
        found = values(read(b'text,label\n"a,1\nb,2\nc",3,4\nd,5\n', tmp_path, "f.csv"))
        assert found == ["f.csv:2 (3 columns where there are 2: text, label; lines 2 to 4 are in it)", ["d", "5"]]

    @pytest.mark.parametrize("name", ["f.csv", "f.tsv"])
    def test_a_carriage_return_in_a_row_rejects_it_alone(self, tmp_path: Path, name: str) -> None:
        bad, good = values(read(b"text\na\rb\nc\n", tmp_path, name))
        assert bad.startswith(f"{name}:2 (not {name[2:]}: new-line character")
        assert good == ["c"]


class TestOpenQuotes:
    REASON = "a quotation mark that is not closed; rows 3 to {last} are in it, those from 4 on are read anew"

    def test_the_rows_behind_it_are_read(self, tmp_path: Path) -> None:
        raw = b'text,label\na,1\n"open,2\nb,3\nc,4\n'
        found = values(read(raw, tmp_path, "f.csv"))
        assert found == [["a", "1"], f"f.csv:3 ({self.REASON.format(last=5)})", ["b", "3"], ["c", "4"]]

    def test_on_the_last_line_it_takes_that_row(self, tmp_path: Path) -> None:
        found = values(read(b'text\na\n"open', tmp_path, "f.csv"))
        assert found == [["a"], "f.csv:3 (a quotation mark that is not closed)"]

    def test_it_takes_no_more_memory_than_the_limit(self, tmp_path: Path) -> None:
        raw = b'text\na\n"open\n' + b"".join(b"row %d\n" % i for i in range(5000))
        found = values(read(raw, tmp_path, "f.csv", limit=1024))
        assert found[0] == ["a"]
        assert found[1].startswith("f.csv:3 (a quotation mark that is not closed; rows 3 to ")
        assert int(found[1].split(" to ")[1].split()[0]) < 150
        assert found[2:] == [[f"row {i}"] for i in range(5000)]

    def test_a_file_of_them_takes_time_in_proportion(self, tmp_path: Path) -> None:
        path = tmp_path / "f.csv"
        path.write_bytes(b"text,label\n" + b'x"y,"b\n' * 200_000)  # each line closes the cell before and opens another
        status = path.stat()
        file = SourceFile(0, "f.csv", str(path), status.st_size, status.st_mtime_ns, "csv")
        began = time.process_time()
        found = list(read_separated(file, None, limit_bytes=64 << 10))
        assert time.process_time() - began < 5  # reading all anew behind each takes minutes
        assert all(isinstance(f, Rejected) and "not closed" in f.reason for f in found)
