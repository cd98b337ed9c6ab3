"""One rank of a group in which a batch goes wrong on one rank, or a bit flips: for test_guard.

python guard_fixtures.py RENDEZVOUS RANK NUM_RANKS FOLDER {skips,flips}
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from engine_fixtures import SAMPLES, Normalised, SquaredError, decoder, ids_of, points, settings
from torch import nn

from orchestrator.data.load.order import deal
from orchestrator.errors import TrainError
from orchestrator.job_train import Guard as Settings
from orchestrator.job_train import Offload, Zero
from orchestrator.objectives.causal_lm import LOSS, CausalLM, next_token_batch
from orchestrator.objectives.protocol import Batch, Tensors
from orchestrator.train.engine.deepspeed_engine import DeepSpeedEngine
from orchestrator.train.engine.protocol import StepStats, TrainEngine
from orchestrator.train.engine.torch_engine import TorchEngine
from orchestrator.train.group import TorchGroup, end_process_after
from orchestrator.train.guarding.admission import Admission
from orchestrator.train.guarding.guard import Anomaly, Guard, Past

GOOD, WRONG, ACCUMULATION = 3, 7, 2
WRONG_RANK = 1
TARGETS = 64.0
GUARD = Settings(non_finite="skip", spike="skip", window_steps=4, replicas_every_steps=1)
FACTORS = (math.nan, 1e4)


class Case(NamedTuple):
    """What trains."""

    engine: str
    stage: int
    precision: str
    offload: str = "off"

    @property
    def name(self) -> str:
        """Of its results."""
        return f"{self.engine}-{self.stage}-{self.precision}" + ("" if self.offload == "off" else "-offload")


CASES = [
    *(Case("torch", 0, precision) for precision in ("fp32", "bf16")),
    *(Case("deepspeed", stage, precision) for stage in range(4) for precision in ("fp32", "bf16")),
    Case("deepspeed", 2, "bf16", "cpu"),
]
FLIPPED = [CASES[0], CASES[1], CASES[2], CASES[7]]


class Poisoned(CausalLM):
    """A loss that is multiplied by something."""

    factor = 1.0

    def losses(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """As Objective."""
        return {part: loss * self.factor for part, loss in super().losses(model, tensors).items()}


@dataclass
class Told:
    """Who is told of anomalies."""

    anomalies: list[Anomaly] = field(default_factory=list)

    def noticed(self, anomaly: Anomaly) -> None:
        """As Noticing."""
        self.anomalies.append(anomaly)


class Trainer:
    """An engine behind a guard."""

    def __init__(self, case: Case, group: TorchGroup) -> None:
        self.objective, self.model, self.group, self.told = Poisoned(), decoder(), group, Told()
        offload = Offload(optimizer=case.offload)  # type: ignore[arg-type]
        zero = Zero(stage=case.stage, offload=offload)
        train = settings(precision=case.precision, zero=zero, ema=0.9 if case.engine == "torch" else None)
        self.engine: TrainEngine = (
            TorchEngine(self.model, self.objective, train, group=group)
            if case.engine == "torch"
            else DeepSpeedEngine(
                self.model,
                self.objective,
                train,
                group=group,
                stage=case.stage,
                micro_batch=2,
                accumulation=ACCUMULATION,
            )
        )
        self.admission = Admission(
            self.engine, group, Guard(GUARD, Past()), self.told, compare_every=GUARD.replicas_every_steps
        )

    def step(self, step: int, *, factor: float = 1.0) -> float:
        """The step's loss; of a wrong one the loss of one rank is multiplied."""
        self.objective.factor = factor if self.group.rank == WRONG_RANK else 1.0
        first, last = deal(SAMPLES, self.group.rank, self.group.num_ranks)
        middle, ids = (first + last) // 2, ids_of(step).numpy()
        batches: list[Batch] = [next_token_batch(ids[first:middle]), next_token_batch(ids[middle:last])]
        admit = self._admit(step)
        stats = self.engine.step(batches, totals={LOSS: TARGETS}, learning_rate=3e-3, admit=admit)
        return self.group.sum(stats.losses[LOSS])[0] / TARGETS

    def _admit(self, step: int) -> Callable[[StepStats], bool]:
        def admit(stats: StepStats) -> bool:
            loss = self.group.sum(stats.losses[LOSS])[0] / TARGETS
            return self.admission.admits(step, loss=loss, grad_norm=stats.grad_norm, samples=np.arange(SAMPLES))

        return admit

    def bits(self) -> dict[str, Any]:
        """Copies of all that an update changes on this rank."""
        held: dict[str, Any] = {}
        if not isinstance(self.engine, DeepSpeedEngine) or self.engine.checksum() is not None:
            held = {f"shown/{name}": p.detach().clone() for name, p in self.model.named_parameters()}
        if (state := self.engine.state()) is not None:
            held |= {name: piece.values_N.detach().clone() for name, piece in state.pieces.items()} | dict(
                state.numbers
            )
        # What a step tells of its gradient counts every step.
        return {name: value for name, value in held.items() if not name.startswith("statistics")}


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what is not the same to the bit."""
    return sorted(name for name in one.keys() | other.keys() if not _same(one.get(name), other.get(name)))


def _same(one: Any, other: Any) -> bool:
    is_tensor = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    return torch.equal(one, other) if is_tensor else bool(one == other)


def skipped(case: Case, group: TorchGroup) -> dict[str, Any]:
    """Wrong steps between good ones, beside the same without them."""
    trainer, unharmed = Trainer(case, group), Trainer(case, group)
    for step in range(1, GOOD + 1):
        trainer.step(step)
        unharmed.step(step)
    changed: list[str] = []
    losses: list[tuple[float, float]] = []
    for number, factor in enumerate(FACTORS):
        before = trainer.bits()
        trainer.step(WRONG + number, factor=factor)
        changed += differing(before, trainer.bits())
        losses.append((trainer.step(GOOD + 1 + number), unharmed.step(GOOD + 1 + number)))
    return {
        "verdicts": [(a.step, a.verdict.kind, a.verdict.action) for a in trainer.told.anomalies],
        "unharmed": len(unharmed.told.anomalies),
        "changed": changed,
        "differ": differing(trainer.bits(), unharmed.bits()),
        "losses": losses,
    }


def buffers(group: TorchGroup) -> dict[str, Any]:
    """A wrong step of a network whose buffers every pass changes."""
    model = Normalised()
    engine = TorchEngine(model, SquaredError(), settings(), group=group)  # type: ignore[arg-type]
    totals = {"error": 6.0 * group.num_ranks}
    engine.step([points(group.rank)], totals=totals, learning_rate=3e-3)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    wrong = points(10)
    wrong.tensors["x"].fill_(math.nan)
    engine.step([wrong], totals=totals, learning_rate=3e-3, admit=lambda _: False)
    return {"changed": differing(before, dict(model.named_buffers()))}


def flipped(case: Case, group: TorchGroup) -> dict[str, Any]:
    """A bit of one weight of one rank flips between two steps."""
    trainer = Trainer(case, group)
    trainer.step(1)
    trainer.admission.before_saving(1)
    if group.rank == WRONG_RANK:
        weight = next(p for p in trainer.model.parameters() if p.dim() == 2)
        held = trainer.engine._flat.master_N if case.engine == "torch" else weight.data.view(-1)  # type: ignore[attr-defined]
        held[5:6].view(torch.uint8)[0] ^= 1
    try:
        trainer.step(2)
    except TrainError as error:
        return {"error": error.message}
    return {"error": None}


def main() -> None:
    """One rank."""
    rendezvous, rank, num_ranks, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(rendezvous, num_ranks), rank=rank, world_size=num_ranks)
    group = TorchGroup()
    if sys.argv[5] == "skips":
        found = {case.name: skipped(case, group) for case in CASES} | {"buffers": buffers(group)}
    else:
        found = {case.name: flipped(case, group) for case in FLIPPED}
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    end_process_after(main)
