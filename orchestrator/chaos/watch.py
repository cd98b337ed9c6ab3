"""What a run's metrics say while it is disturbed: of steps that are redone, the file keeps the last line alone."""

from __future__ import annotations

import contextlib
import math
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.track import metrics
from orchestrator.track.metric_log import FILE, parse_line

_POLL_S = 0.1


@dataclass(frozen=True)
class Redone:
    """A step that was done again, and its loss each time."""

    step: int
    before: float
    after: float


@dataclass(frozen=True)
class _Line:
    """Where a line stands, and its checksum."""

    start: int
    end: int
    crc: int


class Watch:
    """Follows `metrics.jsonl`: `look` reads what is new."""

    def __init__(self, run: Path) -> None:
        self._path = run / FILE
        self._lines: list[_Line] = []
        self._losses: dict[int, float] = {}
        self._looking = threading.Lock()
        self.highest = 0
        """The last step that any attempt has finished."""
        self.redone: list[Redone] = []

    def look(self) -> None:
        """Read the lines that have come, and let go of those that were cut off. For several threads."""
        with self._looking, contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            while self._lines:
                last = self._lines[-1]
                file.seek(last.start)
                if zlib.crc32(file.read(last.end - last.start)) == last.crc:
                    break
                self._lines.pop()
            start = self._lines[-1].end if self._lines else 0
            file.seek(start)
            for raw in file:
                if not raw.endswith(b"\n"):
                    break
                self._lines.append(_Line(start, start + len(raw), zlib.crc32(raw)))
                start += len(raw)
                self._take(raw)

    def _take(self, raw: bytes) -> None:
        line = parse_line(raw)
        if line is None:
            return
        step, loss = line[metrics.STEP], loss_of(line)
        if step in self._losses:
            self.redone.append(Redone(step, self._losses[step], loss))
        self._losses[step] = loss
        self.highest = max(self.highest, step)


def loss_of(line: Mapping[str, Any]) -> float:
    """Of a line of metrics; not a number where it has none."""
    loss = line.get(metrics.LOSS)
    return float(loss) if isinstance(loss, (int, float)) else math.nan


@contextlib.contextmanager
def watching(run: Path) -> Iterator[Watch]:
    """Look at the metrics ten times a second in a thread, as long as the block lasts."""
    watch, ended = Watch(run), threading.Event()
    watch.look()

    def keep_looking() -> None:
        while not ended.wait(_POLL_S):
            watch.look()

    thread = threading.Thread(target=keep_looking, name="chaos-watch", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()
