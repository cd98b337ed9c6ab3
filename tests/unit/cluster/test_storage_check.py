"""What a machine says of a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cluster import storage_check
from orchestrator.cluster.storage_check import look


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_check, "_SEEN_WITHIN_S", 0.0)


def test_a_machine_that_reads_and_writes_has_no_problem(tmp_path: Path) -> None:
    (tmp_path / "driver").write_text("driver")
    assert look(str(tmp_path), "abcdef0123456789", "driver").problem is None
    assert (tmp_path / "abcdef0123456789").read_text() == "abcdef0123456789"


def test_a_folder_of_the_same_name_is_not_the_same(tmp_path: Path) -> None:
    problem = look(str(tmp_path / "elsewhere"), "abcdef0123456789", "driver").problem
    assert problem is not None
    assert "(node abcdef01) does not see what driver wrote there: No such file or directory" in problem
    assert not (tmp_path / "elsewhere").exists()  # nothing is made where nothing is mounted


def test_what_is_there_in_part_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "driver").write_text("dri")
    assert "it is incomplete" in str(look(str(tmp_path), "abcdef0123456789", "driver").problem)


def test_a_machine_that_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "driver").write_text("driver")
    (tmp_path / "abcdef0123456789").mkdir()  # in the way, also for root
    assert "cannot write there: Is a directory" in str(look(str(tmp_path), "abcdef0123456789", "driver").problem)
