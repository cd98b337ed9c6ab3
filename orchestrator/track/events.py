"""events.jsonl: what happened to a run, a line each: attempts, resumes, checkpoints, ends."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any


def record(run: Path, event: str, **facts: Any) -> None:
    """Append an event. One write call of a short line: lines of several processes do not mix."""
    line = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), "event": event, **facts}
    with (run / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
