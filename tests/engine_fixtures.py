"""A model, an objective and batches for tests of engines; run as a script, it is one rank of several.

python engine_fixtures.py RENDEZVOUS RANK NUM_RANKS OUT_FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from model.config import ModelConfig
from model.gpt import GPT
from orchestrator.data.load.order import deal, micro_batches
from orchestrator.job_train import Optimizer, Train, Zero
from orchestrator.objectives.causal_lm import LOSS, CausalLM, next_token_batch, no_tokens
from orchestrator.objectives.protocol import Batch, Tensors
from orchestrator.train.engine.pieces import PieceReader, write_state
from orchestrator.train.engine.protocol import Admit, StepStats, TrainEngine
from orchestrator.train.engine.torch_engine import TorchEngine
from orchestrator.train.group import TorchGroup, end_process_after

CONFIG = ModelConfig(vocab_size=61, layers=2, width=32, heads=4, kv_heads=2, hidden=64, context=8)
SAMPLES = 8
RATE = 3e-3
WEIGHTS = "weights.safetensors"
STATS = "stats.json"
STEPS = 10


def settings(**more: Any) -> Train:
    """A job's `train`, in fp32 unless `more` says otherwise."""
    rate = Optimizer(learning_rate=RATE)
    plain = {"steps": 100, "batch_tokens": 64, "precision": "fp32", "zero": Zero(stage=0), "optimizer": rate}
    return Train(**{**plain, **more})


def decoder() -> GPT:
    """The model of most tests: the same each time."""
    return GPT(CONFIG).initialise(1)


def ids_of(step: int) -> torch.Tensor:
    """[SAMPLES, context + 1] tokens of a step."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, CONFIG.vocab_size, (SAMPLES, CONFIG.context + 1), generator=generator)


def step_of(
    engine: TrainEngine,
    step: int,
    *,
    accumulation: int = 1,
    rank: int = 0,
    num_ranks: int = 1,
    rate: float = RATE,
    admit: Admit | None = None,
) -> StepStats:
    """One step on a rank's share of the step's samples."""
    ids, share = ids_of(step).numpy(), deal(SAMPLES, rank, num_ranks)
    batches: list[Batch] = [
        next_token_batch(ids[first:last]) if last > first else no_tokens(CONFIG.context)
        for first, last in micro_batches(*share, accumulation)
    ]
    totals = {LOSS: float(SAMPLES * CONFIG.context)}
    return engine.step(batches, totals=totals, learning_rate=rate, admit=admit)


class Normalised(nn.Module):
    """A network with buffers: kept ones, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 1)
        self.register_buffer("scratch", torch.zeros(1), persistent=False)

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        """[B, 4] to [B]."""
        y_B: torch.Tensor = self.head(self.norm(self.inner(x_BD))).squeeze(1)
        return y_B


class SquaredError:
    """`Objective` of `Normalised`."""

    parts = ("error",)

    def losses(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """As Objective."""
        dtype = next(model.parameters()).dtype
        return {"error": F.mse_loss(model(tensors["x"].to(dtype)).float(), tensors["y"], reduction="sum")}

    def outputs(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """As Objective."""
        return {"logits": model(tensors["x"].to(next(model.parameters()).dtype))}


def points(step: int, rows: int = 6) -> Batch:
    """Points of a step."""
    x_BD = torch.randn(rows, 4, generator=torch.Generator().manual_seed(step))
    return Batch({"x": x_BD, "y": x_BD.sum(1)}, {"error": rows}, rows)


def keep(engine: TrainEngine, folder: Path) -> None:
    """Write what this rank has to keep."""
    if (state := engine.state()) is not None:
        write_state(folder, state)


def whole(engine: TrainEngine, folder: Path) -> Tensors:
    """The whole model from what all ranks have kept."""
    with PieceReader(folder) as reader:
        return engine.whole(reader)


def _run(rank: int, num_ranks: int, folder: Path) -> None:
    group = TorchGroup()
    engine = TorchEngine(decoder(), CausalLM(), settings(ema=0.9), group=group)
    stats = [step_of(engine, step, accumulation=2, rank=rank, num_ranks=num_ranks) for step in range(1, STEPS + 1)]
    losses = [group.sum(stat.losses[LOSS])[0] for stat in stats]
    keep(engine, folder / "state")
    group.gather(None)
    _leave(folder, f"decoder-{rank}", None if rank else whole(engine, folder / "state"), losses, stats)
    engine = TorchEngine(Normalised(), SquaredError(), settings(), group=group)  # type: ignore[arg-type]
    for step in range(3):
        engine.step([points(10 * step + rank)], totals={"error": 6.0 * num_ranks}, learning_rate=RATE)
    probe = engine.outputs(points(99).tensors)["logits"]
    save_file({"logits": probe}, folder / f"buffers-{rank}.safetensors")


def _leave(
    folder: Path, name: str, weights: Tensors | None, losses: Sequence[float], stats: Sequence[StepStats]
) -> None:
    if weights is not None:
        save_file(weights, folder / WEIGHTS)
    told = {"losses": losses, "norms": [stat.grad_norm for stat in stats], "extra": [stat.extra for stat in stats]}
    (folder / f"{name}.json").write_text(json.dumps(told), encoding="utf-8")


def main() -> None:
    """One rank."""
    rendezvous, rank, num_ranks, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(rendezvous, num_ranks), rank=rank, world_size=num_ranks)
    try:
        _run(rank, num_ranks, folder)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    end_process_after(main)
