"""OpenAI's completions API as data: what a request may say, what an answer looks like. No torch, no Ray."""

from __future__ import annotations

from typing import Any, Literal

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from orchestrator.serve.api.errors import ApiError

DEFAULT_MAX_TOKENS = 16
MAX_CHOICES = 128
"""Largest number of prompts times `n` in one request."""
MAX_LOGPROBS = 5
"""Alternatives to each token; OpenAI's limit."""
_MAX_STOPS = 16
"""OpenAI allows 4; tasks of lm-eval have up to 6, with the end of the text."""
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
}
"""Fields of OpenAI's that do nothing here, and the values besides null that ask for nothing."""


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, data: Any) -> Any:
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


class StreamOptions(_Closed):
    """What a stream holds besides text."""

    include_usage: bool = False
    include_obfuscation: bool = False
    """Accepted, and nothing is done: such padding guards against eavesdroppers; this is loopback."""


class CompletionRequest(_Closed):
    """The body of POST /v1/completions."""

    model: str
    prompt: list[str | list[int]] = [""]
    """Prompts, each text or token ids; a single one is a list of one here."""
    max_tokens: int | None = Field(default=None, ge=0)
    """null: 16, or what is left of the context if that is less."""
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    best_of: int | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: tuple[str, ...] = ()
    stream: bool = False
    stream_options: StreamOptions | None = None
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    """Alternatives to each token that are told beside its log-probability; null: neither is."""
    user: str = ""
    """Ignored."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, harmless in _UNSUPPORTED.items():
            if data.get(name) is not None and data[name] not in harmless:
                raise _field_error(name, "is not supported")
        return {key: value for key, value in data.items() if key not in _UNSUPPORTED}

    @field_validator("prompt", mode="before")
    @classmethod
    def _list_of_prompts(cls, given: Any) -> list[str | list[int]]:
        if isinstance(given, str) or _is_ids(given):
            return [given]
        if isinstance(given, list) and given and all(isinstance(p, str) or _is_ids(p) for p in given):
            return given
        raise ValueError("must be a text, token ids, or a list of these; an empty list is none of them")

    @field_validator("stop", mode="before")
    @classmethod
    def _tuple_of_stops(cls, given: Any) -> tuple[str, ...]:
        stops = [given] if isinstance(given, str) else given
        if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
            raise ValueError("must be a text or a list of texts, none of them empty")
        if len(stops) > _MAX_STOPS:
            raise ValueError(f"has {len(stops)} texts; at most {_MAX_STOPS} are allowed")
        return tuple(stops)

    @model_validator(mode="after")
    def _fits_together(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.n:
            raise _field_error("best_of", "must equal n")
        if len(self.prompt) * self.n > MAX_CHOICES:
            raise _field_error("n", f"asks for more than {MAX_CHOICES} choices over all prompts")
        if self.stream_options is not None and not self.stream:
            raise _field_error("stream_options", "is only allowed when stream is true")
        return self


def _field_error(param: str, message: str) -> pydantic_core.PydanticCustomError:
    """An error that a validator of the whole request found in one field."""
    return pydantic_core.PydanticCustomError("field", "{message}", {"param": param, "message": message})


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(i) is int and i >= 0 for i in value)


def parse_completion_request(body: bytes) -> CompletionRequest:
    """Check a request's body.

    Raises:
        ApiError: 400, naming the first field that is wrong.
    """
    try:
        data = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(f"We could not parse the JSON body of your request: {error}") from None
    if not isinstance(data, dict):
        raise ApiError("The body of your request must be a JSON object")
    try:
        return CompletionRequest.model_validate(data)
    except ValidationError as error:
        raise _api_error(error) from None


def _api_error(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    param = str(context.get("param") or (first["loc"][0] if first["loc"] else ""))
    if first["type"] == "missing":
        return ApiError(f"you must provide a {param} parameter", param=param)
    if first["type"] == "extra_forbidden":
        name = ".".join(str(part) for part in first["loc"])
        return ApiError(f"Unrecognized request argument supplied: {name}", param=name)
    found = "" if "param" in context else f", got {_shortened(first['input'])}"
    return ApiError(f"{param}: {first['msg'].removeprefix('Value error, ')}{found}", param=param)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


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
    finish_reason: Literal["stop", "length"] | None

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
