"""The loop of `recovery_loop` in bare Ray Train, with its checkpoints and its restarts. A peer of `recovery`.

python benchmarks/peers/recovery_ray.py FOLDER EVERY_STEPS
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

sys.path.append(str(Path(__file__).parent))
from recovery_loop import LOG, SAVED, loop


def train(config: dict[str, Any]) -> None:
    """On each worker."""
    saved = None
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            saved = torch.load(Path(folder, SAVED), weights_only=True)

    def save(step: int, state: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            if ray.train.get_context().get_world_rank() != 0:
                ray.train.report({"step": step})
                return
            torch.save(state, Path(folder, SAVED))
            ray.train.report({"step": step}, checkpoint=Checkpoint.from_directory(folder))

    loop(Path(config["folder"], LOG), every_steps=config["every_steps"], saved=saved, save=save)


def main() -> None:
    folder, every_steps = sys.argv[1], int(sys.argv[2])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    TorchTrainer(
        train,
        train_loop_config={"folder": folder, "every_steps": every_steps},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="peer", storage_path=folder, failure_config=FailureConfig(max_failures=-1)),
    ).fit()


if __name__ == "__main__":
    main()
