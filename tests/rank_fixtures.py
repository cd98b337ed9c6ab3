"""Ranks that train together, one of them slowly; run as a script, it is one rank of several.

python rank_fixtures.py RENDEZVOUS RANK NUM_RANKS OUT_FOLDER
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from engine_fixtures import CONFIG, SAMPLES, decoder, settings
from torch import nn

from orchestrator.checkpoint.layout import Progress
from orchestrator.data.load.loader import TrainLoader
from orchestrator.data.load.mixture import Part
from orchestrator.data.shards import write_shard
from orchestrator.job_train import Train
from orchestrator.objectives.causal_lm import CausalLM, TokenFeed
from orchestrator.objectives.protocol import Batch, Tensors
from orchestrator.train.engine.torch_engine import TorchEngine
from orchestrator.train.group import TorchGroup, end_process_after
from orchestrator.train.loop import Batching, Hooks, Loop

SLOW_RANK = 1
SLEEP_S = 0.15
STEPS, LOGGED = 8, 2


class SlowPasses(CausalLM):
    """Takes its time for each loss."""

    def losses(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """As Objective."""
        time.sleep(SLEEP_S)
        return super().losses(model, tensors)


class SlowFeed(TokenFeed):
    """Takes its time for each micro-batch, in the reading thread."""

    def read(self, step: int, first: int, last: int) -> Batch:
        """As Feed."""
        time.sleep(SLEEP_S)
        return super().read(step, first, last)


@dataclass
class Kept(Hooks):
    """Keeps the lines."""

    lines: list[dict[str, Any]] = field(default_factory=list)

    def on_step(self, line: dict[str, Any]) -> None:
        """As Hooks."""
        self.lines.append(line)


def feed_of(folder: Path, *, slow: bool = False) -> TokenFeed:
    """Samples of random tokens."""
    path = folder / "tokens.arrow"
    write_shard(path, [np.random.default_rng(0).integers(0, CONFIG.vocab_size, 900, dtype=np.uint16)])
    loader = TrainLoader([Part("all", None, [path])], context=CONFIG.context, samples_per_step=SAMPLES, seed=1)
    return (SlowFeed if slow else TokenFeed)(loader, samples_per_step=SAMPLES)


def train_settings() -> Train:
    """A few steps, with a line of the log for every other one."""
    return settings(steps=STEPS, log_every_steps=LOGGED)


def lines_of(group: TorchGroup, objective: CausalLM, feed: TokenFeed) -> list[dict[str, Any]]:
    """What a rank's loop tells of its steps, each of two micro-batches."""
    train, kept = train_settings(), Kept()
    engine = TorchEngine(decoder(), objective, train, group=group)
    batching = Batching(-(-SAMPLES // group.num_ranks // 2), 2)
    Loop(engine, group, train, batching, feed, None, kept).run(Progress())
    return kept.lines


def main() -> None:
    """One rank."""
    rendezvous, rank, num_ranks, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(rendezvous, num_ranks), rank=rank, world_size=num_ranks)
    own, is_slow = folder / f"rank-{rank}", rank == SLOW_RANK
    own.mkdir()
    try:
        group = TorchGroup()
        told = {
            "passes": lines_of(group, SlowPasses() if is_slow else CausalLM(), feed_of(own)),
            "data": lines_of(group, CausalLM(), feed_of(own, slow=is_slow)),
        }
    finally:
        dist.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    end_process_after(main)
