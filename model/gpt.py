"""A decoder: tokens in, next-token logits out. Read `GPT.forward` first.

Shapes: B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Attention, Rotary, rotary_tables
from model.cache import KVCache, LayerCache
from model.config import ModelConfig
from model.mlp import make_mlp, make_norm
from model.positions import PositionTable
from model.recompute import run_block

_INIT_STD = 0.02
_POSITION_STD = 0.01
_INTO_RESIDUAL = ("attention.out.weight", "mlp.down.weight")


class Block(nn.Module):
    """One layer: attention, then an MLP, each behind a norm and beside a residual path."""

    def __init__(self, config: ModelConfig) -> None:
        """Norms and MLP are the family's."""
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.mlp_norm = make_norm(config)
        self.mlp = make_mlp(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: Rotary | None = None,
        past: LayerCache | None = None,
        mask_B1TT: Tensor | None = None,
    ) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), rotary, past, mask_B1TT))
        x_BTD = x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD)))
        return x_BTD


class GPT(nn.Module):
    """A decoder of the Llama form (Touvron et al. 2023) or the GPT-2 form (Radford et al. 2019); see `ModelConfig`.

    It has no buffers, so it may be cast with `.bfloat16()`, made on the meta device, and sharded by ZeRO-3.
    """

    def __init__(self, config: ModelConfig) -> None:
        """The modules; their weights have no meaning before `initialise` or `load_state_dict`."""
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.position = None if config.positions == "rope" else PositionTable(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.recompute = False
        """Whether activations are made again in the backward pass; see `recompute_activations`."""
        self.norm = make_norm(config)
        self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)

    @torch.no_grad()
    def initialise(self, seed: int) -> GPT:
        """Draw all weights from `seed`, the same on every device and in every precision up to rounding.

        Matrices are normal with deviation 0.02; those that write into the residual path, of which there are
        2 L, are smaller by sqrt(2 L), so that its variance does not grow with depth (Radford et al. 2019).
        Positions have 0.01, as in the code of that paper. Norms begin at 1, biases at 0.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            std = _POSITION_STD if name.startswith("position.") else _INIT_STD
            if name.endswith(_INTO_RESIDUAL):
                std /= math.sqrt(2 * self.config.layers)
            parameter.copy_(torch.normal(0.0, std, parameter.shape, generator=generator))
        return self

    def forward(
        self,
        ids_BT: Tensor,
        cache: KVCache | None = None,
        *,
        positions_BT: Tensor | None = None,
        mask_B1TT: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V] of the token after each of `ids_BT` (int64), in the weights' precision.

        With a cache, `ids_BT` continue what it holds, and it holds them too afterwards; see `KVCache`. Rows that are
        packed with several documents give each token's position in its own (int64), and `document_mask` of them.

        Raises:
            ValueError: more tokens than `config.context`, or a cache beside positions or a mask.
        """
        return self.logits(self.hidden(ids_BT, cache, positions_BT=positions_BT, mask_B1TT=mask_B1TT))

    def hidden(
        self,
        ids_BT: Tensor,
        cache: KVCache | None = None,
        *,
        positions_BT: Tensor | None = None,
        mask_B1TT: Tensor | None = None,
    ) -> Tensor:
        """`forward` up to the last norm, [B, T, D]: for losses in chunks, and prefills, which need few logits."""
        if cache is not None and not (positions_BT is None and mask_B1TT is None):
            raise ValueError("positions and a mask are for passes without a cache, which has its own")
        new_tokens = ids_BT.shape[1]
        layers = [None] * self.config.layers if cache is None else cache.layers(new_tokens)
        if layers[0] is not None:
            positions_BT = layers[0].positions_BT
        x_BTD = self.embed(ids_BT)
        rotary = self._rotary(ids_BT, positions_BT) if self.position is None else None
        x_BTD = self.dropout(x_BTD if self.position is None else self.position(x_BTD, positions_BT))
        for block, past in zip(self.blocks, layers, strict=True):
            x_BTD = run_block(block, self.recompute, x_BTD, rotary, past, mask_B1TT)
        if cache is not None:
            cache.advance(new_tokens)
        normed_BTD: Tensor = self.norm(x_BTD)
        return normed_BTD

    def logits(self, x_BTD: Tensor) -> Tensor:
        """The output projection of `hidden`'s result: [..., D] to [..., V]."""
        if self.head is None:
            # Another module's weight: ZeRO-3 notices and gathers it, but only within the engine's forward.
            return F.linear(x_BTD, self.embed.weight)
        logits_BTV: Tensor = self.head(x_BTD)
        return logits_BTV

    @property
    def projection_weight_VD(self) -> Tensor:
        """What `logits` multiplies by, for losses that never hold all logits."""
        return self.embed.weight if self.head is None else self.head.weight

    @property
    def projection_bias_V(self) -> None:
        """No decoder adds one."""
        return None

    def _rotary(self, ids_BT: Tensor, positions_BT: Tensor | None) -> Rotary:
        """The rotary tables at the positions of `ids_BT`."""
        config, length = self.config, ids_BT.shape[1]
        if length > config.context:
            raise ValueError(f"{length} tokens exceed the context of {config.context}")
        cos_S1K, sin_S1K = rotary_tables(
            config.context, config.head_width, theta=config.rope_theta, device=ids_BT.device
        )
        if positions_BT is None:
            return cos_S1K[:length], sin_S1K[:length]
        return cos_S1K[positions_BT], sin_S1K[positions_BT]
