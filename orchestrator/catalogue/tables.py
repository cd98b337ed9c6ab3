"""The tables of the catalogue. docs/store.md tells people what is in them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FORMAT = 1
_KEY, _TEXT, _WHOLE, _REAL = "TEXT PRIMARY KEY", "TEXT", "INTEGER", "REAL"
TABLES: Mapping[str, Mapping[str, str]] = {
    "runs": {
        "run": _KEY,
        "name": _TEXT,
        "job": _TEXT,
        "state": _TEXT,
        "step": _WHOLE,
        "steps": _WHOLE,
        "train_loss": _REAL,
        "validation_loss": _REAL,
        "tokens_per_s": _REAL,
        "export": _TEXT,
        "dataset": _TEXT,
        "code": _TEXT,
        "began_at": _TEXT,
        "worked_at": _TEXT,
        "error": _TEXT,
    },
    "tags": {"run": _TEXT, "tag": _TEXT},
    "jobs": {
        "run": _TEXT,
        "attempt": _WHOLE,
        "launched_at": _TEXT,
        "workers": _WHOLE,
        "submitter": _TEXT,
        "host": _TEXT,
        "submission": _TEXT,
    },
    "datasets": {
        "dataset": _KEY,
        "kind": _TEXT,
        "documents": _WHOLE,
        "tokens": _WHOLE,
        "made_at": _TEXT,
        "error": _TEXT,
    },
    "exports": {
        "export": _KEY,
        "run": _TEXT,
        "name": _TEXT,
        "family": _TEXT,
        "step": _WHOLE,
        "made_at": _TEXT,
        "error": _TEXT,
    },
    "lineage": {"child": _TEXT, "parent": _TEXT, "how": _TEXT},
    "services": {
        "url": _TEXT,
        "host": _TEXT,
        "port": _WHOLE,
        "model": _TEXT,
        "export": _TEXT,
        "state": _TEXT,
        "started_at": _TEXT,
    },
}
"""Table -> column -> its type. Each table has `folder` besides: the folder, or the machine, that a row was read of."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """What the catalogue has of one folder."""

    path: str
    """Relative to the store."""
    seen: str
    """Equal as long as nothing in the folder changes; empty where it may just be changing."""
    rows: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    """Table -> rows with all its columns; of tables that have any."""

    @classmethod
    def of(cls, path: str, seen: str, rows: Mapping[str, Sequence[Row]]) -> Facts:
        """With what is absent in a row as null."""
        whole = {
            table: [{name: row.get(name) for name in TABLES[table]} for row in found] for table, found in rows.items()
        }
        return cls(path, seen, {table: found for table, found in whole.items() if found})
