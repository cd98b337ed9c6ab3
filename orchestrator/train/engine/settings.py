"""DeepSpeed's configuration as plain data. Pure."""

from __future__ import annotations

from typing import Any

from orchestrator.job_train import Offload, Train
from orchestrator.plan.states import BUCKET_NUMBERS


def deepspeed_config(train: Train, *, stage: int, micro_batch: int, accumulation: int, on_gpu: bool) -> dict[str, Any]:
    """The `config` of `deepspeed.initialize` for a job's ZeRO stage, precision and clipping.

    The optimizer is made by us, learning rates come from `schedule`, and losses are weighted before `backward`,
    so nothing of these stands here.
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": train.gradient_clip,
        "steps_per_print": 1 << 30,
        "wall_clock_breakdown": False,
        "zero_allow_untested_optimizer": True,  # torch.optim.AdamW, whose state it partitions all the same
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": on_gpu,  # needs streams, which a CPU has not
            "contiguous_gradients": True,
            "reduce_bucket_size": BUCKET_NUMBERS,
            "allgather_bucket_size": BUCKET_NUMBERS,
        },
    }
    if stage == 3:
        # Smaller parameters stay whole on every rank: gathering them costs more than they take.
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 10_000
    if train.precision == "bf16" and stage > 0:  # without ZeRO the engine computes under autocast
        config["bf16"] = {"enabled": True}
    if train.precision == "fp16":
        # Dynamic loss scaling (Micikevicius et al. 2018): down at once where gradients overflow, up after 1,000 steps.
        config["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000}
    config["zero_optimization"] |= _offload(train.zero.offload, stage)
    return config


def _offload(offload: Offload, stage: int) -> dict[str, Any]:
    """Where ZeRO keeps optimizer state and parameters."""
    found: dict[str, Any] = {}
    for key, device in (("offload_optimizer", offload.optimizer), ("offload_param", offload.parameters)):
        if device != "off" and stage > 0:
            found[key] = {"device": device, "pin_memory": device == "cpu"}
            if device == "nvme":
                found[key]["nvme_path"] = offload.nvme_path
    return found
