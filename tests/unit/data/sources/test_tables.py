"""Parquet and Arrow: every row, in bounded memory, and what damage takes along."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_fixtures import read_path
from data_fixtures import read_raw as read
from data_fixtures import row_values as values

from orchestrator.data.sources import tables
from orchestrator.errors import DataError


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


def write(table: pa.Table, path: Path, **options: Any) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path, **options)
    else:
        make = pa.ipc.new_stream if "stream" in path.name else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema, **options) as writer:
            writer.write_table(table)
    return path


ALL = pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow"])


class TestDamagedRows:
    @ALL
    @pytest.mark.parametrize("columns", [["text"], None])
    def test_a_text_that_is_not_utf8_is_one_row(self, tmp_path: Path, name: str, columns: list[str] | None) -> None:
        texts = pa.array([b"one", b"tw\xff", b"three"]).view(pa.string())
        found = read_path(write(pa.table({"text": texts}), tmp_path / name), columns=columns)
        assert values(found) == [["one"], f"{name}:2 (not UTF-8 at byte 2)", ["three"]]

    @ALL
    def test_a_text_in_a_list_or_a_dictionary_is_one_row(self, tmp_path: Path, name: str) -> None:
        texts = pa.array([b"one", b"\xff", b"three"]).view(pa.string())
        nested = pa.ListArray.from_arrays([0, 1, 2, 3], texts)
        coded = pa.DictionaryArray.from_arrays(pa.array([2, 0, 1]), texts)
        if name == "a.parquet":
            coded = pa.array(["three", "one", "x"])
        found = read_path(write(pa.table({"n": nested, "text": coded}), tmp_path / name))
        assert found[0].fields == {"n": ["one"], "text": "three"}
        assert str(found[1]) == f"{name}:2 (not UTF-8 at byte 0)"

    @ALL
    def test_a_value_that_python_has_not_counts_where_it_is_asked_for(self, tmp_path: Path, name: str) -> None:
        far = pa.array([0, 2**55], pa.timestamp("ms"))
        odd = pa.array([0, 1], pa.timestamp("ms", tz="Mars/Base"))
        path = write(pa.table({"text": ["a", "b"], "far": far, "odd": odd}), tmp_path / name)
        assert values(read_path(path, columns=["text"])) == [["a"], ["b"]]
        assert [(f.fields["text"], f.fields["odd"]) for f in read_path(path)] == [("a", None), ("b", None)]
        assert read_path(path)[1].fields["far"] is None
        _, bad = read_path(path, columns=["far"])
        assert str(bad).startswith(f"{name}:2 (far is a timestamp[ms] that cannot be read: ")


class TestDamagedFiles:
    @pytest.mark.parametrize("kind", [pa.string(), pa.list_(pa.string())])
    def test_wrong_offsets_are_said(self, tmp_path: Path, kind: pa.DataType) -> None:
        column = pa.array(["a" * 8, "b" * 8] if kind == pa.string() else [["a"] * 8, ["b"] * 8], kind)
        offsets = bytes(pa.array([0, 8, 16], pa.int32()).buffers()[1])
        raw = write(pa.table({"text": column}), tmp_path / "a.arrow").read_bytes()
        assert raw.count(offsets[:12]) == 1
        wrong = bytes(pa.array([0, 1 << 30, 16], pa.int32()).buffers()[1])
        (found,) = read(raw.replace(offsets[:12], wrong[:12]), tmp_path, "b.arrow")
        assert str(found).startswith("b.arrow (not readable as arrow: ")

    def test_no_flipped_byte_ends_the_process(self, tmp_path: Path) -> None:
        coded = pa.array(["x", "y", "x", None]).dictionary_encode()
        table = pa.table({"text": ["a", "bb", None, "ccc"], "n": [["a"], [], ["b", "c"], None], "d": coded})
        write(table, tmp_path / "a.arrow")
        script = """
import random, sys
from pathlib import Path
from orchestrator.data.sources.listing import SourceFile
from orchestrator.data.sources.tables import read_table
from orchestrator.data.values import RowError
raw, path = Path(sys.argv[1]).read_bytes(), Path(sys.argv[1]).with_name("b.arrow")
for seed in range(1500):
    random.seed(seed)
    damaged = bytearray(raw)
    for _ in range(random.choice((1, 1, 4))):
        damaged[random.randrange(8, len(raw))] = random.choice((0, 1, 127, 128, 255))
    path.write_bytes(damaged)
    try:
        found = list(read_table(SourceFile(0, "b.arrow", str(path), len(raw), 0, "arrow"), None))
    except (RowError, UnicodeDecodeError):
        continue
    assert len(found) < 100, found[:3]
