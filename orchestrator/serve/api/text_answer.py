"""`POST /v1/completions`: prompts to token ids, and pieces to OpenAI's documents."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing

from orchestrator.serve.api.answer import Asked, Prompt, Served, Wish, Work, parts, plan
from orchestrator.serve.api.bounds import beside
from orchestrator.serve.api.completions import DEFAULT_MAX_TOKENS, Choice, Completion, CompletionRequest, Usage
from orchestrator.serve.api.errors import ApiError
from orchestrator.serve.api.logprobs import LogprobShaper
from orchestrator.serve.engine.protocol import Piece


class TextAnswer:
    """The answer to one request for completions."""

    def __init__(self, request: CompletionRequest, prompts: list[Prompt], work: Work) -> None:
        self.work = work
        self.completions: dict[int, str] = {}
        """What each choice has said so far, without an echo."""
        self._request = request
        self._prompts = prompts
        self._shapers: dict[int, LogprobShaper] = {}

    @classmethod
    async def prepare(cls, request: CompletionRequest, served: Served) -> TextAnswer:
        """Tokenise the prompts and plan each choice.

        Raises:
            ApiError: a token id that there is not, or more tokens than there is room for.
        """
        prompts = await beside(lambda: [_read(prompt, request, served) for prompt in request.prompt], request.prompt)
        wish = Wish(
            max_tokens=request.max_tokens,
            default_tokens=DEFAULT_MAX_TOKENS,
            param="prompt",
            logprobs=request.logprobs,
            of_prompt=request.echo and request.logprobs is not None,
        )
        choices = plan(request, served, prompts, wish)
        count = sum(len(prompt.ids) for prompt in prompts)
        work = Work(id=f"cmpl-{uuid.uuid4().hex}", served=served, choices=choices, prompt_tokens=count)
        return cls(request, prompts, work)

    @property
    def prompts(self) -> tuple[str, ...]:
        """What was asked, as text."""
        decode = self.work.served.tokenizer.decode
        return tuple(prompt.text or decode(prompt.ids, skip_special_tokens=False) for prompt in self._prompts)

    async def whole(self, *, deadline_s: float | None = None) -> str:
        """The answer in one piece, as JSON."""
        choices: dict[int, Choice] = {}
        async with aclosing(parts(self.work, deadline_s=deadline_s)) as pieces:
            async for asked, piece in pieces:
                choice = await self._choice(asked, piece)
                if asked.index in choices:
                    choices[asked.index].extend(choice)
                else:
                    choices[asked.index] = choice
        return self._document([choices[index] for index in sorted(choices)], self._usage()).model_dump_json()

    async def stream(self, *, deadline_s: float | None = None) -> AsyncGenerator[str, None]:
        """The answer as JSON documents, each with what came since the last one."""
        options = self._request.stream_options
        with_usage = options is not None and options.include_usage
        # Without usage the field is left out; with it, it is null in every chunk but the last (as OpenAI has it).
        exclude = None if with_usage else {"usage"}
        async with aclosing(parts(self.work, deadline_s=deadline_s)) as pieces:
            async for asked, piece in pieces:
                choice = await self._choice(asked, piece)
                told = choice.logprobs is not None and choice.logprobs.tokens
                if choice.text or told or choice.finish_reason is not None:
                    yield self._document([choice]).model_dump_json(exclude=exclude)
        if with_usage:
            yield self._document([], self._usage()).model_dump_json()

    async def _choice(self, asked: Asked, piece: Piece) -> Choice:
        """What a piece adds to its choice; an echo stands before the first one."""
        prompt, first = asked.prompt, asked.index not in self.completions
        self.completions[asked.index] = self.completions.get(asked.index, "") + piece.text
        text = (prompt.text if first and self._request.echo else "") + piece.text
        logprobs = None
        if self._request.logprobs is not None:
            if first:
                served = self.work.served
                shaper = LogprobShaper(served.token_texts, served.tokenizer, prompt_characters=len(prompt.text))
                self._shapers[asked.index] = shaper
            # In a thread, as the prompts: a long one has thousands.
            logprobs = await asyncio.to_thread(self._shapers[asked.index].shape, piece)
        return Choice(index=asked.index, text=text, logprobs=logprobs, finish_reason=piece.finish_reason)

    def _document(self, choices: list[Choice], usage: Usage | None = None) -> Completion:
        served = self.work.served
        return Completion(
            id=self.work.id,
            created=self.work.created,
            model=served.name,
            system_fingerprint=served.fingerprint,
            choices=choices,
            usage=usage,
        )

    def _usage(self) -> Usage:
        return Usage.of(prompt_tokens=self.work.prompt_tokens, completion_tokens=self.work.completion_tokens)


def _read(given: str | list[int], request: CompletionRequest, served: Served) -> Prompt:
    if isinstance(given, str):
        served.require_short(given, "prompt")
        ids: list[int] = served.tokenizer.encode(given, add_special_tokens=False).ids
        # The empty text is the beginning of a document, which follows the last one's end.
        return Prompt(ids or [served.eos_id], given)
    if (largest := max(given)) >= served.vocab_size:
        raise ApiError(f"prompt: token id {largest} is not in the vocabulary of {served.vocab_size}", param="prompt")
    told = request.echo or request.logprobs is not None  # offsets count from the prompt's beginning
    fits = len(given) <= served.context
    return Prompt(given, served.tokenizer.decode(given, skip_special_tokens=False) if told and fits else "")
