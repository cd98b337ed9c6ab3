"""OpenAI's chat API as data: what a request may say, what an answer looks like. No torch, no Ray."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, WithJsonSchema, field_validator, model_validator

from orchestrator.serve.api.completions import Usage
from orchestrator.serve.api.request import Closed, Generation, field_error
from orchestrator.serve.engine.protocol import FinishReason

MAX_MESSAGES = 2048
MAX_TOP_LOGPROBS = 20
"""Alternatives to each token; OpenAI's limit."""
_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_Content = Annotated[
    str, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _PART, "minItems": 1}]})
]


class Message(Closed):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    """`developer` is OpenAI's new name of `system`; templates know the old one."""
    content: _Content
    """A text, or a list of parts {"type": "text", "text": ...}, which are put together."""
    name: str = ""
    """Ignored, as templates know no names."""

    @model_validator(mode="before")
    @classmethod
    def _without_what_answers_hold(cls, data: Any) -> Any:
        """A message of an answer may be sent back as it came: with fields of null or nothing."""
        if not isinstance(data, dict):
            return data
        nothing = ("refusal", "annotations", "audio", "function_call", "tool_calls")
        return {k: v for k, v in data.items() if k not in nothing or v not in (None, [])}

    @field_validator("content", mode="before")
    @classmethod
    def _text_of_parts(cls, given: Any) -> Any:
        if not isinstance(given, list):
            return given
        if not given:
            raise ValueError("must be a text or a list of text parts; an empty list is neither")
        for part in given:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ValueError('has a part that is not {"type": "text", "text": ...}: this model reads text alone')
        return "".join(part["text"] for part in given)

    @property
    def plain(self) -> dict[str, str]:
        """As templates know it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class ChatRequest(Generation):
    """The body of POST /v1/chat/completions."""

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "audio": (),
        "function_call": ("none",),
        "functions": ([],),
        "modalities": (["text"],),
        "prediction": (),
        "reasoning_effort": ("none",),
        "response_format": ({"type": "text"},),
        "store": (False,),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "web_search_options": (),
    }

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(default=None, ge=1)
    """OpenAI's old name of `max_completion_tokens`."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """null: what is left of the context."""
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MAX_TOP_LOGPROBS)
    """Alternatives to each token."""
    metadata: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies defaults
    """Ignored, as are the four that follow."""
    parallel_tool_calls: bool = True
    prompt_cache_key: str = ""
    safety_identifier: str = ""
    service_tier: str = "auto"

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise field_error("max_tokens", "and max_completion_tokens say different things; give one of them")
        if self.top_logprobs and not self.logprobs:
            raise field_error("top_logprobs", "is only allowed when logprobs is true")
        return self

    @property
    def limit_tokens(self) -> int | None:
        """By either name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class TopLogprob(BaseModel):
    """A token that might have stood there."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of tokens, in nats."""

    content: list[ChatLogprob]
    refusal: None = None


class Said(BaseModel):
    """What the model answers."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Delta(BaseModel):
    """What a chunk adds; fields that are not set are left out."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: Said
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChunkChoice(BaseModel):
    """A piece of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletion(BaseModel):
    """The whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ChatChunk(BaseModel):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
