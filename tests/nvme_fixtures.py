"""One rank of a group that trains with the optimizer's state on a disk: for test_nvme.

python nvme_fixtures.py RENDEZVOUS RANK NUM_RANKS FOLDER [FROM]

Trains some steps at ZeRO stage 3, saves, and goes on; or goes on FROM the folder in which another group has saved. The
losses of the later steps are left in FOLDER/losses.json, which says of what was in memory instead, too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from engine_fixtures import SAMPLES, keep, settings, step_of

from model.config import ModelConfig
from model.gpt import GPT
from orchestrator.objectives.causal_lm import LOSS, CausalLM
from orchestrator.train.engine.deepspeed_engine import DeepSpeedEngine
from orchestrator.train.group import TorchGroup, end_process_after

CONFIG = ModelConfig(vocab_size=61, layers=2, width=256, heads=4, kv_heads=2, hidden=512, context=8)
"""Large enough: what is below a megabyte a worker is never moved."""
BEFORE, AFTER = 3, 3
LOSSES = "losses.json"


def engine_of(place: str, group: TorchGroup, folder: Path, *, precision: str = "fp32") -> DeepSpeedEngine:
    """With the optimizer's state on `nvme`, or `off`: in memory."""
    offload = {"optimizer": place, "nvme_path": str(folder / "disk")}
    train = settings(zero={"stage": 3, "offload": offload}, precision=precision)
    model = GPT(CONFIG).initialise(1)
    return DeepSpeedEngine(
        model, CausalLM(), train, group=group, stage=3, micro_batch=2, accumulation=SAMPLES // 2 // group.num_ranks
    )


def losses(engine: DeepSpeedEngine, group: TorchGroup, steps: range) -> list[float]:
    """Of each step, over all ranks."""
    ranks = {"rank": group.rank, "num_ranks": group.num_ranks, "accumulation": SAMPLES // 2 // group.num_ranks}
    return [group.sum(step_of(engine, step, **ranks).losses[LOSS])[0] for step in steps]  # type: ignore[arg-type]


def main() -> None:
    """One rank."""
    rendezvous, rank, num_ranks, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    begun = Path(sys.argv[5]) if len(sys.argv) > 5 else None
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(rendezvous, num_ranks), rank=rank, world_size=num_ranks)
    group, found = TorchGroup(), dict[str, list[float]]()
    for place in ("nvme", "off"):
        engine = engine_of(place, group, folder)
        if begun is None:
            found[f"{place}-before"] = losses(engine, group, range(1, BEFORE + 1))
            keep(engine, folder / place)
        else:
            engine.load(begun / place)
            keep(engine, folder / place)  # as it was taken up
        group.gather(None)
        found[place] = losses(engine, group, range(BEFORE + 1, BEFORE + AFTER + 1))
    if rank == 0:
        (folder / LOSSES).write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    end_process_after(main)
