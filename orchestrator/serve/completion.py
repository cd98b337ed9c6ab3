"""From a request that may be asked to its answer: whole, or as the chunks of a stream."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from orchestrator.serve.api import DEFAULT_MAX_TOKENS, Choice, Completion, CompletionRequest, Usage
from orchestrator.serve.engine import InferenceEngine
from orchestrator.serve.errors import ApiError, context_exceeded, model_not_found
from orchestrator.serve.sequence import FinishReason, Piece, Sampling

_SEED_STEP = 0x9E3779B97F4A7C15
"""Odd and large: the choices of one request draw apart, and apart from those of the next seed."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """One model behind its API."""

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


@dataclass(frozen=True)
class _Asked:
    """One choice of the answer."""

    index: int
    prompt: list[int]
    echo: str
    sampling: Sampling


@dataclass(frozen=True)
class Prepared:
    """A request with nothing left to refuse."""

    request: CompletionRequest
    served: Served
    choices: list[_Asked]
    prompt_tokens: int
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def chunk(self, choices: list[Choice], usage: Usage | None = None) -> Completion:
        """A whole answer, or one event of a stream."""
        return Completion(
            id=self.id,
            created=self.created,
            model=self.served.name,
            system_fingerprint=self.served.fingerprint,
            choices=choices,
            usage=usage,
        )

    def usage(self, completion_tokens: int) -> Usage:
        """What is billed elsewhere: each prompt once, however many choices it has."""
        return Usage.of(prompt_tokens=self.prompt_tokens, completion_tokens=completion_tokens)


async def prepare(request: CompletionRequest, served: Served) -> Prepared:
    """Tokenise the prompts and plan each choice.

    Raises:
        ApiError: another model, a token id that there is not, or more tokens than there is room for.
    """
    if request.model != served.name:
        raise model_not_found(request.model, served.name)
    if request.max_tokens is not None and request.max_tokens > served.max_tokens:
        raise ApiError(
            f"max_tokens {request.max_tokens} is too large: the largest here is {served.max_tokens}",
            param="max_tokens",
        )
    # In a thread: megabytes of text would hold up everybody else's stream.
    prompts = await asyncio.to_thread(lambda: [_prompt_ids(prompt, served) for prompt in request.prompt])
    asked = [_plan(request, served, prompts[index // request.n], index) for index in range(len(prompts) * request.n)]
    return Prepared(request, served, asked, sum(len(prompt) for prompt in prompts))


def _prompt_ids(prompt: str | list[int], served: Served) -> list[int]:
    """Token ids; the empty text is the beginning of a document, which follows the last one's end."""
    if isinstance(prompt, str):
        ids: list[int] = served.tokenizer.encode(prompt, add_special_tokens=False).ids
        return ids or [served.eos_id]
    if (largest := max(prompt)) >= served.vocab_size:
        raise ApiError(f"prompt: token id {largest} is not in the vocabulary of {served.vocab_size}", param="prompt")
    return prompt


def _plan(request: CompletionRequest, served: Served, prompt: list[int], index: int) -> _Asked:
    room = served.context - len(prompt)
    wanted = request.max_tokens
    max_tokens = min(DEFAULT_MAX_TOKENS, served.max_tokens, max(room, 1)) if wanted is None else wanted
    if max_tokens > room:
        raise context_exceeded(context=served.context, prompt_tokens=len(prompt), max_tokens=max_tokens)
    given = request.prompt[index // request.n]
    echo = ""
    if request.echo:
        echo = given if isinstance(given, str) else served.tokenizer.decode(prompt, skip_special_tokens=False)
    sampling = Sampling(
        max_tokens=max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=None if request.seed is None else (request.seed + _SEED_STEP * index) % 2**63,
        stop=request.stop,
    )
    return _Asked(index, prompt, echo, sampling)


async def whole(prepared: Prepared) -> Completion:
    """The answer in one piece."""
    texts = [asked.echo for asked in prepared.choices]
    reasons: dict[int, FinishReason | None] = {}
    tokens = 0
    async with aclosing(_pieces(prepared)) as pieces:
        async for index, piece in pieces:
            texts[index] += piece.text
            tokens += piece.tokens
            reasons[index] = piece.finish_reason
    choices = [Choice(index=i, text=text, finish_reason=reasons[i]) for i, text in enumerate(texts)]
    return prepared.chunk(choices, prepared.usage(tokens))


async def stream(prepared: Prepared) -> AsyncGenerator[str, None]:
    """The answer as JSON documents, each with the text that came since the last one."""
    options = prepared.request.stream_options
    with_usage = options is not None and options.include_usage
    # Without usage the field is left out; with it, it is null in every chunk but the last (as OpenAI has it).
    exclude = None if with_usage else {"usage"}
    tokens = 0
    for asked in prepared.choices:
        if asked.echo:
            echo = Choice(index=asked.index, text=asked.echo, finish_reason=None)
            yield prepared.chunk([echo]).model_dump_json(exclude=exclude)
    async with aclosing(_pieces(prepared)) as pieces:
        async for index, piece in pieces:
            tokens += piece.tokens
            if piece.text or piece.finish_reason is not None:
                choice = Choice(index=index, text=piece.text, finish_reason=piece.finish_reason)
                yield prepared.chunk([choice]).model_dump_json(exclude=exclude)
    if with_usage:
        yield prepared.chunk([], prepared.usage(tokens)).model_dump_json()


async def _pieces(prepared: Prepared) -> AsyncGenerator[tuple[int, Piece], None]:
    """The pieces of all choices, one choice after the other: a request has one turn at a time."""
    for asked in prepared.choices:
        async with aclosing(prepared.served.engine.generate(asked.prompt, asked.sampling)) as pieces:
            async for piece in pieces:
                yield asked.index, piece
