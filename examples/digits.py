"""Handwriting in small: a convolutional network over images of 8 x 8 pixels. `jobs/digits.yaml` trains it.

B images, C channels.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

_SIDE = 8
_WHITE = 15.0


class Digits(nn.Module):
    """Reads `pixels` [B, 64], 0 to 15, line after line; predicts the probability of each digit [B, 10].

    Args:
        channels: C of the first layer; the second has twice as many.
    """

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * channels * (_SIDE // 4) ** 2, 10),
        )

    def forward(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        images = columns["pixels"].unflatten(-1, (1, _SIDE, _SIDE)) / _WHITE
        logits_BL = self.layers(images)
        found = {"predictions": logits_BL.softmax(-1)}
        if "digit" in columns:
            found["loss"] = functional.cross_entropy(logits_BL, columns["digit"])
        return found
