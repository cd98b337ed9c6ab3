"""What all sections of a job file share: closed, frozen, documented fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

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


def off(value: Any) -> Any:
    """YAML 1.1 reads a bare `off` as false: both mean the same here."""
    return "off" if value is False else value


Off = Literal["off"]
Threshold = Annotated[float | Off | None, BeforeValidator(off)]
"""A number; `off`; or null for what the preset says."""
Switch = Annotated[bool | None, BeforeValidator(lambda value: {"on": True, "off": False}.get(value, value))]
"""on or off; null for what the preset says."""
