"""What goes into a checkpoint besides the ZeRO state: weights, probe, random state, progress, the job."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from orchestrator.checkpoint import layout
from orchestrator.checkpoint.layout import Progress
from orchestrator.checkpoint.reader import Checkpoint
from orchestrator.checkpoint.writer import CheckpointWriter
from orchestrator.job import JobSpec
from orchestrator.job_file import job_to_yaml
from orchestrator.objectives.protocol import Tensors
from orchestrator.store import write_json
from orchestrator.train.engine.protocol import TrainEngine
from orchestrator.train.group import TorchGroup

_PACKAGES = ("slipway", "torch", "deepspeed", "ray", "tokenizers", "safetensors")


class Saver:
    """Writes and restores checkpoints of one rank's loop."""

    def __init__(
        self,
        writer: CheckpointWriter,
        *,
        engine: TrainEngine,
        group: TorchGroup,
        job: JobSpec,
        description: dict[str, Any],
        probe: Tensors,
        stage: int,
    ) -> None:
        self._writer = writer
        self._engine = engine
        self._group = group
        self._job = job
        self._description = description
        self._probe = probe
        self._stage = stage

    def save(self, progress: Progress, *, attempt: int, facts: dict[str, Any]) -> Path:
        """Make a checkpoint. Collective."""
        manifest = layout.manifest(
            step=progress.step,
            world_size=self._group.num_ranks,
            zero_stage=self._stage,
            precision=self._job.training.precision,
            attempt=attempt,
            versions=versions(),
            **facts,
        )
        # Collectives first, outside of what may fail on one rank only.
        weights = self._engine.weights()
        outputs = self._engine.outputs(self._probe)

        def fill(folder: Path) -> None:
            self._engine.save(folder / layout.STATE_FOLDER)
            if self._group.rank == 0:
                self._rank_0_files(folder, progress, weights or {}, outputs["logits"])
            save_file(_random_state(), folder / layout.rng_file(self._group.rank))

        return self._writer.write(progress.step, fill=fill, manifest=manifest, best_step=progress.best_step)

    def restore(self, checkpoint: Checkpoint) -> Progress:
        """Go on where a checkpoint stands, whatever number of workers wrote it at whatever stage. Collective."""
        self._engine.load(checkpoint.path / layout.STATE_FOLDER)
        random_state = checkpoint.path / layout.rng_file(self._group.rank)
        if not random_state.is_file():  # a rank that was not there goes on from its own seed
            return checkpoint.progress
        state = load_file(random_state)
        torch.set_rng_state(state["torch_cpu"])
        if "torch_cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["torch_cuda"])
        return checkpoint.progress

    def _rank_0_files(self, folder: Path, progress: Progress, weights: Tensors, logits: Tensor) -> None:
        save_file(weights, folder / layout.WEIGHTS)
        save_file({**self._probe, "trainer_logits": logits.contiguous()}, folder / layout.PROBE)
        write_json(folder / layout.MODEL_CONFIG, self._description)
        write_json(folder / layout.PROGRESS, json.loads(progress.model_dump_json()))
        (folder / "job.yaml").write_text(job_to_yaml(self._job), encoding="utf-8")


def _random_state() -> dict[str, Tensor]:
    """What dropout draws from."""
    state = {"torch_cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["torch_cuda"] = torch.cuda.get_rng_state()
    return state


def versions() -> dict[str, str]:
    """What this was made with."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
