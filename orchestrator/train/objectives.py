"""What a sample teaches: inputs, targets and the loss of a micro-batch.

B samples, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one forward pass, and how much they count in their step."""

    inputs_BT: Tensor
    """int64 token ids; a view, not contiguous."""
    targets_BT: Tensor
    """int64 token ids, one position ahead of the inputs; a view, not contiguous."""
    weight: float
    """The share of the step's target tokens that stands here; 0 for a rank that has run out of samples."""


def causal_lm(ids: npt.NDArray[np.int64], *, target_tokens: int, context: int) -> MicroBatch:
    """Predict each next token: ids [B, T + 1] give T inputs and T targets a sample.

    An empty micro-batch becomes one sample of weight 0: the rank still takes part in the collectives of the pass.
    """
    if not len(ids):
        nothing = torch.zeros((1, context), dtype=torch.int64)
        return MicroBatch(nothing, nothing, 0.0)
    ids_BT1 = torch.from_numpy(ids)
    # Views: widening the ids was the only copy on the way from the shard.
    inputs_BT, targets_BT = ids_BT1[:, :-1], ids_BT1[:, 1:]
    return MicroBatch(inputs_BT, targets_BT, targets_BT.numel() / target_tokens)
