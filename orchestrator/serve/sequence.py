"""One completion under way: reads its prompt at the first step, then makes one token a step.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.cache import KVCache
from model.generate import sample
from orchestrator.export.prove import ProvenModel
from orchestrator.serve.text import Detokenizer, StopHolder

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one completion is drawn, and where it ends."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    """The same seed gives the same completion, whatever else the engine does meanwhile; None draws one."""
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """Text to send on, and the number of tokens it took; the last one says why it ended."""

    text: str
    tokens: int
    finish_reason: FinishReason | None = None


class Sequence:
    """The state of one completion. The prompt and `max_tokens` fit into the context together."""

    def __init__(self, proven: ProvenModel, prompt_T: Ids[int], sampling: Sampling) -> None:
        self._proven = proven
        self._sampling = sampling
        self._unread_T = list(prompt_T)
        self._detokenizer = Detokenizer(proven.tokenizer)
        self._stops = StopHolder(sampling.stop)
        self._tokens = 0
        device = proven.model.embed.weight.device
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._generator = torch.Generator(device).manual_seed(seed)
        self._cache: KVCache | None = None

    @torch.inference_mode()
    def step(self) -> Piece:
        """Make one token (none if none was asked for). The piece of the last one says why it is the last."""
        if self._sampling.max_tokens == 0:
            return Piece("", 0, "length")
        token = sample(
            self._next_logits_V(),
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            generator=self._generator,
            allowed_size=self._proven.allowed_size,
        )
        self._tokens += 1
        self._unread_T = [token]
        if token == self._proven.eos_id:
            return self._end("", "stop")
        text = self._stops.push(self._detokenizer.push(token))
        if self._stops.stopped:
            return Piece(text, 1, "stop")
        if self._tokens == self._sampling.max_tokens:
            return self._end(text, "length")
        return Piece(text, 1)

    def _next_logits_V(self) -> Tensor:
        model = self._proven.model
        weights = model.embed.weight
        if self._cache is None:
            self._cache = KVCache.empty(model.config, rows=1, dtype=weights.dtype, device=weights.device)
        ids_1T = torch.tensor([self._unread_T], device=weights.device)
        return model.logits(model.hidden(ids_1T, self._cache)[0, -1])

    def _end(self, text: str, reason: FinishReason) -> Piece:
        """The last piece, with all that was held back."""
        text += self._stops.push(self._detokenizer.flush())
        if self._stops.stopped:
            return Piece(text, 1, "stop")
        return Piece(text + self._stops.flush(), 1, reason)
