"""Vectors that tell an embedded token where it stands: learned, or sinusoids. Rotary positions: `attention`.

Shapes: B rows, T tokens, S positions, D width.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from model.config import ModelConfig

_WAVELENGTH = 10_000.0


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def sinusoidal_table(length: int, width: int, *, device: torch.device) -> Tensor:
    """Sines (even columns) and cosines (odd) of positions 0 to length - 1, fp32 [S, D] (Vaswani et al. 2017).

    They are divided by sqrt(D). The paper multiplies the words by it instead, which is the same up to a factor that
    the next norm takes out, and which layouts of other libraries do not have. The table is kept, and a constant of
    compiled networks, as `rotary_tables` are.
    """
    return _sinusoidal_table(length, width, device)


@lru_cache(maxsize=16)
def _sinusoidal_table(length: int, width: int, device: torch.device) -> Tensor:
    # What is made under inference_mode is barred from training for ever, and this table outlives its caller.
    with torch.inference_mode(False):
        exponents = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width
        positions_S = torch.arange(length, dtype=torch.float32, device="cpu")
        angles = torch.outer(positions_S, 1.0 / _WAVELENGTH**exponents)
        waves_SD = torch.stack((angles.sin(), angles.cos()), -1).flatten(1)[:, :width]
        return (waves_SD / math.sqrt(width)).to(device)


class PositionTable(nn.Module):
    """A vector for each position, added to the words. Sinusoids are no weights: they follow from the config."""

    def __init__(self, config: ModelConfig) -> None:
        """`table` is None for sinusoids."""
        super().__init__()
        self.length, self.width = config.context, config.width
        self.table = nn.Embedding(self.length, self.width) if config.positions == "learned" else None

    def forward(self, x_BTD: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """`x_BTD` with its positions added: `positions_BT` (int64), or 0 to T - 1 in each row.

        Raises:
            ValueError: more tokens than positions.
        """
        tokens = x_BTD.shape[1]
        if tokens > self.length:
            raise ValueError(f"{tokens} tokens exceed the context of {self.length}")
        if positions_BT is None:
            positions_BT = torch.arange(tokens, device=x_BTD.device)[None]
        if self.table is None:
            table_SD: Tensor = sinusoidal_table(self.length, self.width, device=x_BTD.device)
            return x_BTD + table_SD[positions_BT].type_as(x_BTD)
        vectors_BTD: Tensor = self.table(positions_BT)
        return x_BTD + vectors_BTD
