"""Sources: what a glob takes and what a walk does not even enter; what a file holds, or why it holds nothing."""

from __future__ import annotations

import itertools
import os
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.sources import listing as sources
from orchestrator.data.sources.file import SourceFile
from orchestrator.data.sources.globs import glob_regex
from orchestrator.data.sources.listing import Listing, ListingTooSlowError, list_sources, require_files, resolve_path
from orchestrator.errors import DataError, JobError
from orchestrator.identity import content_hash
from orchestrator.job_data import Data, Source

FILES = ("a.txt", "b.md", "sub/c.txt", "sub/deep/d.txt", "tests/e.txt", "sub/tests/f.txt", ".hidden.txt", ".git/g.txt")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def listing(*rows: Mapping[str, Any], environ: Mapping[str, str] | None = None, **limits: Any) -> Listing:
    return list_sources(Data(sources=[Source(**row) for row in rows]), environ or {}, **limits)


def names(*rows: Mapping[str, Any]) -> list[str]:
    return [file.relative for file in listing(*rows).files]


class TestGlobs:
    @pytest.mark.parametrize(
        ("pattern", "path", "matches"),
        [
            ("*.txt", "a.txt", True),
            ("*.txt", "sub/a.txt", False),
            ("**/*.txt", "a.txt", True),
            ("**/*.txt", "x/y/a.txt", True),
            ("sub/**", "sub/x/y", True),
            ("sub/**", "subway/x", False),
            ("**/tests/**", "tests/a", True),
            ("**/tests/**", "x/tests/a", True),
            ("**/tests/**", "x/mytests/a", False),
            ("a?.txt", "ab.txt", True),
            ("a?.txt", "a/.txt", False),
            ("[ab].txt", "b.txt", True),
            ("[!ab].txt", "b.txt", False),
            ("[!ab].txt", "c.txt", True),
            ("[!ab]x", "/x", False),
            ("a.txt", "aXtxt", False),
            ("a+(b)|c", "a+(b)|c", True),
            ("[", "[", True),
            ("**", "any/thing\nat all", True),
        ],
    )
    def test_a_glob_means_this(self, pattern: str, path: str, matches: bool) -> None:
        assert bool(glob_regex(pattern).fullmatch(path)) is matches

    def test_a_range_that_runs_backwards_is_the_users_mistake(self, tree: Path) -> None:
        with pytest.raises(JobError, match=r"'\[z-a\]\*' is not a glob"):
            names({"path": str(tree), "include": "[z-a]*"})


class TestListing:
    @pytest.mark.parametrize(
        ("row", "expected"),
        [
            ({}, ["a.txt", "b.md", "sub/c.txt", "sub/deep/d.txt", "sub/tests/f.txt", "tests/e.txt"]),
            ({"include": "*.txt"}, ["a.txt"]),
            ({"include": ["**/*.md", "sub/*.txt"]}, ["b.md", "sub/c.txt"]),
            ({"exclude": ["**/tests/**"]}, ["a.txt", "b.md", "sub/c.txt", "sub/deep/d.txt"]),
            ({"exclude": ["sub"]}, ["a.txt", "b.md", "tests/e.txt"]),
            ({"exclude": ["sub/**", "*.md"]}, ["a.txt", "tests/e.txt"]),
            ({"include": "**/*.txt", "exclude": ["*.txt", "sub/t*"]}, ["sub/c.txt", "sub/deep/d.txt", "tests/e.txt"]),
        ],
    )
    def test_a_folder_gives_what_is_included_and_not_excluded(
        self, tree: Path, row: dict[str, Any], expected: list[str]
    ) -> None:
        assert names({"path": str(tree), **row}) == expected

    def test_a_glob_is_relative_to_its_fixed_folder(self, tree: Path) -> None:
        assert names({"path": f"{tree}/**/*.md"}) == ["b.md"]
        assert names({"path": f"{tree}/s*/*.txt"}) == ["sub/c.txt"]

    def test_a_file_is_itself(self, tree: Path) -> None:
        found = listing({"path": f"{tree}/sub/c.txt"})
        status = (tree / "sub/c.txt").stat()
        assert found.files == [SourceFile(0, "c.txt", f"{tree}/sub/c.txt", 9, status.st_mtime_ns)]
        assert found.rows() == [[0, "c.txt", 9, status.st_mtime_ns]]

    def test_a_folder_may_be_named_like_a_glob(self, tmp_path: Path) -> None:
        (tmp_path / "[x] *").mkdir()
        (tmp_path / "[x] *" / "a.txt").touch()
        assert names({"path": str(tmp_path / "[x] *")}) == ["a.txt"]

    def test_jsonl_takes_the_files_named_so(self, tree: Path) -> None:
        for name in ("x.jsonl", "sub/y.ndjson", "z.json"):
            (tree / name).touch()
        assert names({"path": str(tree), "format": "jsonl"}) == ["sub/y.ndjson", "x.jsonl"]

    def test_relative_paths_start_here(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tree)
        assert names({"path": "sub"}) == names({"path": str(tree / "sub")}) == ["c.txt", "deep/d.txt", "tests/f.txt"]

    def test_sources_keep_their_order_and_number(self, tree: Path) -> None:
        found = listing({"path": f"{tree}/tests"}, {"path": f"{tree}/*.txt"})
        assert [(f.source, f.relative) for f in found.files] == [(0, "e.txt"), (1, "a.txt")]

    def test_a_glob_and_include_are_one_too_many(self, tree: Path) -> None:
        with pytest.raises(JobError, match="is a glob and has include too"):
            names({"path": f"{tree}/*.txt", "include": "*.md"})

    def test_what_matches_nothing_is_named(self, tree: Path) -> None:
        found = listing({"path": str(tree), "include": "*.rst"}, {"path": f"{tree}/none"}, {"path": f"{tree}/a.txt"})
        with pytest.raises(DataError, match=r"no file matches '.*tree' \(include \*\.rst\), '.*/none'\n") as caught:
            require_files(found)
        assert caught.value.exit_code == 3
        require_files(listing({"path": f"{tree}/a.txt"}))


