"""Requests as data: what all that generate may say, and how a wrong one is named. No torch, no Ray."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, TypeVar

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, field_validator, model_validator

from orchestrator.serve.api.errors import ApiError

MAX_CHOICES = 128
"""Largest number of prompts times `n` in one request."""
_MAX_STOPS = 16
"""OpenAI allows 4; tasks of lm-eval have up to 6, with the end of the text."""
_MAX_STOP_CHARACTERS = 1000
_MAX_BIASES = 1024
_MAX_TOKEN_ID = 2**31 - 1

_Request = TypeVar("_Request", bound="Closed")
_Stops = Annotated[
    tuple[str, ...],
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


class Closed(BaseModel):
    """An object without unknown fields, in which null is the same as nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, data: Any) -> Any:
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


class StreamOptions(Closed):
    """What a stream holds besides text."""

    include_usage: bool = False
    include_obfuscation: bool = False
    """Accepted, and nothing is done: such padding guards against eavesdroppers, as TLS does."""


class Generation(Closed):
    """What every request for text may say: OpenAI's settings, and those of vLLM beside them."""

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Fields of OpenAI's that do nothing here, and the values besides null that ask for nothing."""

    model: str
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=-1, le=_MAX_TOKEN_ID)
    """Only the likeliest this many tokens; 0 and -1: all."""
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    """Only tokens at least this share as likely as the likeliest."""
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    repetition_penalty: float = Field(default=1.0, gt=0.0, le=10.0)
    logit_bias: dict[int, float] = {}
    """Added to the logits of these token ids, each from -100 to 100."""
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: _Stops = ()
    stop_token_ids: tuple[Annotated[int, Field(ge=0, le=_MAX_TOKEN_ID)], ...] = Field(default=(), max_length=_MAX_STOPS)
    ignore_eos: bool = False
    """Go on after the end of the text, to `max_tokens`."""
    min_tokens: int = Field(default=0, ge=0)
    """Neither the end of the text nor a stop token before this many."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str = ""
    """Ignored."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, harmless in cls.UNSUPPORTED.items():
            # By equality of type too: `False in (0,)` is true.
            if data.get(name) is not None and not any(_same(data[name], value) for value in harmless):
                raise field_error(name, "is not supported")
        return {key: value for key, value in data.items() if key not in cls.UNSUPPORTED}

    @field_validator("stop", mode="before")
    @classmethod
    def _tuple_of_stops(cls, given: Any) -> tuple[str, ...]:
        stops = [given] if isinstance(given, str) else given
        if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
            raise ValueError("must be a text or a list of texts, none of them empty")
        if len(stops) > _MAX_STOPS:
            raise ValueError(f"has {len(stops)} texts; at most {_MAX_STOPS} are allowed")
        if max(map(len, stops), default=0) > _MAX_STOP_CHARACTERS:
            raise ValueError(f"has a text of more than {_MAX_STOP_CHARACTERS} characters")
        return tuple(stops)

    @field_validator("stop_token_ids", mode="before")
    @classmethod
    def _tuple_of_ids(cls, given: Any) -> Any:
        return tuple(given) if isinstance(given, list) else given

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _biases(cls, given: Any) -> dict[int, float]:
        if not isinstance(given, dict) or len(given) > _MAX_BIASES:
            raise ValueError(f"must be an object of at most {_MAX_BIASES} token ids, each with its bias")
        biases = {}
        for token, bias in given.items():
            if not token.isascii() or not token.isdigit() or int(token[:12]) > _MAX_TOKEN_ID:
                raise ValueError(f"has {shortened(token)}, which is no token id")
            if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
                raise ValueError(f"has no number from -100 to 100 for token {token}")
            biases[int(token)] = float(bias)
        return biases

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Generation:
        if self.stream_options is not None and not self.stream:
            raise field_error("stream_options", "is only allowed when stream is true")
        return self


def _same(given: Any, harmless: Any) -> bool:
    return given == harmless and isinstance(given, bool) == isinstance(harmless, bool)


def field_error(param: str, message: str) -> pydantic_core.PydanticCustomError:
    """An error that a validator of the whole request found in one field."""
    return pydantic_core.PydanticCustomError("field", "{message}", {"param": param, "message": message})


def is_ids(value: Any) -> bool:
    """Whether a value of JSON is a list of token ids, and not empty."""
    return isinstance(value, list) and bool(value) and all(type(i) is int and i >= 0 for i in value)


def parse(form: type[_Request], body: bytes) -> _Request:
    """Check a request's body.

    Raises:
        ApiError: 400, naming the first field that is wrong.
    """
    try:
        return form.model_validate(json_object(body))
    except ValidationError as error:
        raise _api_error(error) from None


def json_object(body: bytes) -> dict[str, Any]:
    """The object in a body; the parser itself refuses one nested deeper than some 200 levels.

    Raises:
        ApiError: 400, it is no JSON, or no object.
    """
    try:
        data = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(f"We could not parse the JSON body of your request: {error}") from None
    if not isinstance(data, dict):
        raise ApiError("The body of your request must be a JSON object")
    return data


def _api_error(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    param = str(context.get("param") or (first["loc"][0] if first["loc"] else ""))
    if first["type"] == "missing" and len(first["loc"]) == 1:
        return ApiError(f"you must provide a {param} parameter", param=param)
    if first["type"] == "extra_forbidden":
        name = ".".join(str(part) for part in first["loc"])[:80]
        return ApiError(f"Unrecognized request argument supplied: {name}", param=name)
    where = param if "param" in context else "".join(_step(part) for part in first["loc"]).removeprefix(".")
    found = "" if "param" in context else f", got {shortened(first['input'])}"
    return ApiError(f"{where}: {first['msg'].removeprefix('Value error, ')}{found}", param=param)


def _step(part: str | int) -> str:
    return f"[{part}]" if isinstance(part, int) else f".{part}"


def shortened(value: Any) -> str:
    """A value of a request as a message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
