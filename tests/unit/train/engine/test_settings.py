"""DeepSpeed's configuration: what a job says, and nothing that a job or a schedule says elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.job import JobSpec
from orchestrator.train.engine.settings import deepspeed_config

MakeJob = Callable[..., JobSpec]


def config(job: JobSpec, *, on_gpu: bool = False) -> dict[str, Any]:
    stage = job.training.zero.stage
    assert isinstance(stage, int)
    return deepspeed_config(job.training, stage=stage, micro_batch=4, accumulation=3, on_gpu=on_gpu)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_stage_and_the_cut_are_the_plans(tiny_job: MakeJob, stage: int) -> None:
    made = config(tiny_job(f"train.zero.stage={stage}"))
    assert made["zero_optimization"]["stage"] == stage
    assert (made["train_micro_batch_size_per_gpu"], made["gradient_accumulation_steps"]) == (4, 3)
    assert ("stage3_param_persistence_threshold" in made["zero_optimization"]) is (stage == 3)
    assert json.loads(json.dumps(made)) == made


@pytest.mark.parametrize(
    ("precision", "stage", "expected"),
    [("fp32", 0, None), ("fp32", 2, None), ("bf16", 0, None), ("bf16", 1, True), ("bf16", 3, True)],
)
def test_deepspeed_holds_bf16_weights_where_it_shards(
    tiny_job: MakeJob, precision: str, stage: int, expected: bool | None
) -> None:
    made = config(tiny_job(f"train.precision={precision}", f"train.zero.stage={stage}"))
    assert made.get("bf16", {}).get("enabled") is expected
    assert "fp16" not in made


def test_clipping_is_the_jobs(tiny_job: MakeJob) -> None:
    job = tiny_job("train.gradient_clip=0.5")
    assert config(job)["gradient_clipping"] == 0.5
    unclipped = job.model_copy(update={"train": job.training.model_copy(update={"gradient_clip": 0.0})})
    assert config(unclipped)["gradient_clipping"] == 0.0


def test_communication_overlaps_only_where_there_are_streams(tiny_job: MakeJob) -> None:
    overlap = [config(tiny_job(), on_gpu=gpu)["zero_optimization"]["overlap_comm"] for gpu in (False, True)]
    assert overlap == [False, True]


def test_the_optimizer_and_the_rate_have_one_home(tiny_job: MakeJob) -> None:
    assert {"optimizer", "scheduler", "train_batch_size"}.isdisjoint(config(tiny_job()))
