"""How `slipway evaluate` shows scores to people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_ROWS = 30
"""Of a table, such as a confusion matrix; --json has all of it."""


def print_evaluation(document: dict[str, Any]) -> None:
    """Metrics, tables, and what the model writes."""
    out = Console(highlight=False)
    for part in shown(document):
        out.print(part)


def shown(document: dict[str, Any]) -> Iterator[Table | Text]:
    """What is printed, in its order."""
    head = f"{document['target']} on {document['split']}: step {document['step']:,}, {document['samples']:,} samples"
    yield Text(head)
    metrics = Table("metric", "value")
    for name, value in document["metrics"].items():
        metrics.add_row(name.replace("_", " "), _number(value))
    yield metrics
    for name, found in document["tables"].items():
        yield _table(name, found)
        if (more := len(found["rows"]) - _ROWS) > 0:
            yield Text(f"and {more} more rows: --json has them")
    for text in document["generated"] or []:
        yield Text(f"\n> {text['prompt']}\n{text['text']}")


def _table(name: str, found: dict[str, Any]) -> Table:
    table = Table(title=Text(name.replace("_", " ")), title_justify="left")
    for column in found["columns"]:
        table.add_column(_cell(column))
    for row in found["rows"][:_ROWS]:
        table.add_row(*map(_cell, row))
    return table


def _cell(value: Any) -> Text:
    """Labels are taken as they are: a square bracket in one is no markup."""
    return Text(_number(value))


def _number(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 1000 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
