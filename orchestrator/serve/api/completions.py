"""OpenAI's completions API as data: what a request may say, what an answer looks like. No torch, no Ray."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, WithJsonSchema, field_validator, model_validator

from orchestrator.serve.api.request import MAX_CHOICES, Generation, field_error, is_ids, parse
from orchestrator.serve.engine.protocol import FinishReason

DEFAULT_MAX_TOKENS = 16
MAX_LOGPROBS = 5
"""Alternatives to each token; OpenAI's limit."""
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_TEXT = {"type": "string"}
_Prompts = Annotated[
    list[str | list[int]],
    WithJsonSchema({"anyOf": [_TEXT, _IDS, {"type": "array", "items": {"anyOf": [_TEXT, _IDS]}, "minItems": 1}]}),
]


class CompletionRequest(Generation):
    """The body of POST /v1/completions."""

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {"suffix": ("",)}

    prompt: _Prompts = [""]  # noqa: RUF012 - pydantic copies defaults
    """Prompts, each text or token ids; a single one is a list of one here."""
    max_tokens: int | None = Field(default=None, ge=0)
    """null: 16, or what is left of the context if that is less."""
    best_of: int | None = None
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    """Alternatives to each token that are told beside its log-probability; null: neither is."""

    @field_validator("prompt", mode="before")
    @classmethod
    def _list_of_prompts(cls, given: Any) -> list[str | list[int]]:
        if isinstance(given, str) or is_ids(given):
            return [given]
        if isinstance(given, list) and given and all(isinstance(p, str) or is_ids(p) for p in given):
            return given
        raise ValueError("must be a text, token ids, or a list of these; an empty list is none of them")

    @model_validator(mode="after")
    def _fits_together(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.n:
            raise field_error("best_of", "must equal n")
        if len(self.prompt) * self.n > MAX_CHOICES:
            raise field_error("n", f"asks for more than {MAX_CHOICES} choices over all prompts")
        return self


def parse_completion_request(body: bytes) -> CompletionRequest:
    """Check a request's body.

    Raises:
        ApiError: 400, naming the first field that is wrong.
    """
    return parse(CompletionRequest, body)


class Usage(BaseModel):
    """Tokens read and written; the end-of-text token and tokens cut off by a stop text count as written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, *, prompt_tokens: int, completion_tokens: int) -> Usage:
        """With their sum."""
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )


class Logprobs(BaseModel):
    """Log-probabilities of tokens, in nats; each list has one entry a token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """null for the first token of a prompt."""
    top_logprobs: list[dict[str, float] | None]
    """The likeliest tokens, and the token itself where it is none of them."""
    text_offset: list[int]
    """Characters from the beginning of the prompt."""

    def extend(self, more: Logprobs) -> None:
        """Go on with those of the tokens that follow."""
        self.tokens += more.tokens
        self.token_logprobs += more.token_logprobs
        self.top_logprobs += more.top_logprobs
        self.text_offset += more.text_offset


class Choice(BaseModel):
    """One completion, or a piece of one in a stream."""

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None

    def extend(self, more: Choice) -> None:
        """Go on with the piece that follows."""
        self.text += more.text
        self.finish_reason = more.finish_reason
        if self.logprobs is not None and more.logprobs is not None:
            self.logprobs.extend(more.logprobs)


class Completion(BaseModel):
    """The answer, or one event of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage | None = None


class ModelCard(BaseModel):
    """One entry of /v1/models."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "slipway"
