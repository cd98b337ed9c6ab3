"""From a request that may be asked to the pieces of its answer, whichever form they are sent in."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from tokenizers import Tokenizer

from orchestrator.serve.api.bounds import longest_text
from orchestrator.serve.api.errors import ApiError, context_exceeded
from orchestrator.serve.api.logprobs import TokenTexts
from orchestrator.serve.api.merge import merged
from orchestrator.serve.api.request import Generation
from orchestrator.serve.api.template import ChatFormat
from orchestrator.serve.engine.protocol import InferenceEngine, Piece, Sampling

_SEED_STEP = 0x9E3779B97F4A7C15
"""Odd and large: the choices of one request draw apart, and apart from those of the next seed."""
_AT_ONCE = 16
"""Choices of one request that are made side by side; the others wait, so that others' requests do not."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """One version of one model behind its API."""

    name: str
    engine: InferenceEngine
    tokenizer: Tokenizer
    eos_id: int
    vocab_size: int
    """Ids below this may stand in a prompt."""
    context: int
    max_tokens: int
    """Largest completion that a request may ask for."""
    fingerprint: str
    """Changes with the weights."""
    created: int
    """Seconds since 1970."""
    version: str = "1"
    """Of the model on this service; usage and feedback are kept by it."""
    chat: ChatFormat | None = None
    """How it reads chats; None: it has no chat template."""
    instead: Callable[[], Served | None] = lambda: None
    """The version that answers where this one fails before anything was told; None: there is none."""
    copy: Callable[[Callable[[Served], Coroutine[Any, Any, None]]], None] = lambda _: None
    """Has the version that is tried out in the shadow, if there is one, do the same; what it makes is thrown away."""

    @cached_property
    def token_texts(self) -> TokenTexts:
        """How single tokens are shown."""
        return TokenTexts(self.tokenizer)

    @cached_property
    def longest_text(self) -> int:
        """Characters that no prompt exceeds which fits into the context."""
        return longest_text(self.tokenizer, self.context)

    def require_short(self, text: str, param: str) -> None:
        """Refuse a text that cannot fit, before time is spent on its tokens.

        Raises:
            ApiError: 400.
        """
        if len(text) > self.longest_text:
            raise ApiError(
                f"This model's maximum context length is {self.context} tokens; your text of {len(text)} characters "
                f"has more. No text of more than {self.longest_text} characters fits.",
                param=param,
                code="context_length_exceeded",
            )


@dataclass(frozen=True)
class Prompt:
    """A prompt as the network reads it, and as text if that is needed."""

    ids: list[int]
    text: str


@dataclass(frozen=True)
class Asked:
    """One choice of the answer."""

    index: int
    prompt: Prompt
    sampling: Sampling


@dataclass(kw_only=True)
class Work:
    """A request with nothing left to refuse, and what has been made of its answer."""

    id: str
    served: Served
    choices: list[Asked]
    prompt_tokens: int
    """Each prompt once, however many choices it has."""
    created: int = field(default_factory=lambda: int(time.time()))
    completion_tokens: int = 0
    """Made so far."""

    @property
    def max_tokens(self) -> int:
        """What all choices may make together."""
        return sum(asked.sampling.max_tokens for asked in self.choices)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the two kinds of requests say each in their own way."""

    max_tokens: int | None
    """Of each choice; None: `default_tokens`, or what is left of the context if that is less."""
    default_tokens: int
    param: str
    """The field that holds what is too long."""
    logprobs: int | None
    """As in `Sampling`, as is the next."""
    of_prompt: bool = False
    ends: Sequence[int] = ()
    """Tokens that end a choice besides those that the request names."""


def plan(request: Generation, served: Served, prompts: Sequence[Prompt], wish: Wish) -> list[Asked]:
    """`n` choices for each prompt.

    Raises:
        ApiError: more tokens are asked for than there is room for, or a token id that there is not.
    """
    _check(request, served, wish.max_tokens)
    asked: list[Asked] = []
    for prompt in prompts:
        room = served.context - len(prompt.ids)
        most = min(wish.default_tokens, served.max_tokens, max(room, 1))
        allowed = most if wish.max_tokens is None else wish.max_tokens
        if allowed > room:
            raise context_exceeded(
                context=served.context, prompt_tokens=len(prompt.ids), max_tokens=allowed, param=wish.param
            )
        if request.min_tokens > allowed:
            raise ApiError(f"min_tokens {request.min_tokens} is more than max_tokens {allowed}", param="min_tokens")
        sampling = Sampling(
            max_tokens=allowed,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=max(request.top_k, 0),
            min_p=request.min_p,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            repetition_penalty=request.repetition_penalty,
            logit_bias=tuple(request.logit_bias.items()),
            stop=request.stop,
            stop_token_ids=tuple(dict.fromkeys((*wish.ends, *request.stop_token_ids))),
            ignore_eos=request.ignore_eos,
            min_tokens=request.min_tokens,
            logprobs=wish.logprobs,
            of_prompt=wish.of_prompt,
            in_pieces=request.stream,
        )
        for _ in range(request.n):
            seed = None if request.seed is None else (request.seed + _SEED_STEP * len(asked)) % 2**63
            asked.append(Asked(len(asked), prompt, replace(sampling, seed=seed)))
    return asked


def _check(request: Generation, served: Served, max_tokens: int | None) -> None:
    if max_tokens is not None and max_tokens > served.max_tokens:
        raise ApiError(
            f"max_tokens {max_tokens} is too large: the largest here is {served.max_tokens}", param="max_tokens"
        )
    for name, ids in (("logit_bias", request.logit_bias), ("stop_token_ids", request.stop_token_ids)):
        if (largest := max(ids, default=0)) >= served.vocab_size:
            raise ApiError(f"{name}: token id {largest} is not in the vocabulary of {served.vocab_size}", param=name)


async def parts(work: Work, *, deadline_s: float | None = None) -> AsyncGenerator[tuple[Asked, Piece], None]:
    """The pieces of all choices as they come; those of one choice in their order.

    Raises:
        EngineError: the engine failed on one of them, which ends all.
        ApiError: 504, the deadline has passed.
    """
    sources = [partial(_pieces, work.served, asked) for asked in work.choices]
    async with aclosing(merged(sources, at_once=_AT_ONCE, deadline_s=deadline_s)) as pieces:
        async for asked, piece in pieces:
            work.completion_tokens += piece.tokens
            yield asked, piece


async def _pieces(served: Served, asked: Asked) -> AsyncGenerator[tuple[Asked, Piece], None]:
    async with aclosing(served.engine.generate(asked.prompt.ids, asked.sampling)) as pieces:
        async for piece in pieces:
            yield asked, piece
