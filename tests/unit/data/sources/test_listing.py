"""Sources: what a glob takes and what a walk does not even enter; what a file holds, or why it holds nothing."""

from __future__ import annotations

import itertools
import json
import os
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.sources import listing as sources
from orchestrator.data.sources.listing import (
    Bad,
    Listing,
    ListingTooSlowError,
    SourceFile,
    glob_regex,
    list_sources,
    read_documents,
    require_files,
    resolve_path,
)
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

    def test_links_to_other_places_are_followed(self, tree: Path, tmp_path: Path) -> None:
        (tmp_path / "else").mkdir()
        (tmp_path / "else" / "z.txt").touch()
        (tree / "linked").symlink_to(tmp_path / "else")
        (tree / "one.txt").symlink_to(tmp_path / "else" / "z.txt")
        assert {"linked/z.txt", "one.txt"} <= set(names({"path": str(tree)}))

    def test_a_name_that_is_not_utf_8_has_a_hash_too(self, tmp_path: Path) -> None:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("text")
        found = listing({"path": str(tmp_path)})
        assert content_hash(found.rows())
        assert list(read_documents(found.files[0], Source(path="x"))) == ["text"]

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

    @pytest.mark.parametrize("path", ["s3://bucket/x", "gs://bucket", "https://host/x.txt"])
    def test_object_stores_are_refused(self, path: str) -> None:
        with pytest.raises(JobError, match=rf"{path.partition(':')[0]}:// sources cannot be read"):
            resolve_path(path, {})


def read(raw: bytes, folder: Path, **source: str) -> list[str | Bad]:
    path = folder / "file"
    path.write_bytes(raw)
    return list(read_documents(SourceFile(0, "file", str(path), len(raw), 0), Source(path="x", **source)))  # type: ignore[arg-type]


class TestText:
    @pytest.mark.parametrize(
        ("raw", "document"),
        [
            (b"one\r\ntwo\n", "one\r\ntwo\n"),
            ("naïve 🚢\x00".encode(), "naïve 🚢\x00"),
            (b"\xef\xbb\xbfwith a mark", "with a mark"),
            (b"", Bad("file", "empty")),
            (b" \n\t\n", Bad("file", "empty")),
            (b"\xef\xbb\xbf", Bad("file", "empty")),
            (b"good\xff\xfebad", Bad("file", "not UTF-8 at byte 4")),
            ("utf-16".encode("utf-16"), Bad("file", "not UTF-8 at byte 0")),
        ],
    )
    def test_a_file_is_one_document(self, tmp_path: Path, raw: bytes, document: str | Bad) -> None:
        assert read(raw, tmp_path) == [document]

    def test_a_file_that_is_gone_is_bad(self, tmp_path: Path) -> None:
        gone = SourceFile(0, "gone", str(tmp_path / "gone"), 1, 0)
        assert list(read_documents(gone, Source(path="x"))) == [Bad("gone", "not readable: No such file or directory")]


class TestJsonl:
    def test_each_line_is_a_document_or_bad_by_its_number(self, tmp_path: Path) -> None:
        lines = [
            json.dumps({"text": "one\nline, naïve"}),
            "",
            '{"text": "two\\u2028lines"}',
            "not json",
            '{"txt": "x"}',
            '{"text": 3}',
            '["text"]',
            '{"text": " "}',
            '{"text": "half a pair: \\ud83d"}',
            "[" * 100_000,
        ]
        raw = "\r\n".join(lines).encode() + b'\n\xff\n{"text": "last"}'
        assert read(raw, tmp_path, format="jsonl") == [
            "one\nline, naïve",
            "two\u2028lines",
            Bad("file:4", "not JSON"),
            Bad("file:5", "no text in the field 'text'"),
            Bad("file:6", "no text in the field 'text'"),
            Bad("file:7", "no text in the field 'text'"),
            Bad("file:8", "empty"),
            Bad("file:9", "a lone surrogate in the text"),
            Bad("file:10", "not JSON"),
            Bad("file:11", "not UTF-8 at byte 0"),
            "last",
        ]

    def test_the_field_can_be_named(self, tmp_path: Path) -> None:
        assert read(b'{"text": "a", "body": "b"}\n', tmp_path, format="jsonl", text="body") == ["b"]

    def test_a_mark_at_the_beginning_is_no_text(self, tmp_path: Path) -> None:
        assert read(b'\xef\xbb\xbf{"text": "a"}\n', tmp_path, format="jsonl") == ["a"]

    @pytest.mark.parametrize("raw", [b"", b"\n \n"])
    def test_a_file_without_lines_is_bad(self, tmp_path: Path, raw: bytes) -> None:
        assert read(raw, tmp_path, format="jsonl") == [Bad("file", "empty")]
