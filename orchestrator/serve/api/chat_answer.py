"""`POST /v1/chat/completions`: a chat to token ids, and pieces to OpenAI's documents."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing

from orchestrator.serve.api.answer import Asked, Prompt, Served, Wish, Work, parts, plan
from orchestrator.serve.api.bounds import beside
from orchestrator.serve.api.chat import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprob,
    ChatLogprobs,
    ChatRequest,
    ChunkChoice,
    Delta,
    Said,
    TopLogprob,
)
from orchestrator.serve.api.completions import Usage
from orchestrator.serve.api.errors import ApiError
from orchestrator.serve.engine.protocol import FinishReason, Piece


class ChatAnswer:
    """The answer to one chat."""

    def __init__(self, request: ChatRequest, work: Work) -> None:
        self.work = work
        self.completions: dict[int, str] = {}
        """What each choice has said so far."""
        self._request = request

    @classmethod
    async def prepare(cls, request: ChatRequest, served: Served) -> ChatAnswer:
        """Render and tokenise the chat, and plan each choice.

        Raises:
            ApiError: the model has no chat template, or refuses the chat; or there is no room for it.
        """
        chat = served.chat
        if chat is None:
            raise ApiError(
                f"The model `{served.name}` has no chat template: ask /v1/completions, or train it with "
                "data.tokenizer.chat_template",
                param="messages",
                code="no_chat_template",
            )
        for message in request.messages:
            served.require_short(message.content, "messages")
        texts = [message.content for message in request.messages]
        prompt = await beside(lambda: Prompt(chat.ids(chat.text(request.messages)), ""), texts)
        wish = Wish(
            max_tokens=request.limit_tokens,
            default_tokens=served.context,
            param="messages",
            logprobs=request.top_logprobs if request.logprobs else None,
            # What ends the assistant's turn besides the end of the text.
            ends=() if request.ignore_eos else [end for end in chat.ends if end != served.eos_id],
        )
        choices = plan(request, served, [prompt], wish)
        made = Work(id=f"chatcmpl-{uuid.uuid4().hex}", served=served, choices=choices, prompt_tokens=len(prompt.ids))
        return cls(request, made)

    @property
    def prompts(self) -> tuple[str, ...]:
        """What was asked, as JSON of the messages."""
        return (json.dumps([message.plain for message in self._request.messages], ensure_ascii=False),)

    async def whole(self, *, deadline_s: float | None = None) -> str:
        """The answer in one piece, as JSON."""
        reasons: dict[int, FinishReason] = {}
        told: dict[int, list[ChatLogprob]] = {asked.index: [] for asked in self.work.choices}
        async with aclosing(parts(self.work, deadline_s=deadline_s)) as pieces:
            async for asked, piece in pieces:
                self._note(asked, piece)
                told[asked.index] += self._logprobs(piece)
                if piece.finish_reason is not None:
                    reasons[asked.index] = piece.finish_reason
        choices = [
            ChatChoice(
                index=index,
                message=Said(content=self.completions[index]),
                logprobs=ChatLogprobs(content=told[index]) if self._request.logprobs else None,
                finish_reason=reasons[index],
            )
            for index in sorted(reasons)
        ]
        work, served = self.work, self.work.served
        return ChatCompletion(
            id=work.id,
            created=work.created,
            model=served.name,
            system_fingerprint=served.fingerprint,
            choices=choices,
            usage=self._usage(),
        ).model_dump_json()

    async def stream(self, *, deadline_s: float | None = None) -> AsyncGenerator[str, None]:
        """The answer as JSON documents: who speaks, then what came since the last one, then why it ended."""
        options = self._request.stream_options
        with_usage = options is not None and options.include_usage
        async with aclosing(parts(self.work, deadline_s=deadline_s)) as pieces:
            async for asked, piece in pieces:
                if asked.index not in self.completions:
                    yield self._chunk(asked, Delta(role="assistant", content="", refusal=None))
                self._note(asked, piece)
                logprobs = self._logprobs(piece)
                if piece.text or logprobs:
                    yield self._chunk(asked, Delta(content=piece.text), logprobs)
                if piece.finish_reason is not None:
                    yield self._chunk(asked, Delta(), reason=piece.finish_reason)
        if with_usage:
            yield self._document([], self._usage())

    def _note(self, asked: Asked, piece: Piece) -> None:
        self.completions[asked.index] = self.completions.get(asked.index, "") + piece.text

    def _chunk(
        self,
        asked: Asked,
        delta: Delta,
        logprobs: list[ChatLogprob] | None = None,
        *,
        reason: FinishReason | None = None,
    ) -> str:
        told = ChatLogprobs(content=logprobs) if logprobs else None
        return self._document([ChunkChoice(index=asked.index, delta=delta, logprobs=told, finish_reason=reason)])

    def _document(self, choices: list[ChunkChoice], usage: Usage | None = None) -> str:
        work, served = self.work, self.work.served
        chunk = ChatChunk(
            id=work.id,
            created=work.created,
            model=served.name,
            system_fingerprint=served.fingerprint,
            choices=choices,
            usage=usage,
        ).model_dump()
        for told, choice in zip(chunk["choices"], choices, strict=True):
            told["delta"] = choice.delta.model_dump(exclude_unset=True)
        options = self._request.stream_options
        # Without usage the field is left out; with it, it is null in every chunk but the last (as OpenAI has it).
        if options is None or not options.include_usage:
            del chunk["usage"]
        return json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))

    def _logprobs(self, piece: Piece) -> list[ChatLogprob]:
        texts = self.work.served.token_texts
        found = []
        for each in piece.logprobs:
            if each.logprob is not None:
                own = TopLogprob(token=texts[each.token], logprob=each.logprob, bytes=list(texts.bytes_of(each.token)))
                top = [
                    TopLogprob(token=texts[token], logprob=value, bytes=list(texts.bytes_of(token)))
                    for token, value in each.top[: self._request.top_logprobs]
                ]
                found.append(ChatLogprob(**own.model_dump(), top_logprobs=top))
        return found

    def _usage(self) -> Usage:
        return Usage.of(prompt_tokens=self.work.prompt_tokens, completion_tokens=self.work.completion_tokens)
