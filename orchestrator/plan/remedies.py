"""What would make a job fit. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from orchestrator.job_train import Train
from orchestrator.plan.combine import can_shard
from orchestrator.plan.memory import memory_of
from orchestrator.plan.network import Case
from orchestrator.plan.sizes import human_bytes

_MOST_WORKERS = 16
"""Times as many: beyond that nobody asks for another plan."""


def remedy(case: Case, usable_bytes: int) -> str:
    """The first change that fits: single ones in the order of what they cost, then all together, then more workers."""
    last = case
    for name, changed in _changes(case):
        last, peak = changed, memory_of(changed).peak
        if peak <= usable_bytes:
            return f"{name} would take {human_bytes(peak)}"
    return f"no change of these helps: use workers with {human_bytes(memory_of(last).peak)} or more, or a smaller model"


def _changes(case: Case) -> Iterator[tuple[str, Case]]:
    single = list(_single(case))
    yield from single
    names: list[str] = []
    together = case
    for name, _ in single:
        names = [*[n for n in names if n.partition(":")[0] != name.partition(":")[0]], name]
    for name in names:
        together = next(changed for found, changed in _single(together) if found == name)
    if len(names) > 1:
        yield " and ".join(names), together
    if together.stage == 3:
        for times in (2, 4, 8, _MOST_WORKERS):
            workers = case.workers * times
            yield " and ".join([*names, f"{workers} workers"]), replace(together, workers=workers)


def _single(case: Case) -> Iterator[tuple[str, Case]]:
    """One change each: what costs least speed comes first."""
    train = case.train
    if case.micro_batch > 1:
        passes = case.accumulation * case.micro_batch
        yield "train.micro_batch: 1", replace(case, micro_batch=1, accumulation=passes)
    if case.workers > 1 and can_shard(train):
        for stage in range(case.stage + 1, 4):
            yield f"train.zero.stage: {stage}", replace(case, stage=stage)
    if not train.activation_checkpointing:
        yield "train.activation_checkpointing: true", _with(case, {"activation_checkpointing": True})
    if case.on_gpu and train.zero.offload.optimizer == "off" and can_shard(train):
        offload = train.zero.offload.model_copy(update={"optimizer": "cpu"})
        moved = _with(case, {"zero": train.zero.model_copy(update={"offload": offload})})
        yield "train.zero.offload.optimizer: cpu", replace(moved, stage=max(1, case.stage))


def _with(case: Case, changes: dict[str, object]) -> Case:
    train: Train = case.train.model_copy(update=changes)
    return replace(case, network=replace(case.network, train=train))