"""
        command = [sys.executable, "-c", script, str(tmp_path / "a.arrow")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    @ALL
    def test_two_columns_of_one_name_are_refused(self, tmp_path: Path, name: str) -> None:
        table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
        assert values(read_path(write(table, tmp_path / name))) == [f"{name} (two columns are named 'text')"]

    @pytest.mark.parametrize(
        "features",
        [
            None,
            [],
            "text",
            {"label": None},
            {"label": {"_type": "ClassLabel"}},
            {"label": {"_type": "ClassLabel", "names": 3}},
            {"label": {"_type": "ClassLabel", "names": [1, 2]}},
            {"label": {"feature": [{"_type": "ClassLabel"}]}},
        ],
    )
    def test_foreign_metadata_gives_no_names(self, tmp_path: Path, features: Any) -> None:
        for about in ({"info": {"features": features}}, {"info": features}, features):
            table = pa.table({"label": [1]}).replace_schema_metadata({"huggingface": json.dumps(about)})
            assert values(read_path(write(table, tmp_path / "a.parquet"))) == [[1]]

    @ALL
    @pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.ESTALE])
    def test_a_failing_disk_is_no_fault_of_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
    ) -> None:
        class Failing:
            closed = False

            def read(self, size: int = -1) -> bytes:
                raise OSError(number, "the disk says no")

            def seek(self, offset: int, whence: int = 0) -> int:
                return 100

            tell = close = lambda self: 100

        path = write(pa.table({"text": ["a"]}), tmp_path / name)
        monkeypatch.setattr(tables, "open_table_file", lambda file: Failing())
        with pytest.raises(OSError, match="the disk says no") as caught:
            read_path(path)
        assert caught.value.errno == number

    def test_an_object_store_that_does_not_answer_is_no_fault_of_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write(pa.table({"text": ["a"] * 1000}), tmp_path / "a.parquet")

        class Store:
            def __init__(self) -> None:
                self._raw = path.open("rb")

            def __getattr__(self, name: str) -> Any:
                return getattr(self._raw, name)

            def read(self, size: int = -1) -> bytes:
                if self._raw.tell() < 100:
                    raise OSError("AWS Error NETWORK_CONNECTION: timed out")
                return self._raw.read(size)

        monkeypatch.setattr(tables, "open_table_file", lambda file: Store())
        with pytest.raises(DataError, match=r"a\.parquet could not be read: AWS Error NETWORK_CONNECTION"):
            read_path(path)


class TestMemory:
    """Peak bytes of a process that reads the file, over one that reads a small one."""

    def peak_bytes(self, path: Path) -> tuple[int, str]:
        script = """
import resource, sys
from orchestrator.data.sources.listing import SourceFile
from orchestrator.data.sources.tables import read_table
from orchestrator.data.values import RowError
path, size, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
before, rows, end = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0, ""
try:
    for found in read_table(SourceFile(0, "f", path, size, 0, kind), ["text"]):
        rows += 1
except RowError as error:
    end = str(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, rows, end)
"""
        command = [sys.executable, "-c", script, str(path), str(path.stat().st_size), path.suffix[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        size, _, rest = done.stdout.strip().partition(" ")
        return int(size), rest

    @pytest.mark.parametrize("name", ["a.arrow", "stream.arrow", "a.parquet"])
    def test_one_huge_batch_is_read_in_pieces(self, tmp_path: Path, name: str) -> None:
        texts = pa.array([f"{i:08}" * 1000 for i in range(30_000)])  # 240 MB
        table = pa.table({"text": texts, "n": pa.array(range(30_000))})
        options = {"row_group_size": 30_000, "compression": "none"} if name == "a.parquet" else {}
        peak, rest = self.peak_bytes(write(table, tmp_path / name, **options))
        assert rest == "30000"
        assert peak < 140 << 20

    @pytest.mark.parametrize("dictionary", [True, False])
    @pytest.mark.parametrize("first", [0, 400])
    def test_a_small_parquet_file_cannot_take_gigabytes(self, tmp_path: Path, dictionary: bool, first: int) -> None:
        table = pa.table({"text": pa.array(["a"] * first + ["x" * (4 << 20)] * 128)})
        path = write(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=dictionary)
        assert path.stat().st_size < 100_000
        peak, rest = self.peak_bytes(path)
        assert f"unpacks to over 200 times its {path.stat().st_size} bytes: not read further" in rest
        assert peak < 300 << 20

    @pytest.mark.parametrize("coded", [True, False])
    def test_a_small_arrow_file_cannot_take_gigabytes(self, tmp_path: Path, coded: bool) -> None:
        column: pa.Array = pa.array(["x" * (1 << 20)] * 128)
        if coded:
            column = pa.DictionaryArray.from_arrays(pa.array([0] * 500), pa.array(["x" * (4 << 20)]))
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        path = write(pa.table({"text": column}), tmp_path / "a.arrow", options=options)
        assert path.stat().st_size < 100_000
        peak, rest = self.peak_bytes(path)
        assert "unpacks to over 200 times" in rest
        assert coded or rest.startswith("0 ")  # what compressed buffers take is known before they are unpacked
        assert peak < 300 << 20

    def test_a_dictionary_of_words_is_no_bomb(self, tmp_path: Path) -> None:
        table = pa.table({"text": pa.array([f"word {i % 1000} of many" for i in range(100_000)]).dictionary_encode()})
        for name in ("a.parquet", "a.arrow"):
            found = read_path(write(table, tmp_path / name), columns=["text"])
            assert [f.fields["text"] for f in found] == table["text"].to_pylist()
