"""An encoder: tokens in, a vector for each of them out, which has seen all the others. Its heads: `heads`.

Shapes: B rows, T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.attention import Attention
from model.config import ModelConfig
from model.mlp import make_mlp, make_norm
from model.positions import PositionTable
from model.recompute import run_block

_INIT_STD = 0.02


class EncoderBlock(nn.Module):
    """One layer: attention, then an MLP, each added to its input and followed by a norm."""

    def __init__(self, config: ModelConfig) -> None:
        """Attention looks both ways, since the family is an encoder's."""
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = make_norm(config)
        self.mlp = make_mlp(config)
        self.mlp_norm = make_norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, mask_B11T: Tensor | None = None) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, mask_B1TS=mask_B11T)))
        x_BTD = self.mlp_norm(x_BTD + self.dropout(self.mlp(x_BTD)))
        return x_BTD


class Bert(nn.Module):
    """BERT's encoder (Devlin et al. 2018). Like `GPT` it has no buffers."""

    def __init__(self, config: ModelConfig, *, pooler: bool = True) -> None:
        """The modules; `pooler` is False under heads that read every token: no weight goes without a gradient."""
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.position = PositionTable(config)
        self.segment = nn.Embedding(config.segments, config.width)
        self.embed_norm = make_norm(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.layers))
        self.recompute = False
        """Whether activations are made again in the backward pass; see `recompute_activations`."""
        self.pooler = nn.Linear(config.width, config.width) if pooler else None

    def initialise(self, seed: int) -> Bert:
        """Draw all weights from `seed`; see `initialise_encoder`."""
        initialise_encoder(self, seed)
        return self

    def hidden(self, ids_BT: Tensor, segments_BT: Tensor | None = None, mask_BT: Tensor | None = None) -> Tensor:
        """A vector for each token, [B, T, D].

        Args:
            ids_BT: int64.
            segments_BT: int64, 0 for the first sentence and 1 for the second; None is 0 throughout.
            mask_BT: bool, True for tokens, False for padding, which no token looks at; None: no padding.

        Raises:
            ValueError: more tokens than `config.context`.
        """
        segments_BT = torch.zeros_like(ids_BT) if segments_BT is None else segments_BT
        x_BTD: Tensor = self.position(self.embed(ids_BT) + self.segment(segments_BT))
        x_BTD = self.dropout(self.embed_norm(x_BTD))
        mask_B11T = None if mask_BT is None else mask_BT.bool()[:, None, None, :]
        for block in self.blocks:
            x_BTD = run_block(block, self.recompute, x_BTD, mask_B11T)
        return x_BTD

    def pooled(self, x_BTD: Tensor) -> Tensor:
        """One vector for each row, [B, D]: a tanh layer over its first token.

        Raises:
            ValueError: built without a pooler.
        """
        if self.pooler is None:
            raise ValueError("this encoder was built with pooler=False")
        return torch.tanh(self.pooler(x_BTD[:, 0]))


@torch.no_grad()
def initialise_encoder(module: nn.Module, seed: int) -> None:
    """Draw the weights of an encoder and its head from `seed`, the same on every device and in every precision.

    Matrices and tables are normal with deviation 0.02, redrawn beyond two deviations, as in the code of BERT's paper:
    0.0176 remain. Norms begin at 1, biases at 0.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        drawn = torch.empty(parameter.shape, device="cpu")
        bound = 2 * _INIT_STD
        nn.init.trunc_normal_(drawn, std=_INIT_STD, a=-bound, b=bound, generator=generator)
        parameter.copy_(drawn)
