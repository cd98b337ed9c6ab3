"""From a request that may be asked to its answer: whole, or as the chunks of a stream."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property

from tokenizers import Tokenizer

from orchestrator.serve.api.completions import DEFAULT_MAX_TOKENS, Choice, Completion, CompletionRequest, Usage
from orchestrator.serve.api.errors import ApiError, context_exceeded, model_not_found
from orchestrator.serve.api.logprobs import LogprobShaper, TokenTexts
from orchestrator.serve.engine.protocol import InferenceEngine, Sampling

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

    @cached_property
    def token_texts(self) -> TokenTexts:
        """How single tokens are shown."""
        return TokenTexts(self.tokenizer)


@dataclass(frozen=True)
class _Prompt:
    """A prompt as the network reads it, and as text if that is needed."""

    ids: list[int]
    text: str


@dataclass(frozen=True)
class _Asked:
    """One choice of the answer."""

    index: int
    prompt: _Prompt
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
    prompts = await asyncio.to_thread(lambda: [_read(prompt, request, served) for prompt in request.prompt])
    asked = [_plan(request, served, prompts[index // request.n], index) for index in range(len(prompts) * request.n)]
    return Prepared(request, served, asked, sum(len(prompt.ids) for prompt in prompts))


def _read(given: str | list[int], request: CompletionRequest, served: Served) -> _Prompt:
    ids = _prompt_ids(given, served)
    if isinstance(given, str):
        return _Prompt(ids, given)
    told = request.echo or request.logprobs is not None  # offsets count from the prompt's beginning
    return _Prompt(ids, served.tokenizer.decode(ids, skip_special_tokens=False) if told else "")


def _prompt_ids(prompt: str | list[int], served: Served) -> list[int]:
    """Token ids; the empty text is the beginning of a document, which follows the last one's end."""
    if isinstance(prompt, str):
        ids: list[int] = served.tokenizer.encode(prompt, add_special_tokens=False).ids
        return ids or [served.eos_id]
    if (largest := max(prompt)) >= served.vocab_size:
        raise ApiError(f"prompt: token id {largest} is not in the vocabulary of {served.vocab_size}", param="prompt")
    return prompt


def _plan(request: CompletionRequest, served: Served, prompt: _Prompt, index: int) -> _Asked:
    room = served.context - len(prompt.ids)
    wanted = request.max_tokens
    max_tokens = min(DEFAULT_MAX_TOKENS, served.max_tokens, max(room, 1)) if wanted is None else wanted
    if max_tokens > room:
        raise context_exceeded(context=served.context, prompt_tokens=len(prompt.ids), max_tokens=max_tokens)
    sampling = Sampling(
        max_tokens=max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=None if request.seed is None else (request.seed + _SEED_STEP * index) % 2**63,
        stop=request.stop,
        logprobs=request.logprobs,
        of_prompt=request.echo and request.logprobs is not None,
    )
    return _Asked(index, prompt, sampling)


async def whole(prepared: Prepared) -> Completion:
    """The answer in one piece."""
    choices: dict[int, Choice] = {}
    tokens = 0
    async with aclosing(_parts(prepared)) as parts:
        async for part, made in parts:
            tokens += made
            if part.index in choices:
                choices[part.index].extend(part)
            else:
                choices[part.index] = part
    return prepared.chunk([choices[index] for index in sorted(choices)], prepared.usage(tokens))


async def stream(prepared: Prepared) -> AsyncGenerator[str, None]:
    """The answer as JSON documents, each with what came since the last one."""
    options = prepared.request.stream_options
    with_usage = options is not None and options.include_usage
    # Without usage the field is left out; with it, it is null in every chunk but the last (as OpenAI has it).
    exclude = None if with_usage else {"usage"}
    tokens = 0
    async with aclosing(_parts(prepared)) as parts:
        async for part, made in parts:
            tokens += made
            told = part.logprobs is not None and part.logprobs.tokens
            if part.text or told or part.finish_reason is not None:
                yield prepared.chunk([part]).model_dump_json(exclude=exclude)
    if with_usage:
        yield prepared.chunk([], prepared.usage(tokens)).model_dump_json()


async def _parts(prepared: Prepared) -> AsyncGenerator[tuple[Choice, int], None]:
    """The pieces of all choices with the tokens that each took, one choice after the other.

    A request has one turn at a time. An echo stands before a choice's first piece.
    """
    request, served = prepared.request, prepared.served
    for asked in prepared.choices:
        prompt = asked.prompt
        echo = prompt.text if request.echo else ""
        shaper = LogprobShaper(served.token_texts, served.tokenizer, prompt_characters=len(prompt.text))
        async with aclosing(served.engine.generate(prompt.ids, asked.sampling)) as pieces:
            async for piece in pieces:
                logprobs = None
                if request.logprobs is not None:
                    # In a thread, as the prompts: a long one has thousands.
                    logprobs = await asyncio.to_thread(shaper.shape, piece)
                text, echo = echo + piece.text, ""
                choice = Choice(index=asked.index, text=text, logprobs=logprobs, finish_reason=piece.finish_reason)
                yield choice, piece.tokens
