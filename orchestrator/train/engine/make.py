"""Which engine trains a job."""

from __future__ import annotations

from torch import nn

from orchestrator.errors import JobError
from orchestrator.job_train import Train
from orchestrator.objectives.protocol import Objective
from orchestrator.train.engine.protocol import TrainEngine
from orchestrator.train.engine.torch_engine import TorchEngine
from orchestrator.train.group import TorchGroup


def make_engine(
    model: nn.Module,
    objective: Objective,
    train: Train,
    *,
    group: TorchGroup,
    stage: int,
    micro_batch: int,
    accumulation: int,
) -> TrainEngine:
    """The engine of a rank; `stage` of ZeRO is the plan's. DeepSpeed is imported where it is needed only."""
    if uses_torch(train, stage):
        try:
            return TorchEngine(model, objective, train, group=group)
        except ValueError as error:
            raise JobError(str(error), fix="choose another train.optimizer, or other layers to train") from None
    from orchestrator.train.engine.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(
        model, objective, train, group=group, stage=stage, micro_batch=micro_batch, accumulation=accumulation
    )


def uses_torch(train: Train, stage: int) -> bool:
    """Whether the plain engine does it: it shards nothing."""
    return train.engine != "deepspeed" and stage == 0
