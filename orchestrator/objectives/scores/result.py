"""What a score is: metrics by name and tables, and how the ranks' parts of one come together. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

Cell = str | int | float
Row = tuple[Cell, ...]
State = dict[str, Any]
"""What one rank has added: counts, arrays and lists, made to be pickled and sent."""


@dataclass(frozen=True)
class Table:
    """Rows under named columns."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """As `Scores.to_json`."""
        return {"columns": list(self.columns), "rows": [[_plain(cell) for cell in row] for row in self.rows]}


@dataclass(frozen=True)
class Scores:
    """The result of an evaluation. Shares are from 0 to 1; a metric that cannot be known is absent."""

    metrics: dict[str, float]
    """By the names of `direction.DIRECTIONS`."""
    tables: dict[str, Table] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: {"metrics": {name: x}, "tables": {name: {"columns": [...], "rows": [[...]]}}}.

        JSON has neither NaN nor infinity: null stands for them.
        """
        return {
            "metrics": {name: _plain(value) for name, value in self.metrics.items()},
            "tables": {name: table.to_json() for name, table in self.tables.items()},
        }


class Accumulator(Protocol):
    """A score that grows row by row. Each has an `add(...)` of its own."""

    def state(self) -> State:
        """What has been added so far, for `merge`. It does not change when more is added."""
        ...

    def merge(self, states: Iterable[State]) -> None:
        """Adds what others have added, such as the other ranks. The order does not matter."""
        ...

    def result(self) -> Scores:
        """The scores of all that was added.

        Raises:
            ValueError: nothing was added.
        """
        ...


def require_scored(count: int, what: str) -> None:
    """Raises a ValueError if there is nothing to score, where a 0 or a NaN would pass for a measurement."""
    if not count:
        raise ValueError(f"no {what} to score: the split is empty, or none of it was added")


def require_same_length(first: int, second: int, what: str) -> None:
    """Raises a ValueError that says which two counts differ; `what` names both."""
    if first != second:
        raise ValueError(f"{what} must be as many as each other: they are {first} and {second}")


def _plain(value: Cell) -> Cell | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
