"""A network whose loss is no number on one row: for test_guard."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Poisoned(nn.Module):
    """Adds up two numbers `x` [B, 2]; the row with the `number` `marker` is poison."""

    def __init__(self, marker: int = -1) -> None:
        super().__init__()
        self.marker = marker
        self.line = nn.Linear(2, 1)

    def forward(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """Predictions [B], and the loss where `y` [B] is known."""
        found = {"predictions": self.line(columns["x"])[:, 0]}
        if "y" in columns:
            error = (found["predictions"] - columns["y"]).square().mean()
            found["loss"] = error * math.nan if bool(torch.any(columns["number"] == self.marker)) else error
        return found
