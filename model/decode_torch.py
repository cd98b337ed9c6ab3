"""A decoder that reads tokens of many sequences at once, on any device, with torch's own operations.

What the compiled one is measured and tested against, and what runs where that cannot: on accelerators, and on machines
without a compiler. Other rows of a pass may move its results in the last digits.

Shapes: as in `paged`; B sequences of a pass (T new tokens each), H query heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import Attention, Rotary, rotary_tables, rotate
from model.gpt import GPT, Block
from model.paged import PAGE_TOKENS, PagedCache, Pass


@dataclass(frozen=True)
class _Rows:
    """Sequences with equally many new tokens in this pass."""

    tokens_BT: Tensor
    """Which of the pass's."""
    tables_BM: Tensor
    mask_B1TS: Tensor


@dataclass(frozen=True)
class _Places:
    """Where each token of a pass stands, on the weights' device."""

    pages_N: Tensor
    offsets_N: Tensor
    rows: list[_Rows]
    rotary: Rotary | None


class TorchDecoder:
    """See `Decoder`."""

    def __init__(self, model: GPT) -> None:
        """Shares the weights of `model`, which is in evaluation mode."""
        self._model = model

    @torch.inference_mode()
    def hidden(self, tokens: Pass, cache: PagedCache) -> Tensor:
        """See `Decoder`."""
        model = self._model
        device = model.embed.weight.device
        positions_N = tokens.positions_N.to(device, torch.int64)
        places = _places(model, tokens, cache, positions_N)
        x_ND = model.embed(tokens.ids_N.to(device))
        if model.position is not None:
            x_ND = model.position(x_ND[:, None], positions_N[:, None])[:, 0]
        for index, block in enumerate(cast("list[Block]", list(model.blocks))):
            mixed_ND = _attend(block.attention, block.attention_norm(x_ND), places, cache, index)
            x_ND = x_ND + mixed_ND
            x_ND = x_ND + block.mlp(block.mlp_norm(x_ND))
        normed_ND: Tensor = model.norm(x_ND)
        return normed_ND

    @torch.inference_mode()
    def logits(self, x_ND: Tensor) -> Tensor:
        """See `Decoder`."""
        return self._model.logits(x_ND).float()

    @torch.inference_mode()
    def best(self, logits_NV: Tensor, allowed_size: int) -> tuple[Tensor, Tensor]:
        """See `Decoder`."""
        allowed_NV = logits_NV[:, :allowed_size]
        ids_N = allowed_NV.argmax(-1)
        finite_N = allowed_NV.isfinite().all(-1)
        values_N = torch.where(finite_N, allowed_NV.gather(1, ids_N[:, None])[:, 0], torch.nan)
        return ids_N.cpu(), values_N.cpu()


def _places(model: GPT, tokens: Pass, cache: PagedCache, positions_N: Tensor) -> _Places:
    device, config = positions_N.device, model.config
    tables_RM = cache.tables_RM.to(device, torch.int64)
    pages_N = tables_RM[tokens.slots_N.to(device, torch.int64), positions_N // PAGE_TOKENS]
    rotary = None
    if model.position is None:
        cos, sin = rotary_tables(config.context, config.head_width, theta=config.rope_theta, device=device)
        rotary = cos[positions_N], sin[positions_N]
    return _Places(pages_N, positions_N % PAGE_TOKENS, _rows(tokens, tables_RM, positions_N), rotary)


def _rows(tokens: Pass, tables_RM: Tensor, positions_N: Tensor) -> list[_Rows]:
    """Decoding sequences side by side; of those that are read in, each by itself."""
    slots = tokens.slots_N.tolist()
    first, singles, found = 0, [], []
    for _, same in groupby(slots):
        count = len(list(same))
        if count == 1:
            singles.append(first)
        else:
            found.append([range(first, first + count)])
        first += count
    groups = [*found, *([[range(at, at + 1) for at in singles]] if singles else [])]
    return [_group(runs, slots, tables_RM, positions_N) for runs in groups]


def _group(runs: list[range], slots: list[int], tables_RM: Tensor, positions_N: Tensor) -> _Rows:
    device = tables_RM.device
    tokens_BT = torch.tensor([list(run) for run in runs], device=device)
    positions_BT = positions_N[tokens_BT]
    pages = int(positions_BT.max()) // PAGE_TOKENS + 1
    tables_BM = tables_RM[torch.tensor([slots[run[0]] for run in runs], device=device), :pages]
    seen_S = torch.arange(pages * PAGE_TOKENS, device=device)
    return _Rows(tokens_BT, tables_BM, (seen_S <= positions_BT[:, :, None])[:, None])


def _attend(attention: Attention, x_ND: Tensor, places: _Places, cache: PagedCache, index: int) -> Tensor:
    """What the layer `index` mixes into each token; stores the new keys and values."""
    width = attention.head_width
    q_NHK, k_NGK, v_NGK = (
        project(x_ND).unflatten(-1, (-1, width)) for project in (attention.q, attention.k, attention.v)
    )
    if places.rotary is not None:
        q_NHK, k_NGK = rotate(q_NHK, places.rotary), rotate(k_NGK, places.rotary)
    keys_AGKS, values_AGSW = cache.keys_LAGKS[index], cache.values_LAGSW[index]
    keys_AGKS[places.pages_N, :, :, places.offsets_N] = k_NGK
    values_AGSW[places.pages_N, :, places.offsets_N, :width] = v_NGK
    y_NHK = torch.empty_like(q_NHK)
    for rows in places.rows:
        keys_BGSK = keys_AGKS[rows.tables_BM].permute(0, 2, 1, 4, 3).flatten(2, 3)
        values_BGSK = values_AGSW[rows.tables_BM].transpose(1, 2).flatten(2, 3)[..., :width]
        y_BHTK = F.scaled_dot_product_attention(
            q_NHK[rows.tokens_BT].transpose(1, 2),
            keys_BGSK,
            values_BGSK,
            attn_mask=rows.mask_B1TS,
            enable_gqa=attention.grouped,
        )
        y_NHK[rows.tokens_BT] = y_BHTK.transpose(1, 2)
    mixed_ND: Tensor = attention.out(y_NHK.flatten(1))
    return mixed_ND
