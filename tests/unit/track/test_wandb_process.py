"""The process that talks to W&B: what it leaves in TMPDIR, and what others left there."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from orchestrator.track.wandb_process import own_temporary_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def left_behind(folder: Path, *, seconds_ago: float) -> Path:
    """As a process that was killed leaves it."""
    folder.mkdir()
    (folder / "tmpabcwandb-media").mkdir()
    (folder / "lock").touch()
    at = (folder / "lock").stat().st_mtime - seconds_ago
    os.utime(folder / "lock", (at, at))
    return folder


def test_all_that_is_made_within_is_gone_after(temporary: Path) -> None:
    with own_temporary_folder() as folder:
        assert folder.parent == temporary
        assert tempfile.mkdtemp().startswith(str(folder))
        assert os.environ["TMPDIR"] == str(folder)
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_taken_away_and_nothing_else(temporary: Path) -> None:
    dead = left_behind(temporary / "slipway-wandb-dead", seconds_ago=3600)
    new = left_behind(temporary / "slipway-wandb-new", seconds_ago=1)
    alive = left_behind(temporary / "slipway-wandb-alive", seconds_ago=3600)
    other = left_behind(temporary / "somebody-elses", seconds_ago=3600)
    with (alive / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with own_temporary_folder():
            assert [path.exists() for path in (dead, new, alive, other)] == [False, True, True, True]
