"""One rank of a group that goes on from states of other groups: for test_reshaping.

python reshaping_fixtures.py RENDEZVOUS RANK NUM_RANKS FOLDER [FROM]

For every case the group trains some steps and saves, or goes on FROM the folder in which another group has saved; the
losses that follow are left in FOLDER by rank 0.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from engine_fixtures import RATE, decoder, keep, settings, step_of

from orchestrator.job_train import Optimizer, Train, Zero
from orchestrator.objectives.causal_lm import LOSS, CausalLM
from orchestrator.train.engine.deepspeed_engine import DeepSpeedEngine
from orchestrator.train.group import TorchGroup, end_process_after

BEFORE, AFTER = 3, 3
LOSSES = "losses.json"
TARGETS = 64.0


class Case(NamedTuple):
    """What a group trains."""

    stage: int
    precision: str
    optimizer: str

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"stage-{self.stage}-{self.precision}-{self.optimizer}"

    @property
    def crossed(self) -> Case | None:
        """The same training at another stage."""
        return self._replace(stage=(self.stage + 2) % 4) if self in CASES[:4] else None

    @property
    def train(self) -> Train:
        """The job's section."""
        optimizer = Optimizer(name=self.optimizer, learning_rate=RATE)  # type: ignore[arg-type]
        zero = Zero(stage=self.stage)  # type: ignore[arg-type]
        return settings(precision=self.precision, zero=zero, optimizer=optimizer)


CASES = [
    *(Case(stage, "fp32", "adamw") for stage in range(4)),
    *(Case(stage, "bf16", "adamw") for stage in (0, 2, 3)),
    Case(2, "fp32", "sgd"),
    Case(3, "fp32", "lion"),
]


def engine_of(case: Case, group: TorchGroup) -> DeepSpeedEngine:
    return DeepSpeedEngine(
        decoder(), CausalLM(), case.train, group=group, stage=case.stage, micro_batch=4, accumulation=1
    )


def losses(engine: DeepSpeedEngine, group: TorchGroup, steps: range) -> Iterator[float]:
    """Of each step, over all ranks, a token."""
    for step in steps:
        stats = step_of(engine, step, rank=group.rank, num_ranks=group.num_ranks)  # type: ignore[arg-type]
        yield group.sum(stats.losses[LOSS])[0] / TARGETS


def main() -> None:
    """One rank."""
    rendezvous, rank, num_ranks, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    begun = Path(sys.argv[5]) if len(sys.argv) > 5 else None
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(rendezvous, num_ranks), rank=rank, world_size=num_ranks)
    group, found = TorchGroup(), dict[str, list[float]]()
    for case in CASES:
        engine = engine_of(case, group)
        if begun is None:
            list(losses(engine, group, range(1, BEFORE + 1)))
            keep(engine, folder / case.name)
        else:
            if (other := case.crossed) is not None:
                engine.load(begun / other.name)
                found[f"crossed-{case.name}"] = list(losses(engine, group, range(BEFORE + 1, BEFORE + AFTER + 1)))
            engine.load(begun / case.name)
            keep(engine, folder / case.name)  # as it was taken up
        dist.barrier()
        found[case.name] = list(losses(engine, group, range(BEFORE + 1, BEFORE + AFTER + 1)))
    if rank == 0:
        (folder / LOSSES).write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    end_process_after(main)
