"""Encoders over HTTP: OpenAI's embeddings, and classification beside them. No torch, no Ray."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, WithJsonSchema, field_validator
from tokenizers import Tokenizer

from orchestrator.serve.api.bounds import beside, longest_text
from orchestrator.serve.api.errors import ApiError, context_exceeded
from orchestrator.serve.api.request import Closed, is_ids
from orchestrator.serve.engine.encoder_protocol import EncoderEngine
from orchestrator.serve.engine.protocol import EngineError

MAX_INPUTS = 2048
"""OpenAI's limit."""
_Inputs = Annotated[
    list[str | list[int]],
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "array"}]}},
            ]
        }
    ),
]


@dataclass(frozen=True, kw_only=True)
class ServedEncoder:
    """One version of one encoder behind its API."""

    name: str
    engine: EncoderEngine
    tokenizer: Tokenizer
    vocab_size: int
    """Ids below this may stand in an input."""
    context: int
    labels: tuple[str, ...]
    """Classes by their number; none: it embeds."""
    fingerprint: str
    """Changes with the weights."""
    created: int
    """Seconds since 1970."""
    version: str = "1"
    instead: Callable[[], ServedEncoder | None] = lambda: None
    """As of `Served`, as is the next."""
    copy: Callable[[Callable[[ServedEncoder], Coroutine[Any, Any, None]]], None] = lambda _: None

    @cached_property
    def longest_text(self) -> int:
        """Characters that no input exceeds which fits into the context."""
        return longest_text(self.tokenizer, self.context)


class _Inputted(Closed):
    model: str
    input: _Inputs
    """Texts, or token ids; a single one is a list of one here."""
    user: str = ""
    """Ignored."""

    @field_validator("input", mode="before")
    @classmethod
    def _list_of_inputs(cls, given: Any) -> list[str | list[int]]:
        inputs = [given] if isinstance(given, str) or is_ids(given) else given
        if (
            not isinstance(inputs, list)
            or not inputs
            or not all((isinstance(i, str) and i) or is_ids(i) for i in inputs)
        ):
            raise ValueError("must be a text, token ids, or a list of these, none of them empty")
        if len(inputs) > MAX_INPUTS:
            raise ValueError(f"has {len(inputs)} inputs; at most {MAX_INPUTS} are allowed")
        return inputs


class EmbeddingRequest(_Inputted):
    """The body of POST /v1/embeddings."""

    encoding_format: Literal["float", "base64"] = "float"
    """base64: of 32-bit floats, little-endian."""
    dimensions: int | None = Field(default=None, ge=1)
    """Only the first this many; null: all."""
    normalize: bool = True
    """Whether each is scaled to length 1, as OpenAI's are."""


class ClassifyRequest(_Inputted):
    """The body of POST /v1/classify."""


class EncoderUsage(BaseModel):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class Embedding(BaseModel):
    """The vector of one input."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Embeddings(BaseModel):
    """The answer of /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EncoderUsage


class Class(BaseModel):
    """What one input is."""

    index: int
    label: str
    """The likeliest."""
    probabilities: dict[str, float]
    """Of all labels; their sum is 1."""


class Classes(BaseModel):
    """The answer of /v1/classify."""

    object: Literal["list"] = "list"
    data: list[Class]
    model: str
    usage: EncoderUsage


async def tokenise(inputs: Sequence[str | list[int]], served: ServedEncoder) -> list[list[int]]:
    """Token ids of each input, with the tokens that stand around a text.

    Raises:
        ApiError: one does not fit into the context, or has an id that there is not.
    """
    return await beside(lambda: [_ids(given, served) for given in inputs], inputs)


def _ids(given: str | list[int], served: ServedEncoder) -> list[int]:
    if isinstance(given, str) and len(given) > served.longest_text:
        raise ApiError(
            f"input: a text of {len(given)} characters does not fit into {served.context} tokens",
            param="input",
            code="context_length_exceeded",
        )
    ids: list[int] = served.tokenizer.encode(given).ids if isinstance(given, str) else given
    if len(ids) > served.context:
        raise context_exceeded(context=served.context, prompt_tokens=len(ids), max_tokens=0, param="input")
    if (largest := max(ids)) >= served.vocab_size:
        raise ApiError(f"input: token id {largest} is not in the vocabulary of {served.vocab_size}", param="input")
    return ids


async def embed(request: EmbeddingRequest, served: ServedEncoder, ids: list[list[int]]) -> Embeddings:
    """The vectors of a request's inputs.

    Raises:
        ApiError: more dimensions are asked for than there are.
        EngineError: the engine failed.
    """
    vectors = (await served.engine.encode(ids)).vectors_BD
    if vectors is None:
        raise EngineError("the engine of this model gives no vectors")
    width = len(vectors[0])
    if request.dimensions is not None and request.dimensions > width:
        raise ApiError(
            f"dimensions {request.dimensions} is too large: this model's vectors have {width}", param="dimensions"
        )
    data = [Embedding(index=i, embedding=_shaped(vector, request)) for i, vector in enumerate(vectors)]
    return Embeddings(data=data, model=served.name, usage=_usage(ids))


async def classify(served: ServedEncoder, ids: list[list[int]]) -> Classes:
    """The classes of some inputs.

    Raises:
        EngineError: the engine failed.
    """
    logits = (await served.engine.encode(ids)).logits_BC
    if logits is None:
        raise EngineError("the engine of this model gives no classes")
    data = []
    for index, row in enumerate(logits):
        shares = [math.exp(value - max(row)) for value in row]
        found = {label: share / sum(shares) for label, share in zip(served.labels, shares, strict=True)}
        data.append(Class(index=index, label=max(found, key=found.__getitem__), probabilities=found))
    return Classes(data=data, model=served.name, usage=_usage(ids))


def _shaped(vector: list[float], request: EmbeddingRequest) -> list[float] | str:
    kept = vector[: request.dimensions]
    length = math.sqrt(math.fsum(value * value for value in kept)) if request.normalize else 1.0
    scaled = [value / length for value in kept] if length else kept
    if request.encoding_format == "float":
        return scaled
    return base64.b64encode(struct.pack(f"<{len(scaled)}f", *scaled)).decode()


def _usage(ids: list[list[int]]) -> EncoderUsage:
    count = sum(map(len, ids))
    return EncoderUsage(prompt_tokens=count, total_tokens=count)
