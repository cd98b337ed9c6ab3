"""Damaged checkpoints and full disks."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.chaos.damage import LEFT_BYTES, NotNowError, flip, full_disk, hold, refuse_to_fill, tear
from orchestrator.checkpoint import layout
from orchestrator.checkpoint.reader import newest_checkpoint
from orchestrator.errors import JobError
from orchestrator.store import commit, new_tmp, write_json


def checkpoint(run: Path, step: int) -> Path:
    final = layout.step_folder(layout.checkpoints_folder(run), step)
    tmp = new_tmp(final)
    tmp.mkdir(parents=True)
    write_json(tmp / layout.PROGRESS, {"step": step})
    (tmp / layout.WEIGHTS).write_bytes(random.Random(step).randbytes(300))
    facts = layout.manifest(step=step, world_size=1, zero_stage=0, precision="fp32", attempt=1, versions={})
    commit(tmp, final, facts)
    return final


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(st.integers(0, 2**32))
def test_a_flip_changes_one_bit_and_a_cut_one_length(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    run = tmp_path_factory.mktemp("run")
    checkpoint(run, 1)
    folder = checkpoint(run, 2)
    whole = contents(folder)
    damage = (flip if seed % 2 else tear)(run, random.Random(seed))
    assert (damage.step, damage.stands) == (2, True)
    after = contents(folder)
    changed = [name for name in whole if after[name] != whole[name]]
    assert changed == [damage.file]
    old, new = whole[damage.file], after[damage.file]
    if seed % 2:
        assert sum((a ^ b).bit_count() for a, b in zip(old, new, strict=True)) == 1
    else:
        assert len(new) < len(old)
        assert old.startswith(new)
    said: list[str] = []
    found = newest_checkpoint(run, say=said.append)
    assert found is not None
    assert found.step == 1
    assert "passing over step-00000002" in said[0]
    shutil.rmtree(folder)
    assert not damage.stands


def test_the_same_seed_damages_the_same(tmp_path: Path) -> None:
    for run in (tmp_path / "a", tmp_path / "b"):
        checkpoint(run, 1)
        checkpoint(run, 2)
        flip(run, random.Random(3))
    names = (layout.PROGRESS, layout.WEIGHTS)
    a, b = (layout.step_folder(layout.checkpoints_folder(tmp_path / run), 2) for run in "ab")
    assert [(a / name).read_bytes() for name in names] == [(b / name).read_bytes() for name in names]


def test_the_only_checkpoint_that_verifies_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(NotNowError, match="no checkpoint yet"):
        tear(tmp_path, random.Random(1))
    checkpoint(tmp_path, 1)
    with pytest.raises(NotNowError, match="step-00000001 is the only checkpoint"):
        flip(tmp_path, random.Random(1))
    checkpoint(tmp_path, 2)
    tear(tmp_path, random.Random(1))
    with pytest.raises(NotNowError, match="step-00000002 is damaged already"):
        tear(tmp_path, random.Random(1))
    checkpoint(tmp_path, 3)
    flip(tmp_path, random.Random(1))  # step 1 is still there to go on from
    checkpoint(tmp_path, 4)
    shutil.rmtree(layout.step_folder(layout.checkpoints_folder(tmp_path), 1))
    with pytest.raises(NotNowError, match="step-00000004 is the only checkpoint"):
        flip(tmp_path, random.Random(1))


def test_a_file_with_another_name_is_not_damaged(tmp_path: Path) -> None:
    checkpoint(tmp_path, 1)
    folder = checkpoint(tmp_path, 2)
    for path in folder.iterdir():
        os.link(path, tmp_path / path.name)
    with pytest.raises(NotNowError, match="another name"):
        tear(tmp_path, random.Random(1))
    assert newest_checkpoint(tmp_path, say=print).step == 2  # type: ignore[union-attr]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", uuid.uuid4().hex, folder], check=False).returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_full_until_the_block_ends(small_disk: Path) -> None:
    other = small_disk / "other"
    other.write_bytes(bytes(500_000))
    with full_disk(small_disk) as again:
        assert shutil.disk_usage(small_disk).free < LEFT_BYTES
        assert sorted(small_disk.iterdir()) == [other]
        with pytest.raises(OSError, match="No space left"):
            (small_disk / "more").write_bytes(bytes(LEFT_BYTES))
        other.unlink()
        hold(0.3, again)
        assert shutil.disk_usage(small_disk).free < LEFT_BYTES
    assert shutil.disk_usage(small_disk).free > 1_500_000


def test_a_large_file_system_is_not_filled(small_disk: Path) -> None:
    refuse_to_fill(small_disk, None, default_bytes=10**9)
    with pytest.raises(JobError, match="would be filled") as caught:
        refuse_to_fill(small_disk, 10**6, default_bytes=10**9)
    assert "at most 1.00 MB" in caught.value.message
    assert "--fill-at-most 2" in str(caught.value.fix)


def test_the_disk_of_the_system_is_filled_by_wish_alone() -> None:
    with pytest.raises(JobError, match="file system of the system itself"):
        refuse_to_fill(Path("/"), None, default_bytes=1 << 60)
    refuse_to_fill(Path("/"), 1 << 60, default_bytes=0)
