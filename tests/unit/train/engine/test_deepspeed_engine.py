"""DeepSpeed's start: nothing is built, so no build that was killed can block it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

START = """
import torch.distributed as dist
from orchestrator.train.engine.deepspeed_engine import import_deepspeed
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
import_deepspeed().init_distributed(auto_mpi_discovery=False, verbose=False)
"""


def test_a_lock_that_a_killed_build_has_left_blocks_nobody(tmp_path: Path) -> None:
    """torch waits for such a lock for ever: https://github.com/pytorch/pytorch/issues/189245"""
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    here = {"TORCH_EXTENSIONS_DIR": str(tmp_path), "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", START],
        env={**os.environ, **here},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in lock.parent.iterdir()] == ["lock"]
