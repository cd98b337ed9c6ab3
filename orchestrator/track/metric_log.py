"""metrics.jsonl: a line for every finished step, in order, each step once. The source of truth; W&B is a view of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.attempts import Attempt
from orchestrator.track.metrics import EVALUATION_TIME, LOSS, STEP, STEP_TIME

FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Redone:
    """What earlier attempts have done above the checkpoint that a run goes on from."""

    steps: int
    seconds: float
    """Of these steps, with their evaluations."""
    last_line_at: float | None
    """When the newest line was written (`time.time`): a sign of life of the attempt before; None without a line."""
    first_loss: float | None = None
    """Of the first of these steps: what it has to be again."""


class MetricLog:
    """Appends to a run's metrics; opened at the step a run resumes from."""

    def __init__(self, run: Path, *, attempt: Attempt, resumed_step: int) -> None:
        self._attempt = attempt
        attempt.check()
        path = run / FILE
        path.touch()
        # Lines above the checkpoint belong to steps that will be done again; a torn last line is one of them.
        os.truncate(path, _length_up_to(path, resumed_step))
        self._file = path.open("a", encoding="utf-8")

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a step's line, visible to readers at once.

        Raises:
            FencedError: a newer attempt has begun.
        """
        self._attempt.check()
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Flush to disk: called before a checkpoint that counts on these lines is published."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """End; whatever was appended stays."""
        self._file.close()


def read_metrics(run: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a run's metrics; one that is being written is left out."""
    path = run / FILE
    if not path.is_file():
        return
    with path.open("rb") as file:
        for raw in file:
            if line := parse_line(raw):
                yield line


def redone_above(run: Path, step: int) -> Redone:
    """Looks at the lines that a resume at `step` cuts off: to be called before the log is opened."""
    path = run / FILE
    if not path.is_file() or path.stat().st_size == 0:
        return Redone(0, 0.0, None)
    cut = [line for line in read_metrics(run) if line[STEP] > step]
    seconds = sum(float(line.get(STEP_TIME, 0.0)) + float(line.get(EVALUATION_TIME, 0.0)) for line in cut)
    first_loss = cut[0].get(LOSS) if cut and cut[0][STEP] == step + 1 else None
    return Redone(len(cut), round(seconds, 3), path.stat().st_mtime, first_loss)


def parse_line(raw: bytes) -> dict[str, Any] | None:
    """A whole line that names its step; None for one that is torn or being written."""
    try:
        line = json.loads(raw) if raw.endswith(b"\n") else None
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get(STEP), int) else None


def _length_up_to(path: Path, step: int) -> int:
    """Bytes of the leading lines whose step is at most `step`."""
    length = 0
    with path.open("rb") as file:
        for raw in file:
            line = parse_line(raw)
            if line is None or line[STEP] > step:
                break
            length += len(raw)
    return length
