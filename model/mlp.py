"""The two-layer networks that work on each token alone, and the norms around them. Shapes: B, T, D width, F hidden."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.cpu_elementwise import rms_norm, trains_on_cpu


class SwiGLU(nn.Module):
    """A gated two-layer network for each token (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        """Projections without biases."""
        super().__init__()
        self.gate = nn.Linear(config.width, config.hidden, bias=False)
        self.up = nn.Linear(config.width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        y_BTD: Tensor = self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))
        return y_BTD


class GeluMLP(nn.Module):
    """A two-layer network for each token around GELU (Hendrycks and Gimpel 2016): gpt2 takes its tanh form."""

    def __init__(self, config: ModelConfig) -> None:
        """Projections with biases."""
        super().__init__()
        self.approximate = "tanh" if config.family == "gpt2" else "none"
        self.up = nn.Linear(config.width, config.hidden)
        self.down = nn.Linear(config.hidden, config.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        y_BTD: Tensor = self.down(F.gelu(self.up(x_BTD), approximate=self.approximate))
        return y_BTD


def make_mlp(config: ModelConfig) -> SwiGLU | GeluMLP:
    """The family's network for each token."""
    return GeluMLP(config) if config.biased else SwiGLU(config)


class RMSNorm(nn.RMSNorm):
    """torch's, but for training on a CPU, where torch makes it of eight operations each way."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        if trains_on_cpu(x_BTD) and x_BTD.dtype == self.weight.dtype and self.eps is not None:
            return rms_norm(x_BTD, self.weight, self.eps)
        return super().forward(x_BTD)


def make_norm(config: ModelConfig) -> nn.LayerNorm | nn.RMSNorm:
    """The family's norm over D; both kinds compute in fp32 whatever the type of their input."""
    kind = nn.LayerNorm if config.biased else RMSNorm
    return kind(config.width, eps=config.norm_eps)
