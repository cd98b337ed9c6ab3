"""Keys and values of many sequences in pages of one pool, and what one pass over them is given.

Shapes: L layers, A pages, G key/value heads, K head width (W: rounded up to 16), S positions of a page, N tokens of a
pass, R slots (sequences that may run at once), M pages of one sequence, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.config import ModelConfig

PAGE_TOKENS = 16
"""Positions in a page: as many as the compiled attention scores at once."""


def cache_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """What one token takes in a `PagedCache`."""
    numbers = config.layers * config.kv_heads * (config.head_width + _value_width(config))
    return numbers * dtype.itemsize


@dataclass(frozen=True)
class PagedCache:
    """Preallocated, and never grown. Who has which page is the caller's to decide; see `tables_RM`."""

    keys_LAGKS: Tensor
    values_LAGSW: Tensor
    tables_RM: Tensor
    """int32, on the CPU: the pages of the sequence in each slot, in the order of its positions."""

    @classmethod
    def empty(
        cls, config: ModelConfig, *, pages: int, slots: int, dtype: torch.dtype, device: torch.device | str
    ) -> PagedCache:
        """Room for `pages` pages; on a CPU the machine gives memory to those alone that are written."""
        head = (config.layers, pages, config.kv_heads)
        keys_LAGKS = torch.zeros((*head, config.head_width, PAGE_TOKENS), dtype=dtype, device=device)
        values_LAGSW = torch.zeros((*head, PAGE_TOKENS, _value_width(config)), dtype=dtype, device=device)
        longest = -(-config.context // PAGE_TOKENS)
        return cls(keys_LAGKS, values_LAGSW, torch.zeros((slots, longest), dtype=torch.int32, device="cpu"))

    @property
    def pages(self) -> int:
        """A: of all sequences."""
        return self.keys_LAGKS.shape[1]

    def assign(self, slot: int, pages: Sequence[int]) -> None:
        """Let the sequence in this slot have these pages."""
        self.tables_RM[slot, : len(pages)] = torch.tensor(pages, dtype=torch.int32)

    def wipe(self, pages: Sequence[int]) -> None:
        """Make them zero: numbers that are none would spread to whoever has the pages next."""
        self.keys_LAGKS[:, pages] = 0
        self.values_LAGSW[:, pages] = 0


def _value_width(config: ModelConfig) -> int:
    return -(-config.head_width // PAGE_TOKENS) * PAGE_TOKENS


@dataclass(frozen=True)
class Pass:
    """Tokens that are read together. Those of one sequence follow each other, in the order of their positions."""

    ids_N: Tensor
    """int64, on the CPU as the others."""
    positions_N: Tensor
    """int32."""
    slots_N: Tensor
    """int32: whose token each is."""

    @classmethod
    def of(cls, ids: Sequence[int], positions: Sequence[int], slots: Sequence[int]) -> Pass:
        """From plain numbers."""
        return cls(
            torch.tensor(ids, dtype=torch.int64),
            torch.tensor(positions, dtype=torch.int32),
            torch.tensor(slots, dtype=torch.int32),
        )


class Decoder(Protocol):
    """A decoder's weights, ready to read tokens of many sequences at once."""

    def hidden(self, tokens: Pass, cache: PagedCache) -> Tensor:
        """The last norm's result for each token, [N, D or more]; their keys and values are in the cache then.

        Raises:
            ValueError: more tokens than the decoder was made for.
        """
        ...

    def logits(self, x_ND: Tensor) -> Tensor:
        """Of the token after each of these rows of `hidden`'s result: fp32 [N, V]."""
        ...

    def best(self, logits_NV: Tensor, allowed_size: int) -> tuple[Tensor, Tensor]:
        """The likeliest id below `allowed_size` of each row (int64 [N]), and its logit (fp32 [N]), both on the CPU.

        The logit is not finite where one of the row's is not.
        """
        ...
