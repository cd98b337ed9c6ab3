"""What all sections of a job file share: closed, frozen, documented fields."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """A part of the job: an unknown key is an error, a value is never changed after it was read."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        serialize_by_alias=True,  # `class` and `from` are words of Python
    )


_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def span_s(value: Any) -> Any:
    """`2m`, `90s`, `500ms` or `1h` in seconds; what is no text stays as it is.

    Raises:
        ValueError: a text says no span of time.
    """
    if not isinstance(value, str):
        return value
    found = _SPAN.fullmatch(value.strip())
    if found is None or float(found[1]) <= 0.0:
        raise ValueError(f"{value} is no span of time, such as 90s, 2m or 1h")
    return float(found[1]) * _UNIT_S[found[2]]


def off(value: Any) -> Any:
    """YAML 1.1 reads a bare `off` as false: both mean the same here."""
    return "off" if value is False else value


SpanS = Annotated[
    float,
    Field(gt=0.0),
    BeforeValidator(span_s),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}]}),
]
"""Seconds, or a text such as 2m."""
Off = Literal["off"]
Threshold = Annotated[float | Off | None, BeforeValidator(off)]
"""A number; `off`; or null for what the preset says."""
Switch = Annotated[bool | None, BeforeValidator(lambda value: {"on": True, "off": False}.get(value, value))]
"""on or off; null for what the preset says."""
