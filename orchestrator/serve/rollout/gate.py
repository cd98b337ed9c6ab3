"""A job's evaluation gate: `validation_loss <= current + 0.01`. Pure."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator.errors import JobError

_FORM = re.compile(
    r"\s*(?P<metric>[A-Za-z_][\w./@-]*)\s*(?P<compare><=|>=|<|>)\s*"
    r"(?:(?P<current>current)\s*(?:(?P<sign>[+*-])\s*(?P<by>[0-9.eE+-]+))?|(?P<number>[+-]?[0-9.eE+-]+))\s*"
)
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_CHANGE: dict[str, Callable[[float, float], float]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@dataclass(frozen=True)
class Condition:
    """A score of the new version against a number, or against that of the version that is served."""

    text: str
    metric: str
    compare: str
    of_current: bool
    sign: str
    number: float

    def limit(self, current: Mapping[str, float]) -> float:
        """What the score is compared with."""
        return _CHANGE[self.sign](current[self.metric], self.number) if self.of_current else self.number

    def refusal(self, new: Mapping[str, float], current: Mapping[str, float] | None) -> str | None:
        """Why a version may not come, by its scores and those of the current one (None: there is none); None if it may.

        A score that is not known is no reason to trust: it refuses.
        """
        if self.of_current and current is None:
            return None
        if self.metric not in new:
            return f"the gate {self.text!r} asks for {self.metric}, which is not known of the new version"
        if self.of_current and self.metric not in (current or {}):
            return f"the gate {self.text!r} asks for {self.metric}, which is not known of the current version"
        limit = self.limit(current or {})
        # A NaN compares false with everything: it is refused.
        if _COMPARE[self.compare](new[self.metric], limit):
            return None
        return f"the gate {self.text!r} is not met: {self.metric} is {new[self.metric]:.6g}, the limit {limit:.6g}"


def parse_gate(text: str) -> list[Condition]:
    """Conditions joined by `and`: `METRIC <= NUMBER`, or `METRIC <= current + NUMBER` (also `<`, `>=`, `>`, `-`, `*`).

    Raises:
        JobError: it is written otherwise.
    """
    return [_parse(part, text) for part in re.split(r"\s+and\s+", text.strip())]


def _parse(part: str, whole: str) -> Condition:
    found = _FORM.fullmatch(part)
    try:
        if found is None:
            raise ValueError
        number = float(found["number"] or found["by"] or 0.0)
    except ValueError:
        raise JobError(
            f"serve.gate {whole!r} cannot be read at {part.strip()!r}",
            fix="write it as `validation_loss <= current + 0.01` or `validation_loss < 3.2`, several joined by `and`",
        ) from None
    return Condition(
        text=part.strip(),
        metric=found["metric"],
        compare=found["compare"],
        of_current=found["current"] is not None,
        sign=found["sign"] or "+",
        number=number,
    )


def refusal(gate: str | None, new: Mapping[str, float], current: Mapping[str, float] | None) -> str | None:
    """Why a gate refuses a version; None if it lets it through, or there is no gate."""
    if gate is None:
        return None
    return next((why for c in parse_gate(gate) if (why := c.refusal(new, current)) is not None), None)
