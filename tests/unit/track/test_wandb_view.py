"""What the newest of W&B's files say about the last step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import wandb

from orchestrator.track.wandb_view import last_step


def test_the_last_step_is_that_of_the_newest_file_that_has_one(tmp_path: Path) -> None:
    assert last_step(tmp_path) == 0
    with wandb.init(mode="offline", dir=str(tmp_path), settings=wandb.Settings(silent=True, console="off")) as run:
        for step in (3, 7):
            run.log({"loss": 1.0}, step=step)
    wandb.teardown()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*-*")
    assert last_step(tmp_path / "wandb") == 7
    newer = tmp_path / "wandb" / "run-29990101_000000-x"
    shutil.copytree(folder, newer)
    (file,) = newer.glob("*.wandb")
    file = file.rename(newer / "run-x.wandb")
    os.truncate(file, file.stat().st_size // 3)  # ends before its first step
    assert last_step(tmp_path / "wandb") == 7
