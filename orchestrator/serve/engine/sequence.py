"""One completion under way: reads its prompt at the first step, then makes one token a step.

Shapes: T tokens, D width.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence as Ids
from dataclasses import replace

import torch
from tokenizers import Tokenizer
from torch import Tensor

from model.cache import KVCache
from model.generate import prompt_logprobs, sample, token_logprobs
from model.logprob import TokenLogprob
from orchestrator.export.prove import ProvenModel
from orchestrator.serve.engine.protocol import FinishReason, Piece, Sampling
from orchestrator.serve.engine.text import Detokenizer, LogprobHolder, StopHolder


class Writer:
    """What becomes of a completion's tokens: text that may be sent on, its log-probabilities, and an end."""

    def __init__(self, tokenizer: Tokenizer, sampling: Sampling, *, eos_id: int) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopHolder(sampling.stop)
        self._logprobs = LogprobHolder()
        self._max_tokens = sampling.max_tokens
        self._eos_id = eos_id
        self._tokens = 0

    def push(self, token: int, logprob: TokenLogprob | None = None) -> Piece:
        """What this token adds. The piece of the last one, which has all that was held back, says why it is that."""
        self._tokens += 1
        if logprob is not None:
            self._logprobs.push(logprob, at=self._detokenizer.characters)
        text, reason = self._text_of(token)
        whole = reason is not None and not self._stops.stopped
        return Piece(text, 1, reason, self._logprobs.take(text, whole=whole))

    def _text_of(self, token: int) -> tuple[str, FinishReason | None]:
        ended = token == self._eos_id
        text = "" if ended else self._stops.push(self._detokenizer.push(token))
        if not self._stops.stopped:
            if not ended and self._tokens < self._max_tokens:
                return text, None
            text += self._stops.push(self._detokenizer.flush())
        if self._stops.stopped:
            return text, "stop"
        return text + self._stops.flush(), "stop" if ended else "length"


class Sequence:
    """The state of one completion. The prompt and `max_tokens` fit into the context together."""

    def __init__(self, proven: ProvenModel, prompt_T: Ids[int], sampling: Sampling) -> None:
        self._proven = proven
        self._sampling = sampling
        self._unread_T = list(prompt_T)
        self._writer = Writer(proven.tokenizer, sampling, eos_id=proven.eos_id)
        device = proven.model.embed.weight.device
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._generator = torch.Generator(device).manual_seed(seed)
        self._cache: KVCache | None = None

    @torch.inference_mode()
    def step(self) -> Piece:
        """Make one token (none if none was asked for). The piece of the last one says why it is the last."""
        sampling = self._sampling
        if sampling.max_tokens == 0 and not sampling.of_prompt:
            return Piece("", 0, "length")
        first, read_T = self._cache is None, self._unread_T
        x_TD = self._read()
        of_prompt = self._of_prompt(x_TD, read_T) if first and sampling.of_prompt else ()
        if sampling.max_tokens == 0:
            return Piece("", 0, "length", prompt_logprobs=of_prompt)
        return replace(self._make(x_TD), prompt_logprobs=of_prompt)

    def _read(self) -> Tensor:
        """Hidden states [T, D] of what has not been read yet."""
        model = self._proven.model
        weights = model.embed.weight
        if self._cache is None:
            self._cache = KVCache.empty(model.config, rows=1, dtype=weights.dtype, device=weights.device)
        ids_1T = torch.tensor([self._unread_T], device=weights.device)
        return model.hidden(ids_1T, self._cache)[0]

    def _of_prompt(self, x_TD: Tensor, prompt_T: Ids[int]) -> tuple[TokenLogprob, ...]:
        model, size = self._proven.model, self._proven.allowed_size
        return tuple(prompt_logprobs(model, x_TD, prompt_T, top=self._sampling.logprobs or 0, allowed_size=size))

    def _make(self, x_TD: Tensor) -> Piece:
        """The token after the last of the states."""
        sampling, size = self._sampling, self._proven.allowed_size
        logits_V = self._proven.model.logits(x_TD[-1])
        token = sample(
            logits_V,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            generator=self._generator,
            allowed_size=size,
        )
        self._unread_T = [token]
        logprob = None
        if sampling.logprobs is not None:
            (logprob,) = token_logprobs(logits_V[None], [token], top=sampling.logprobs, allowed_size=size)
        return self._writer.push(token, logprob)
