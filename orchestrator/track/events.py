"""events.jsonl: what happened to a run, a line each: attempts, resumes, checkpoints, ends."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

FILE = "events.jsonl"
PROCESS = uuid.uuid4().hex[:12]
"""Names this process: attempts that were launched by one driver have it in common."""


def record(run: Path, event: str, **facts: Any) -> None:
    """Append an event. One write call of a short line: lines of several processes do not mix."""
    line = {"time": iso_time(), "event": event, **facts}
    raw = (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8")
    with (run / FILE).open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            raw = raw if file.read(1) == b"\n" else b"\n" + raw  # a torn line spoils itself and not this one
        file.write(raw)


def read_events(run: Path) -> Iterator[dict[str, Any]]:
    """The whole events of a run in their order; a torn one is left out."""
    path = run / FILE
    if not path.is_file():
        return
    with path.open("rb") as file:
        for raw in file:
            try:
                line = json.loads(raw) if raw.endswith(b"\n") else None
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("event"), str) and isinstance(line.get("time"), str):
                yield line


def iso_time(at: float | None = None) -> str:
    """A moment (`time.time`; now by default) as events say it: UTC, to the millisecond."""
    moment = datetime.now(timezone.utc) if at is None else datetime.fromtimestamp(at, timezone.utc)
    return moment.isoformat(timespec="milliseconds")


def moment(text: str) -> float:
    """What `iso_time` wrote, as `time.time` counts."""
    return datetime.fromisoformat(text).timestamp()
