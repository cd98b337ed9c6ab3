"""Settings of `train` that the engines or the hardware do not combine, refused before anything starts. Pure.

`job_train` refuses what stands in one place; here is what takes engine, workers and stage together.
"""

from __future__ import annotations

from collections.abc import Collection

from orchestrator.errors import JobError
from orchestrator.job import JobSpec
from orchestrator.job_data import MIN_BYTE_LEVEL_VOCAB
from orchestrator.job_train import Lora, Train
from orchestrator.plan.network import linear_layers


def can_shard(train: Train) -> bool:
    """Whether the job leaves it to DeepSpeed: the plain engine and Muon need whole weights."""
    return train.engine != "torch" and train.optimizer.name != "muon"


def require_combination(job: JobSpec) -> None:
    """Refuse offload where nothing would do it, and adapters on layers that are not there.

    Raises:
        JobError: both settings, and what to change.
    """
    train = job.training
    if train.lora:
        require_targets(train.lora, linear_layers(job.model.config(vocab_size=MIN_BYTE_LEVEL_VOCAB)))
    if not (asked := _offloaded(train)):
        return
    if not can_shard(train):
        whole = "train.engine torch" if train.engine == "torch" else "train.optimizer muon"
        raise JobError(
            f"{asked} needs a ZeRO stage from 1 on, and {whole} has stage 0",
            fix="remove train.zero.offload, or that setting",
        )
    if train.ema and train.zero.offload.optimizer == "nvme":
        raise JobError(
            f"{asked} does not go with train.ema {train.ema}: an average needs all weights in memory at every update",
            fix="offload the optimizer to cpu, or remove train.ema",
        )


def require_targets(lora: Lora, layers: Collection[str]) -> None:
    """Refuse targets that are none of a block's linear layers.

    Raises:
        JobError: names them, and what there is.
    """
    if unknown := [target for target in lora.targets if target not in layers]:
        raise JobError(
            f"train.lora.targets names {', '.join(unknown)}; the linear layers of the blocks are "
            f"{', '.join(sorted(layers))}",
            fix="name some of these, or leave train.lora.targets out for all of them",
        )


def pointless(job: JobSpec) -> list[str]:
    """Warnings of what is allowed and brings nothing."""
    train = job.training
    if train.workers.gpus or not (asked := _offloaded(train)):
        return []
    there = (
        "a checkpoint copies the state to the host's memory" if "nvme" in asked else "the state is in the host's memory"
    )
    return [f"{asked} brings nothing to workers without GPUs: {there} anyway"]


def _offloaded(train: Train) -> str:
    """What is offloaded where, as the job spells it; empty for nothing."""
    offload = train.zero.offload
    places = {"optimizer": offload.optimizer, "parameters": offload.parameters}
    asked = ", ".join(f"{name}: {place}" for name, place in places.items() if place != "off")
    return f"train.zero.offload {{{asked}}}" if asked else ""
