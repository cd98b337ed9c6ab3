"""Which faults come when, and what a drill has found, as it is told. Pure."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from orchestrator.errors import JobError

Kind = Literal[
    "kill-worker",
    "kill-node",
    "stop-worker",
    "slow-worker",
    "kill-driver",
    "fill-disk",
    "tear-checkpoint",
    "flip-bit",
    "cut-network",
    "preempt",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
DISTURBING = frozenset(KINDS) - {"tear-checkpoint", "flip-bit"}
"""What holds the training up. A damaged checkpoint does not, until somebody wants to go on from it."""
ENDING = frozenset(KINDS) & {"kill-worker", "kill-node", "stop-worker", "kill-driver", "preempt"}
"""What ends an attempt for sure: only a step of the next one is a recovery, since workers may outlive their driver."""
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smh])+")
_JITTER = 0.2


@dataclass(frozen=True)
class Planned:
    """A fault that is to come."""

    kind: Kind
    at_s: float
    """After the drill has begun."""


@dataclass
class Fault:
    """A fault that was given."""

    kind: Kind
    at: str
    """UTC, as events.jsonl has it."""
    pid: int | None = None
    """Of the process that it hit first; null of a checkpoint, a disk or a network."""
    recovered_in_s: float | None = None
    """Up to the first step that was new after the fault; null where nothing had to recover, or did."""

    def to_json(self) -> dict[str, Any]:
        """As `slipway chaos --json` has it."""
        seconds = self.recovered_in_s
        return {
            "kind": self.kind,
            "at": self.at,
            "pid": self.pid,
            "recovered_in_s": None if seconds is None else round(seconds, 3),
        }


@dataclass
class Report:
    """What a drill has found."""

    faults: list[Fault] = field(default_factory=list)
    put_off: list[str] = field(default_factory=list)
    """Faults that could not be given in their time, with the reason."""
    steps: int = 0
    """Up to which the samples are proved: those that a checkpoint holds."""
    samples_lost: int = 0
    samples_repeated: int = 0
    samples_skipped: int = 0
    steps_redone: int = 0
    goodput: float = 0.0
    """Of the run, from its first attempt on."""
    violations: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the run has kept every promise."""
        return not self.violations

    def to_json(self) -> dict[str, Any]:
        """The document of `slipway chaos --json`."""
        return {
            "verdict": "pass" if self.passed else "fail",
            **vars(self),
            "faults": [fault.to_json() for fault in self.faults],
        }


def parse_kinds(text: str) -> list[Kind]:
    """`kill-worker,stop-worker` as kinds of faults.

    Raises:
        JobError: one is none, or is named twice.
    """
    found: list[Kind] = []
    for word in text.split(","):
        kind = next((kind for kind in KINDS if kind == word.strip()), None)
        if kind is None or kind in found:
            what = "is named twice" if kind else "is no fault"
            raise JobError(f"{word.strip()!r} {what} in {text!r}", fix=f"the faults are {', '.join(KINDS)}")
        found.append(kind)
    return found


def parse_duration(text: str, *, option: str) -> float:
    """`45s`, `5m` or `1h30m` in seconds.

    Raises:
        JobError: it is no duration, or is 0; `option` says where it stood.
    """
    if _DURATION.fullmatch(text):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)([smh])", text))
        if seconds > 0:
            return seconds
    raise JobError(f"{option} {text!r} is no duration", fix=f"give a number and s, m or h, such as {option} 45s")


def schedule(kinds: Sequence[Kind], *, every_s: float, for_s: float, seed: int) -> list[Planned]:
    """One fault in each interval of `every_s` until `for_s`, the same for the same seed.

    All kinds come once before one comes again, each time in another order; in its interval a fault comes within the
    first fifth.
    """
    rng = random.Random(seed)
    planned: list[Planned] = []
    turn: list[Kind] = []
    for interval in range(math.ceil(for_s / every_s)):
        turn = turn or rng.sample(list(kinds), len(kinds))
        at_s = (interval + rng.uniform(0.0, _JITTER)) * every_s
        if at_s < for_s:
            planned.append(Planned(turn.pop(), round(at_s, 3)))
    return planned
