"""Keys and values of the tokens a decoder has read, so that each new token costs one position.

Shapes: L layers, B rows, T new tokens, S positions, G key/value heads, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig


@dataclass(frozen=True)
class LayerCache:
    """What one layer's attention sees of the cache during one forward pass."""

    keys_BSGK: Tensor
    values_BSGK: Tensor
    positions_BT: Tensor
    mask_B1TS: Tensor | None
    """True where a query may look; None for plain causal attention, where every row was empty."""

    def extend(self, k_BTGK: Tensor, v_BTGK: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values; returns all of them, old and new, as views [B, S, G, K]."""
        rows_B1 = torch.arange(len(k_BTGK), device=k_BTGK.device)[:, None]
        self.keys_BSGK[rows_B1, self.positions_BT] = k_BTGK
        self.values_BSGK[rows_B1, self.positions_BT] = v_BTGK
        return self.keys_BSGK, self.values_BSGK


@dataclass(frozen=True)
class KVCache:
    """Preallocated; every row has its own length. `GPT.forward` reads, extends and advances it.

    A caller may lower `lengths_B` between passes: what lies beyond a row's length is never read. So prompts
    of different lengths are prefilled together, padded on the right, and a row is given to another request
    by setting its length to 0. Passes with a cache belong under `torch.inference_mode()` or `no_grad()`.
    """

    keys_LBSGK: Tensor
    values_LBSGK: Tensor
    lengths_B: Tensor
    """int64, always on the CPU: bounds and masks are decided without waiting for a device."""

    @classmethod
    def empty(cls, config: ModelConfig, *, rows: int, dtype: torch.dtype, device: torch.device | str) -> KVCache:
        """Room for `config.context` tokens in each of `rows` rows: 2 L B S G K numbers."""
        shape = (config.layers, rows, config.context, config.kv_heads, config.head_width)
        keys_LBSGK, values_LBSGK = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        return cls(keys_LBSGK, values_LBSGK, torch.zeros(rows, dtype=torch.int64, device="cpu"))

    def row(self, index: int) -> KVCache:
        """One row as a cache of its own, sharing this one's memory: prefill it while the others wait."""
        part = slice(index, index + 1)
        return KVCache(self.keys_LBSGK[:, part], self.values_LBSGK[:, part], self.lengths_B[part])

    def layers(self, new_tokens: int) -> list[LayerCache]:
        """Each layer's view of a pass over `new_tokens` more tokens of every row.

        Raises:
            ValueError: a row would grow beyond the context.
        """
        context, device = self.keys_LBSGK.shape[2], self.keys_LBSGK.device
        longest = int(self.lengths_B.max())
        end = longest + new_tokens
        if end > context:
            raise ValueError(f"{longest} tokens in the cache and {new_tokens} new ones exceed the context of {context}")
        positions_BT = (self.lengths_B[:, None] + torch.arange(new_tokens)).to(device)
        mask_B1TS = None
        if longest > 0:
            mask_B1TS = (torch.arange(end, device=device) <= positions_BT[:, :, None])[:, None]
        return [
            LayerCache(keys_BSGK[:, :end], values_BSGK[:, :end], positions_BT, mask_B1TS)
            for keys_BSGK, values_BSGK in zip(self.keys_LBSGK, self.values_LBSGK, strict=True)
        ]

    def advance(self, new_tokens: int) -> None:
        """Count the tokens of a finished pass as read."""
        self.lengths_B.add_(new_tokens)
