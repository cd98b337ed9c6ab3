"""What a person thinks of an answer, as data: the body of POST /v1/feedback. No torch, no Ray."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from orchestrator.serve.api.request import Closed

_MAX_CHARACTERS = 100_000


class Feedback(Closed):
    """One opinion of one answer."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    """Of the answer: `cmpl-...` or `chatcmpl-...`."""
    rating: Literal["up", "down"] | Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
    """Thumb up or down, or a score on a scale of the client's own."""
    choice: Annotated[int, Field(ge=0, lt=128)] = 0
    """The index of the choice that is meant."""
    correction: Annotated[str, Field(max_length=_MAX_CHARACTERS)] | None = None
    """What the answer should have been."""
    comment: Annotated[str, Field(max_length=_MAX_CHARACTERS)] | None = None
    consent: bool = False
    """Whether it may become training data."""

    @field_validator("rating", mode="before")
    @classmethod
    def _thumb_or_number(cls, given: Any) -> Any:
        if given in ("up", "down") or (isinstance(given, int | float) and not isinstance(given, bool)):
            return given
        raise ValueError("must be up, down or a number")
