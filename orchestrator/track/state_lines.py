"""How far a submitted run is, as lines of its job's log: all that a client of the cluster needs to know.

    slipway-state {"state": "training", "run": "runs/tiny-0123456789ab", "stage": "train", "step": 20, "steps": 40}

Each line holds all that is known: the newest one is enough. They are written where SLIPWAY_STATE_LINES is 1, which the
entry point of a submission sets.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

MARK = "slipway-state "
VARIABLE = "SLIPWAY_STATE_LINES"
_EVERY_S = 2.0
_CHANGES = ("state", "run", "stage", "place", "why")
"""Told at once; what else has changed waits for its time."""
_OF_WAITING = ("place", "why")


class StateLines:
    """Merges what is said into one state, and writes it at every change, of figures at most every 2 s."""

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._known: dict[str, Any] = {}
        self._written_at = -math.inf
        self._lock = threading.Lock()

    def say(self, **fields: Any) -> None:
        """Add to what is known; a field that is None is taken away."""
        with self._lock:
            before = self._known
            after = {**before, **fields}
            if after.get("state") != before.get("state"):
                after |= {name: fields.get(name) for name in _OF_WAITING}
            self._known = {name: value for name, value in after.items() if value is not None}
            changed = any(self._known.get(name) != before.get(name) for name in _CHANGES)
            if changed or (self._known != before and self._clock() - self._written_at >= _EVERY_S):
                self._written_at = self._clock()
                self._write(f"{MARK}{json.dumps(self._known, ensure_ascii=False)}\n")


def _to_stderr(line: str) -> None:
    sys.stderr.write(line)
    sys.stderr.flush()


_own = StateLines(_to_stderr)


def say_state(**fields: Any) -> None:
    """Tell whoever follows the job.

    `state` is one of waiting, preparing, training, trained, exporting, serving. Besides: `run`, `stage`, `step`,
    `steps`, `loss`, `tokens_per_s`, `goodput`, `cost`; of waiting `place` and `why`, which end with it.

    Costs nothing in a process that is no submission.
    """
    if os.environ.get(VARIABLE) == "1":
        _own.say(**fields)


def last_state(log: str) -> dict[str, Any]:
    """The newest whole state in a log; nothing where there is none."""
    for line in reversed(log.splitlines()):
        if (state := state_of_line(line)) is not None:
            return state
    return {}


def state_of_line(line: str) -> dict[str, Any] | None:
    """What a line of the log says; None of any other line."""
    if not line.startswith(MARK):
        return None
    try:
        state = json.loads(line.removeprefix(MARK))
    except ValueError:  # cut off
        return None
    return state if isinstance(state, dict) else None


def without_state_lines(log: str) -> str:
    """The log as people read it."""
    return "".join(line for line in log.splitlines(keepends=True) if not line.startswith(MARK))
