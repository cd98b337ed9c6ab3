"""Small encoders, their twins in transformers, and rows on disk: what tests of encoders' objectives share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from model.config import HeadConfig, ModelConfig
from model.families import build
from model.huggingface import to_hf_config, to_hf_state
from orchestrator.data.labelled.shards import write_rows
from orchestrator.data.load.mixture import Part
from orchestrator.data.load.next_sentence import PairIds
from orchestrator.data.load.order import deal, micro_batches
from orchestrator.objectives.protocol import Batch, Feed, Objective
from orchestrator.objectives.rows import RowTable
from orchestrator.objectives.scores.result import Scores

FRAME = PairIds(cls=2, sep=3, pad=0)
MASK_ID, VOCAB = 4, 64


def config(context: int = 32) -> ModelConfig:
    return ModelConfig(
        family="bert", vocab_size=VOCAB, layers=2, width=32, heads=2, kv_heads=2, hidden=64, context=context
    )


def encoder(head: HeadConfig, *, context: int = 32, seed: int = 0) -> nn.Module:
    return build(config(context), head).initialise(seed)


def twin(model: Any) -> nn.Module:
    """The same network with the same weights, of transformers."""
    settings = to_hf_config(model.config, model.head, bos_token_id=None, eos_token_id=3, dtype="float32")
    theirs = getattr(transformers, settings["architectures"][0])(transformers.BertConfig(**settings))
    missing, unexpected = theirs.load_state_dict(
        to_hf_state(model.state_dict(), model.config, model.head), strict=False
    )
    assert not unexpected
    assert all("decoder" in name or "position_ids" in name for name in missing), missing
    theirs.tie_weights()
    return theirs.eval()


def table(folder: Path, shards: list[Mapping[str, Any]], *, parts: list[tuple[str, float | None, int]] | None = None):
    """Rows as a table; `parts` are (name, weight, number of shards), without them there is one."""
    paths = [folder / f"{i}.arrow" for i in range(len(shards))]
    for path, columns in zip(paths, shards, strict=True):
        write_rows(path, columns, {})
    made, used = [], 0
    for name, weight, count in parts or [("all", None, len(paths))]:
        made.append(Part(name, weight, paths[used : used + count]))
        used += count
    return RowTable(made)


def ids(rng: np.random.Generator, length: int) -> np.ndarray:
    return rng.integers(5, VOCAB, length).astype(np.uint16)


def read_step(feed: Feed, step: int, *, num_ranks: int, accumulation: int = 1) -> list[Batch]:
    """All micro-batches of a step, rank by rank."""
    return [
        feed.read(step, first, last)
        for rank in range(num_ranks)
        for first, last in micro_batches(*deal(feed.samples_per_step, rank, num_ranks), accumulation)
    ]


def mean_loss(objective: Objective, model: nn.Module, batches: list[Batch]) -> torch.Tensor:
    """As a step has it: by part the sums of all batches by the targets of all."""
    sums = [objective.losses(model, batch.tensors) for batch in batches]
    counts = {part: sum(batch.counts[part] for batch in batches) for part in objective.parts}
    return torch.stack([sum(own[part] for own in sums) / counts[part] for part in objective.parts]).sum()


def overfit(objective: Objective, model: nn.Module, batch: Batch, *, steps: int = 60) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        mean_loss(objective, model, [batch]).backward()
        optimizer.step()
    model.eval()


@torch.no_grad()
def score(objective: Objective, model: nn.Module, shares: list[list[Batch]]) -> Scores:
    """The scores of some ranks' batches together."""
    states = []
    for batches in shares:
        scorer = objective.scorer()
        for batch in batches:
            losses = {part: float(value) for part, value in objective.losses(model, batch.tensors).items()}
            scorer.add(batch, losses, objective.outputs(model, batch.tensors))
        states.append(scorer.state())
    return objective.scorer().result(states)
