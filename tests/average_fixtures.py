"""One rank of a group that trains with a moving average of its weights: for test_average.

python average_fixtures.py RENDEZVOUS RANK NUM_RANKS FOLDER [FROM]

At every ZeRO stage the group trains, evaluates in between and saves; or it goes on FROM the folder in which another
group has saved, and leaves what it holds then. What its steps have told is in FOLDER/STAGE/told-RANK.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from engine_fixtures import SAMPLES, decoder, ids_of, keep, settings, step_of, whole
from safetensors.torch import save_file

from orchestrator.data.load.order import deal
from orchestrator.objectives.causal_lm import LOSS, CausalLM, next_token_batch
from orchestrator.train.engine.deepspeed_engine import DeepSpeedEngine
from orchestrator.train.engine.protocol import TrainEngine
from orchestrator.train.engine.torch_engine import TorchEngine
from orchestrator.train.group import TorchGroup, end_process_after

DECAY = 0.8
BEFORE, AFTER = 10, 10
STAGES = (0, 1, 2, 3)
PASSES = 4
"""Of a step, over all ranks: so one rank and two measure the same micro-batches but for whose they are."""
PROBE = {"input_ids": ids_of(99)[:, :-1]}


def engine_of(stage: int | None, group: TorchGroup, **more: Any) -> TrainEngine:
    """Of a ZeRO stage; None: the plain engine."""
    train = settings(**{"ema": DECAY, "zero": {"stage": stage or 0}, **more})
    if stage is None:
        return TorchEngine(decoder(), CausalLM(), train, group=group)
    accumulation = PASSES // group.num_ranks
    return DeepSpeedEngine(
        decoder(), CausalLM(), train, group=group, stage=stage, micro_batch=2, accumulation=accumulation
    )


def train(engine: TrainEngine, group: TorchGroup, steps: range) -> list[dict[str, Any]]:
    """What each step tells; after each the group evaluates, which must change nothing."""
    told = []
    for step in steps:
        ranks = {"rank": group.rank, "num_ranks": group.num_ranks}
        stats = step_of(engine, step, accumulation=PASSES // group.num_ranks, **ranks)  # type: ignore[arg-type]
        own = next_token_batch(ids_of(50).numpy()[slice(*deal(SAMPLES, group.rank, group.num_ranks))])
        losses = stats.losses[LOSS], engine.evaluate(own, outputs=False).losses[LOSS]
        loss, evaluated = group.sum(*losses)
        told.append({"loss": loss, "evaluated": evaluated, "norm": stats.grad_norm, **stats.extra})
    return told


def leave(engine: TrainEngine, group: TorchGroup, folder: Path) -> None:
    """The state of all ranks, and on rank 0 the weights and the outputs that come of it."""
    outputs = engine.outputs(PROBE)
    keep(engine, folder / "state")
    group.gather(None)
    if group.rank == 0:
        save_file(whole(engine, folder / "state"), folder / "weights.safetensors")
        save_file(outputs, folder / "outputs.safetensors")
    group.gather(None)


def main() -> None:
    """One rank."""
    rendezvous, rank, num_ranks, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    begun = Path(sys.argv[5]) if len(sys.argv) > 5 else None
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(rendezvous, num_ranks), rank=rank, world_size=num_ranks)
    group = TorchGroup()
    for stage in STAGES:
        engine, own = engine_of(stage, group), folder / str(stage)
        own.mkdir(exist_ok=True)
        if begun is not None:
            engine.load(begun / str(stage) / "state")
        first = 1 if begun is None else BEFORE + 1
        told = train(engine, group, range(first, first + (BEFORE if begun is None else AFTER)))
        leave(engine, group, own)
        if begun is None:  # and as if nothing had been
            told += train(engine, group, range(BEFORE + 1, BEFORE + AFTER + 1))
        (own / f"told-{rank}.json").write_text(json.dumps(told), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    end_process_after(main)
