"""A worker whose loss is no number on certain batches: for test_guard.

python poisoned_worker.py BATCH[,BATCH] --run RUN
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import torch
from torch import nn

from orchestrator.objectives.causal_lm import CausalLM, TokenFeed
from orchestrator.objectives.protocol import Batch, Tensors
from orchestrator.train import worker

_read, _losses = TokenFeed.read, CausalLM.losses


def poison(batches: list[int]) -> None:
    """From now on the losses of these batches are no numbers."""

    def read(self: TokenFeed, step: int, first: int, last: int) -> Batch:
        found = _read(self, step, first, last)
        return replace(found, tensors=found.tensors | {"poison": torch.tensor(step in batches)})

    def losses(self: CausalLM, model: nn.Module, tensors: Tensors) -> Tensors:
        factor = math.nan if bool(tensors.get("poison", False)) else 1.0
        return {part: loss * factor for part, loss in _losses(self, model, tensors).items()}

    TokenFeed.read = read  # type: ignore[method-assign]
    CausalLM.losses = losses  # type: ignore[method-assign]


if __name__ == "__main__":
    poison([int(batch) for batch in sys.argv.pop(1).split(",")])
    worker.main()