class TestWalk:
    @pytest.fixture
    def walked(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The folders whose entries were asked for."""
        seen: list[str] = []
        real = os.scandir

        def scandir(folder: str) -> Any:
            seen.append(folder)
            return real(folder)

        monkeypatch.setattr(os, "scandir", scandir)
        return seen

    @pytest.mark.parametrize(
        ("exclude", "expected"),
        [
            ([], ["", "/sub", "/sub/deep", "/sub/tests", "/tests"]),
            (["**/tests/**"], ["", "/sub", "/sub/deep"]),
            (["sub/**"], ["", "/tests"]),
            (["sub"], ["", "/tests"]),
            (["sub/*.txt"], ["", "/sub", "/sub/deep", "/sub/tests", "/tests"]),
        ],
    )
    def test_an_excluded_folder_is_not_entered(
        self, tree: Path, walked: list[str], exclude: list[str], expected: list[str]
    ) -> None:
        names({"path": str(tree), "exclude": exclude})
        assert walked == [f"{tree}{folder}" for folder in expected]

    def test_links_that_lead_up_end(self, tree: Path) -> None:
        before = names({"path": str(tree)})
        (tree / "sub" / "up").symlink_to(tree)
        (tree / "sub" / "here").symlink_to(".")
        assert names({"path": str(tree)}) == before

    def test_links_that_lead_nowhere_are_no_files(self, tree: Path) -> None:
        before = names({"path": str(tree)})
        (tree / "broken").symlink_to(tree / "none")
        (tree / "itself").symlink_to("itself")
        assert names({"path": str(tree)}) == before

    def test_links_that_lead_out_are_refused_by_name(self, tree: Path, tmp_path: Path) -> None:
        before = names({"path": str(tree)})
        (tmp_path / "else").mkdir()
        (tmp_path / "else" / "z.txt").touch()
        (tree / "linked").symlink_to(tmp_path / "else")
        (tree / "one.txt").symlink_to(tmp_path / "else" / "z.txt")
        (tree / "sub" / "near.txt").symlink_to("../sub/../a.txt")
        found = listing({"path": str(tree)})
        assert sorted(f.relative for f in found.files) == sorted([*before, "sub/near.txt"])
        assert [(r.file, r.reason) for r in found.refused] == [
            ("linked", "a link that leads out of the source folder"),
            ("one.txt", "a link that leads out of the source folder"),
        ]

    def test_a_source_that_is_a_link_itself_is_what_was_asked_for(self, tree: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tree)
        assert names({"path": str(tmp_path / "link")}) == names({"path": str(tree)})

    @pytest.mark.parametrize("row", [{"include": "../*.txt"}, {"exclude": ["a/../b"]}])
    def test_a_glob_that_leads_out_is_refused(self, tree: Path, row: dict[str, Any]) -> None:
        with pytest.raises(JobError, match="leads out of its folder"):
            names({"path": str(tree), **row})

    def test_a_folder_that_cannot_be_read_is_named(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = os.scandir

        def scandir(folder: str) -> Any:
            if folder.endswith("deep"):
                raise PermissionError(13, "Permission denied")
            return real(folder)

        monkeypatch.setattr(os, "scandir", scandir)
        found = listing({"path": str(tree)})
        assert [str(r) for r in found.refused] == ["sub/deep/ (the folder cannot be read: Permission denied)"]

    def test_a_name_that_is_not_utf_8_has_a_hash_too(self, tmp_path: Path) -> None:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("text")
        found = listing({"path": str(tmp_path)})
        assert content_hash(found.rows())
        assert found.files[0].relative == "caf\\xe9.txt"
        assert Path(found.files[0].path).read_text() == "text"

    @pytest.mark.parametrize("layout", ["flat", "nested"])
    def test_a_slow_listing_is_given_up(self, tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for i in range(50):
            path = tmp_path / ("." if layout == "flat" else str(i)) / f"{i}.txt"
            path.parent.mkdir(exist_ok=True)
            path.touch()
        clock = itertools.count()
        monkeypatch.setattr(sources.time, "monotonic", lambda: next(clock) * 0.01)
        with pytest.raises(ListingTooSlowError):
            listing({"path": str(tmp_path)}, limit_s=0.2)
        assert len(listing({"path": str(tmp_path)}, limit_s=None).files) == 50


class TestPlaces:
    def test_placeholders_are_resolved(self, tree: Path) -> None:
        assert resolve_path("${python:stdlib}/x", {}) == f"{sysconfig.get_paths()['stdlib']}/x"
        assert listing({"path": "${env:HERE}/*.md"}, environ={"HERE": str(tree)}).files[0].relative == "b.md"
        assert resolve_path("${env:HERE:-/tmp}/x", {}) == "/tmp/x"

    def test_home_is_resolved(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/me")
        assert resolve_path("~/text", {}) == "/home/me/text"

    def test_an_unset_variable_is_named(self) -> None:
        with pytest.raises(JobError, match="environment variable HERE, which is not set"):
            listing({"path": "${env:HERE}/x"})

    @pytest.mark.parametrize("path", ["${python:site}/x", "x/${HERE}", "${env}"])
    def test_an_unknown_placeholder_is_named(self, path: str) -> None:
        with pytest.raises(JobError, match=r"unknown placeholder \$\{") as caught:
            resolve_path(path, {})
        assert "${python:stdlib} and ${env:NAME}" in str(caught.value.fix)

    @pytest.mark.parametrize("path", ["https://host/x.txt", "hdfs://host/x"])
    def test_other_schemes_are_refused(self, path: str) -> None:
        with pytest.raises(JobError, match=rf"{path.partition(':')[0]}:// sources cannot be read"):
            resolve_path(path, {})

    @pytest.mark.parametrize("path", ["s3://bucket/x", "gs://bucket/a/b"])
    def test_object_stores_stay_as_they_are(self, path: str) -> None:
        assert resolve_path(path, {}) == path
        with pytest.raises(ListingTooSlowError):  # a plan asks no network
            listing({"path": path}, limit_s=0.2)


class TestFormats:
    @pytest.mark.parametrize(
        ("name", "kind", "packing"),
        [
            ("a.txt", "text", None),
            ("a.py.gz", "text", "gzip"),
            ("a.jsonl", "jsonl", None),
            ("a.JSONL.ZST", "jsonl", "zstd"),
            ("a.ndjson.bz2", "jsonl", "bz2"),
            ("a.csv", "csv", None),
            ("a.tsv.gz", "tsv", "gzip"),
            ("a.parquet", "parquet", None),
            ("a.feather", "arrow", None),
            ("a.arrow", "arrow", None),
            ("a", "text", None),
        ],
    )
    def test_auto_goes_by_the_ending(self, tmp_path: Path, name: str, kind: str, packing: str | None) -> None:
        (tmp_path / name).touch()
        (found,) = listing({"path": str(tmp_path)}).files
        assert (found.format, found.packing) == (kind, packing)

    def test_a_format_takes_its_packed_files_too(self, tmp_path: Path) -> None:
        for name in ("a.csv", "b.csv.gz", "c.csv.zst", "d.txt"):
            (tmp_path / name).touch()
        assert names({"path": str(tmp_path), "format": "csv"}) == ["a.csv", "b.csv.gz", "c.csv.zst"]

    def test_folders_of_a_saved_dataset_name_its_splits(self, tmp_path: Path) -> None:
        for name in ("train", "dev", "test", "other"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "data-00000-of-00001.arrow").touch()
        found = listing({"path": str(tmp_path), "format": "huggingface"}).files
        assert {f.relative.split("/")[0]: f.split for f in found} == {
            "train": "train",
            "dev": "validation",
            "test": "test",
            "other": None,
        }

    def test_evaluation_sets_are_listed_beside(self, tree: Path) -> None:
        data = Data(
            sources=[Source(path=f"{tree}/*.md")],
            deduplicate={"against": [f"{tree}/sub", {"path": f"{tree}/tests"}]},  # type: ignore[arg-type]
        )
        found = list_sources(data, {})
        assert [(f.source, f.relative) for f in found.against] == [
            (0, "c.txt"),
            (0, "deep/d.txt"),
            (0, "tests/f.txt"),
            (1, "e.txt"),
        ]
        assert [f.relative for f in found.files] == ["b.md"]
