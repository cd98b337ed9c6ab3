"""What became of the versions of a service: JSON lines, appended, one file a port. Survives the service."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.serve.deployment.table import next_version

EventKind = Literal["started", "canary", "shadow", "promoted", "rolled back", "refused"]


@dataclass(frozen=True)
class History:
    """The file of one service."""

    path: Path
    audit: Callable[..., None] = lambda *_, **__: None
    """Hears of each event too: its name, model, version and reason."""

    def add(self, event: EventKind, *, model: str, version: str, export: str, **more: Any) -> dict[str, Any]:
        """Append one line and have it on disk; returns it."""
        line = {"at": time.time(), "event": event, "model": model, "version": version, "export": export, **more}
        data = json.dumps(line, ensure_ascii=False) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, data.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.audit(f"rollout {event}", model=model, version=version, reason=more.get("reason"))
        return line

    def lines(self) -> list[dict[str, Any]]:
        """All events, oldest first; a last line that a crash has cut off is left out."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def next_version(self, model: str) -> str:
        """The version after all that the model has had on this port: a number never means two exports."""
        return next_version(line["version"] for line in self.lines() if line["model"] == model)

    def before(self, model: str) -> dict[str, Any] | None:
        """The version that was served before the current one; None if there was none."""
        stack = promoted(line for line in self.lines() if line["model"] == model)
        return stack[-2] if len(stack) > 1 else None


def promoted(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The versions of one model that took over, oldest first; going back to one forgets those after it."""
    stack: list[dict[str, Any]] = []
    for line in lines:
        if line["event"] not in ("started", "promoted"):
            continue
        at = next((i for i, earlier in enumerate(stack) if earlier["version"] == line["version"]), len(stack))
        stack = [*stack[:at], line]
    return stack
