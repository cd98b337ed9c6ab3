"""Names inside a run, and which checkpoints to keep. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

FORMAT = 1
WEIGHTS = "model.safetensors"
MODEL_CONFIG = "model.json"
PROBE = "probe.safetensors"
PROGRESS = "progress.json"
STATE_FOLDER = "zero"
JOB = "job.yaml"
EXPORTED = (WEIGHTS, MODEL_CONFIG, PROBE, PROGRESS, JOB)
"""All that an export and an evaluation read of a checkpoint: written first, and readable before the rest is durable."""
_STEP = re.compile(r"step-(\d{8})")


class Progress(BaseModel):
    """Enough to go on at the next unseen sample, on any number of workers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int = 0
    """Finished optimizer steps; the position in the data follows from it."""
    samples: int = 0
    tokens: int = 0
    train_loss: float | None = None
    validation_loss: float | None = None
    scores: dict[str, float] = {}
    """Of the validation split after this very step; empty where it was not evaluated."""
    best_step: int | None = None
    """The step whose `train.evaluate.best` was the best so far; null where nothing is chosen by a metric."""
    best_value: float | None = None
    without_better: int = 0
    """Evaluations since then."""
    ended_early: bool = False
    """The run is finished before its last step: it had become no better for long enough."""

    def is_end(self, steps: int) -> bool:
        """Whether a run of so many steps has nothing left to do."""
        return self.step >= steps or self.ended_early


def checkpoints_folder(run: Path) -> Path:
    """Where the checkpoints of a run stand."""
    return run / "checkpoints"


def weights_folder(run: Path) -> Path:
    """Where the weights of a checkpoint stand that is still being written; gone once it is."""
    return run / "weights"


def step_folder(parent: Path, step: int) -> Path:
    """`step-NNNNNNNN` below a folder of checkpoints or exports."""
    return parent / f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step in a folder's name; None for a folder of another kind, temporary ones among them."""
    match = _STEP.fullmatch(name)
    return int(match.group(1)) if match else None


def is_due(step: int, *, last: int, every: int | None) -> bool:
    """Whether something that happens every so many steps, and after the last one, happens after this step."""
    return step == last or (every is not None and step % every == 0)


def to_delete(
    steps: Collection[int], *, keep_last: int, keep_every: int | None = None, best_step: int | None = None
) -> list[int]:
    """The committed steps that retention gives up, oldest first; the best one stays, and each multiple of a number."""
    kept = {best_step} if keep_every is None else {best_step, *(step for step in steps if step % keep_every == 0)}
    return [step for step in sorted(steps)[:-keep_last] if step not in kept]


def rng_file(rank: int) -> str:
    """Where a rank keeps its random state."""
    return f"rng-{rank:05d}.safetensors"


def manifest(
    *,
    step: int,
    world_size: int,
    zero_stage: int,
    precision: str,
    attempt: int,
    versions: dict[str, str],
    **more: Any,
) -> dict[str, Any]:
    """The facts of a checkpoint's manifest; `store.commit` adds the files."""
    return {
        "format": FORMAT,
        "step": step,
        "world_size": world_size,
        "zero_stage": zero_stage,
        "precision": precision,
        "attempt": attempt,
        "versions": versions,
        **more,
    }
