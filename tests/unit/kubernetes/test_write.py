"""Files into a folder, and who is asked before one is overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import JobError
from orchestrator.kubernetes.write import write_files

FILES = {"a.yaml": "a: 1\n", "b.yaml": "b: 1\n"}


def test_twice_is_once(tmp_path: Path) -> None:
    assert write_files(FILES, tmp_path / "new" / "folder", force=False)["written"] == ["a.yaml", "b.yaml"]
    again = write_files(FILES, tmp_path / "new" / "folder", force=False)
    assert again == {"written": [], "unchanged": ["a.yaml", "b.yaml"]}


def test_what_somebody_has_changed_is_left_until_they_say_so(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("b: mine\n", encoding="utf-8")
    with pytest.raises(JobError, match=r"b\.yaml"):
        write_files(FILES, tmp_path, force=False)
    assert [p.name for p in tmp_path.iterdir()] == ["b.yaml"]
    assert write_files(FILES, tmp_path, force=True)["written"] == ["a.yaml", "b.yaml"]
    assert (tmp_path / "b.yaml").read_text(encoding="utf-8") == "b: 1\n"


def test_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xff")
    write_files(FILES, tmp_path, force=False)
    assert (tmp_path / "c.yaml").read_bytes() == b"\xff"


def test_a_file_that_is_no_text_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff")
    with pytest.raises(JobError, match=r"a\.yaml"):
        write_files(FILES, tmp_path, force=False)
