"""The values that travel through preparation: a row as it was read, a document, and what was rejected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One row as its file gave it."""

    number: int
    """Where it stands in its file, from 1: the line of JSON lines, the row of a table, the document of a text."""
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row, or a whole file (row null), that gives no document, and why."""

    file: str
    row: int | None
    reason: str

    def __str__(self) -> str:
        where = self.file if self.row is None else f"{self.file}:{self.row}"
        return f"{where} ({self.reason})"


class RowError(ValueError):
    """What is wrong with a row; its text is the reason in `rejected.jsonl`."""


@dataclass(frozen=True, slots=True)
class Record:
    """A document on its way: what is cleaned, compared and searched, and what goes with it.

    For `kind: text` the labels are empty. For labelled kinds `texts` holds the parts that may be edited, in a fixed
    order (a pair's two texts, the contents of a chat's messages), and `labels` all else, as plain JSON data.
    """

    texts: tuple[str, ...]
    labels: dict[str, Any]

    @property
    def text(self) -> str:
        """All parts as one text: what deduplication, decontamination and `data find` look at."""
        return "\n".join(self.texts)
