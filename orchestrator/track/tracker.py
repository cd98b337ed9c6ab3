"""Where a run's numbers go besides metrics.jsonl. A tracker never stops, slows or fails the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

_SECRET_WORDS = ("key", "token", "secret", "password", "credential")
_NOT_SECRET = frozenset({"tokenizer", "batch_tokens", "max_tokens", "total_tokens", "warmup_tokens", "tokens"})


class Tracker(Protocol):
    """A view of a run."""

    def log(self, line: Mapping[str, Any]) -> None:
        """A finished step's metrics, which are in the run's `metrics.jsonl` already."""
        ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, step: int) -> None:
        """A table of a step's evaluation, of texts and numbers.

        One named `confusion` has a row for each true class, beginning with its label, and a column for each predicted
        one in the same order: it may be drawn, too.
        """
        ...

    def used_dataset(self, path: Path, facts: Mapping[str, Any]) -> None:
        """The run reads this dataset."""
        ...

    def made_export(self, path: Path, facts: Mapping[str, Any]) -> None:
        """The run made this export."""
        ...

    def summarize(self, facts: Mapping[str, Any]) -> None:
        """Numbers that stand for the whole run."""
        ...

    def alert(self, title: str, text: str) -> None:
        """Something that somebody should see at once: the run has ended by a failure."""
        ...

    def close(self) -> None:
        """Flush and end, within a bounded time."""
        ...


class NoTracker:
    """Tracks nothing."""

    def log(self, line: Mapping[str, Any]) -> None:
        """See `Tracker`."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, step: int) -> None:
        """See `Tracker`."""

    def used_dataset(self, path: Path, facts: Mapping[str, Any]) -> None:
        """See `Tracker`."""

    def made_export(self, path: Path, facts: Mapping[str, Any]) -> None:
        """See `Tracker`."""

    def summarize(self, facts: Mapping[str, Any]) -> None:
        """See `Tracker`."""

    def alert(self, title: str, text: str) -> None:
        """See `Tracker`."""

    def close(self) -> None:
        """See `Tracker`."""


def redact(value: Any, name: str = "") -> Any:
    """Plain data with the values of secret-sounding keys replaced; `${env:NAME}` stays unresolved as it is."""
    if isinstance(value, dict):
        return {key: redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [redact(item, name) for item in value]
    sounds_secret = name not in _NOT_SECRET and any(word in name.lower().split("_") for word in _SECRET_WORDS)
    if isinstance(value, str) and sounds_secret:
        return "[redacted]"
    if isinstance(value, str) and "://" in value and "@" in value:
        scheme, _, rest = value.partition("://")
        return f"{scheme}://[redacted]@{rest.rpartition('@')[2]}"
    return value
