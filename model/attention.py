"""Self-attention: causal or not, with rotary positions and grouped key/value heads where the family has them.

Shapes: B rows, T tokens, S positions, D width, H query heads, G key/value heads, K head width.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import cpu_elementwise
from model.cache import LayerCache
from model.config import ModelConfig
from model.cpu_attention import cpu_attention
from model.cpu_elementwise import trains_on_cpu

Rotary = tuple[Tensor, Tensor]
"""Cosines and signed sines, fp32, [T, 1, K] or [B, T, 1, K]: they broadcast over heads."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def rotary_tables(length: int, head_width: int, *, theta: float, device: torch.device) -> Rotary:
    """Cosines and signed sines of positions 0 to length - 1, each fp32 [S, 1, K] (RoPE; Su et al. 2021).

    Plain tensors beside the modules, not buffers of them: `module.bfloat16()` would round the angles.
    Computed on the CPU in fp32, as Hugging Face does: all devices and libraries turn by the same angles. They are
    kept; compiled networks take them as constants, where a compiler would work them out anew in every step.
    """
    return _rotary_tables(length, head_width, theta, device)


@lru_cache(maxsize=16)
def _rotary_tables(length: int, head_width: int, theta: float, device: torch.device) -> Rotary:
    # What is made under inference_mode is barred from training for ever, and this table outlives its caller.
    with torch.inference_mode(False):
        exponents = torch.arange(0, head_width, 2, dtype=torch.float32, device="cpu") / head_width
        positions_S = torch.arange(length, dtype=torch.float32, device="cpu")
        angles = torch.outer(positions_S, 1.0 / theta**exponents)[:, None]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), -1).to(device), torch.cat((-sin, sin), -1).to(device)


def rotate(x_BTHK: Tensor, rotary: Rotary) -> Tensor:
    """Turn each pair (x[i], x[i + K/2]) by its position's angle, in fp32; same shape and type as `x_BTHK`."""
    if trains_on_cpu(x_BTHK):
        return cpu_elementwise.rotate(x_BTHK, *rotary)
    cos, signed_sin = rotary
    wide_BTHK = x_BTHK.float()
    swapped_BTHK = wide_BTHK.roll(x_BTHK.shape[-1] // 2, -1)
    return (wide_BTHK * cos + swapped_BTHK * signed_sin).type_as(x_BTHK)


def document_mask(segments_BT: Tensor) -> Tensor:
    """Who may look at whom in packed rows: bool [B, 1, T, T], True where the query (third axis) sees the key (last).

    `segments_BT` (integers) numbers each row's documents from 1; 0 is padding. A token sees itself and those before
    it in its document; padding sees itself alone, so that no softmax is over nothing.
    """
    tokens = segments_BT.shape[1]
    same_BTT = (segments_BT[:, :, None] == segments_BT[:, None, :]) & (segments_BT != 0)[:, None, :]
    itself_TT = torch.eye(tokens, dtype=torch.bool, device=segments_BT.device)
    return (same_BTT.tril() | itself_TT)[:, None]


class Attention(nn.Module):
    """Multi-head attention; with H / G query heads to a key/value head (Ainslie et al. 2023) where kv_heads is less."""

    def __init__(self, config: ModelConfig) -> None:
        """Projections have biases where the family's have."""
        super().__init__()
        self.head_width = config.head_width
        self.grouped = config.kv_heads < config.heads
        self.causal = config.is_decoder
        self.dropout = config.dropout
        kv_width = config.kv_heads * config.head_width
        self.q = nn.Linear(config.width, config.width, bias=config.biased)
        self.k = nn.Linear(config.width, kv_width, bias=config.biased)
        self.v = nn.Linear(config.width, kv_width, bias=config.biased)
        self.out = nn.Linear(config.width, config.width, bias=config.biased)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: Rotary | None = None,
        past: LayerCache | None = None,
        mask_B1TS: Tensor | None = None,
    ) -> Tensor:
        """[B, T, D] to [B, T, D]; `mask_B1TS` (bool, True: may look) stands in for causal or full attention."""
        q_BTHK, k_BSGK, v_BSGK = (
            project(x_BTD).unflatten(-1, (-1, self.head_width)) for project in (self.q, self.k, self.v)
        )
        dropout = self.dropout if self.training else 0.0
        # Grouped heads would have to be repeated, and kept so for the backward pass.
        if past is None and not dropout and not self.grouped and _suits_cpu_attention(q_BTHK):
            q_BHTK, k_BGSK, v_BGSK = (x.transpose(1, 2) for x in (q_BTHK, k_BSGK, v_BSGK))
            y_BHTK = cpu_attention(q_BHTK, k_BGSK, v_BGSK, rotary, mask_B1TS, self.causal and mask_B1TS is None)
        else:
            if rotary is not None:
                q_BTHK, k_BSGK = rotate(q_BTHK, rotary), rotate(k_BSGK, rotary)
            if past is not None:
                k_BSGK, v_BSGK = past.extend(k_BSGK, v_BSGK)
                mask_B1TS = past.mask_B1TS
            q_BHTK, k_BGSK, v_BGSK = (x.transpose(1, 2) for x in (q_BTHK, k_BSGK, v_BSGK))
            y_BHTK = F.scaled_dot_product_attention(
                q_BHTK,
                k_BGSK,
                v_BGSK,
                attn_mask=mask_B1TS,
                dropout_p=dropout,
                is_causal=self.causal and mask_B1TS is None,
                enable_gqa=self.grouped,
            )
        y_BTD: Tensor = self.out(y_BHTK.transpose(1, 2).flatten(2))
        return y_BTD


def _suits_cpu_attention(q: Tensor) -> bool:
    """In fp32, and where nothing is to be differentiated, torch's own is as fast."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad
