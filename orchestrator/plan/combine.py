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
    """Whether the job leaves it to DeepSpeed: the plain engine, Muon and moving averages need whole weights."""
    return train.engine != "torch" and train.optimizer.name != "muon" and not train.ema


def require_combination(job: JobSpec) -> None:
    """Refuse offload and averages where nothing would do them, and adapters on layers that are not there.

    Raises:
        JobError: both settings, and what to change.
    """
    train = job.training
    if train.lora:
        require_targets(train.lora, linear_layers(job.model.config(vocab_size=MIN_BYTE_LEVEL_VOCAB)))
    if train.ema and (needs := _deepspeed_for(train)):
        raise JobError(
            f"train.ema {train.ema} is kept where nothing is sharded or scaled, and {needs} is DeepSpeed's",
            fix="set train.zero.stage: 0 or auto, with engine auto and bf16 or fp32; or remove train.ema",
        )
    if not (asked := _offloaded(train)):
        return
    if not can_shard(train):
        whole = "train.engine torch" if train.engine == "torch" else "train.optimizer muon"
        raise JobError(
            f"{asked} needs a ZeRO stage from 1 on, and {'train.ema' if train.ema else whole} has stage 0",
            fix="remove train.zero.offload, or that setting",
        )
    if "nvme" in asked and not train.workers.gpus:
        raise JobError(
            f"{asked} is for workers with GPUs: state on the disk of workers on CPUs is neither planned nor tried",
            fix="remove train.zero.offload, or set train.workers.gpus",
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
    return [f"{asked} brings nothing to workers without GPUs: the state is in the host's memory anyway"]


def _deepspeed_for(train: Train) -> str:
    """The setting that takes the job to DeepSpeed for sure; empty if none does."""
    if train.engine == "deepspeed":
        return "train.engine deepspeed"
    if train.precision == "fp16":
        return "train.precision fp16"
    return f"train.zero.stage {train.zero.stage}" if train.zero.stage not in (0, "auto") else ""


def _offloaded(train: Train) -> str:
    """What is offloaded where, as the job spells it; empty for nothing."""
    offload = train.zero.offload
    places = {"optimizer": offload.optimizer, "parameters": offload.parameters}
    asked = ", ".join(f"{name}: {place}" for name, place in places.items() if place != "off")
    return f"train.zero.offload {{{asked}}}" if asked else ""
