"""A decoder: tokens in, next-token logits out. Read `GPT.forward` first.

Shapes: B rows, T tokens, D width, F hidden width, V vocabulary, N = B T.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Attention, Rotary, rotary_tables
from model.cache import KVCache, LayerCache
from model.config import ModelConfig

IGNORED_TARGET = -100
"""A target that costs nothing: padding, prompts."""

_INIT_STD = 0.02
_LOSS_BLOCK = 2**20


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


class Block(nn.Module):
    """One layer: attention, then SwiGLU, each behind a norm and beside a residual path."""

    def __init__(self, config: ModelConfig) -> None:
        """`nn.RMSNorm` computes in fp32 whatever the type of its input."""
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = SwiGLU(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, rotary: Rotary, past: LayerCache | None = None) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), rotary, past))
        x_BTD = x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD)))
        return x_BTD


class GPT(nn.Module):
    """A decoder of the Llama family (Touvron et al. 2023): RoPE, RMSNorm, SwiGLU, grouped-query attention.

    It has no buffers, so it may be cast with `.bfloat16()`, made on the meta device, and sharded by ZeRO-3.
    """

    def __init__(self, config: ModelConfig) -> None:
        """The modules; their weights have no meaning before `initialise` or `load_state_dict`."""
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)

    @torch.no_grad()
    def initialise(self, seed: int) -> GPT:
        """Draw all weights from `seed`, the same on every device and in every precision up to rounding.

        Matrices are normal with deviation 0.02; those that write into the residual path, of which there are
        2 L, are smaller by sqrt(2 L), so that its variance does not grow with depth (Radford et al. 2019).
        """
        generator = torch.Generator().manual_seed(seed)
        residual_std = _INIT_STD / math.sqrt(2 * self.config.layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
                continue
            std = residual_std if name.endswith(("attention.out.weight", "mlp.down.weight")) else _INIT_STD
            parameter.copy_(torch.normal(0.0, std, parameter.shape, generator=generator))
        return self

    def forward(self, ids_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits [B, T, V] of the token after each of `ids_BT` (int64), in the weights' precision.

        With a cache, `ids_BT` continue what it holds, and it holds them too afterwards; see `KVCache`.

        Raises:
            ValueError: more tokens than `config.context`.
        """
        return self.logits(self.hidden(ids_BT, cache))

    def hidden(self, ids_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """`forward` up to the last norm, [B, T, D]: for other heads, and prefills, which need few logits."""
        new_tokens = ids_BT.shape[1]
        layers = [None] * self.config.layers if cache is None else cache.layers(new_tokens)
        rotary = self._rotary(ids_BT, layers[0])
        x_BTD: Tensor = self.dropout(self.embed(ids_BT))
        for block, past in zip(self.blocks, layers, strict=True):
            x_BTD = block(x_BTD, rotary, past)
        if cache is not None:
            cache.advance(new_tokens)
        x_BTD = self.norm(x_BTD)
        return x_BTD

    def logits(self, x_BTD: Tensor) -> Tensor:
        """The output projection of `hidden`'s result: [..., D] to [..., V]."""
        if self.head is None:
            # Another module's weight: ZeRO-3 notices and gathers it, but only within the engine's forward.
            return F.linear(x_BTD, self.embed.weight)
        logits_BTV: Tensor = self.head(x_BTD)
        return logits_BTV

    def _rotary(self, ids_BT: Tensor, past: LayerCache | None) -> Rotary:
        """The rotary tables at the positions of `ids_BT`."""
        config, length = self.config, ids_BT.shape[1]
        if length > config.context:
            raise ValueError(f"{length} tokens exceed the context of {config.context}")
        cos_S1K, sin_S1K = rotary_tables(
            config.context, config.head_width, theta=config.rope_theta, device=ids_BT.device
        )
        if past is None:
            return cos_S1K[:length], sin_S1K[:length]
        return cos_S1K[past.positions_BT], sin_S1K[past.positions_BT]


def token_losses(model: Callable[[Tensor], Tensor], ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Cross entropy of each target in nats, fp32 [B, T]; 0 where the target is `IGNORED_TARGET`.

    `model` gives logits [B, T, V] in any precision: a `GPT`, or DeepSpeed's engine around one.
    """
    logits_NV = model(ids_BT).flatten(0, 1)
    # In blocks of 4 MiB of fp32, whose memory is reused from one to the next. The whole in fp32 would
    # be fresh pages from the kernel at every step, and took four times as long (2048 x 4096, bf16, CPU).
    rows = max(1, _LOSS_BLOCK // logits_NV.shape[1])
    blocks = zip(torch.split(logits_NV, rows), torch.split(targets_BT.flatten(), rows), strict=True)
    losses = [
        F.cross_entropy(block_NV.float(), targets_N, reduction="none", ignore_index=IGNORED_TARGET)
        for block_NV, targets_N in blocks
    ]
    return torch.cat(losses).view(targets_BT.shape)
