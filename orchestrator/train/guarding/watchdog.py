"""A watchdog in each worker: one that makes no progress leaves the stacks of all ranks and ends its process.

    RUN/hang-N                          who has hung first in attempt N, which the other ranks' watchdogs look for
    RUN/stacks/attempt-N-rank-M.txt     what each thread of a rank was doing

A rank that is stopped by a signal writes none: the others notice, because they wait for it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.attempts import Attempt
from orchestrator.job_train import Watchdog as Limits
from orchestrator.store import write_text
from orchestrator.track import events, metrics
from orchestrator.train.recovery.failures import HANG_EXIT_CODE

if TYPE_CHECKING:  # the driver reads `hang-N` and has no torch
    from orchestrator.checkpoint.layout import Progress
    from orchestrator.data.load.order import Indices
    from orchestrator.objectives.scores.result import Scores
    from orchestrator.train.guarding.guard import Anomaly
    from orchestrator.train.loop import Hooks

Phase = Literal["setup", "step", "checkpoint", "evaluation"]
STACKS = "stacks"
_POLL_S = 1.0
_MOST_ASLEEP_S = 5 * _POLL_S
"""A process that did not run itself for longer, stopped or on a machine that slept, has not waited so long."""
_OTHERS_S = 3.0
"""How long the other ranks have to write theirs."""
_GIVE_UP_S = 8.0
"""After this the process ends even if the run's folder takes no more writes."""
_RECENT_STEPS = 64
_STEP_S, _SETUP_S, _CHECKPOINT_S, _EVALUATION_S = 30.0, 1800.0, 1800.0, 3600.0
_TIMES = 10.0


@dataclass(frozen=True)
class Hang:
    """Who made no progress, in what, for how long."""

    rank: int
    phase: Phase
    step: int
    """The last that this rank had finished."""
    limit_s: float

    @property
    def cause(self) -> str:
        """In one line."""
        return f"rank {self.rank} made no progress for {self.limit_s:.0f} s: {self.phase}, after step {self.step}"


def read_hang(attempt: Attempt) -> Hang | None:
    """What a watchdog of an attempt has left; None where none had to."""
    try:
        return Hang(**json.loads(_hang_file(attempt).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def limit_s(phase: Phase, limits: Limits, *, recent_steps_s: list[float], longest_evaluation_s: float) -> float:
    """How long a phase may last, in seconds."""
    if phase == "setup":
        return limits.setup_s or _SETUP_S
    if phase == "checkpoint":
        return limits.checkpoint_s or _CHECKPOINT_S
    if phase == "evaluation":
        return limits.evaluation_s or max(_EVALUATION_S, _TIMES * longest_evaluation_s)
    return limits.step_s or max(_STEP_S, _TIMES * median(recent_steps_s or [0.0]))


@dataclass(frozen=True)
class _Stamp:
    """A sign of progress."""

    phase: Phase
    step: int


class Watchdog:
    """Of one rank. The training thread leaves stamps; a thread of the watchdog's own looks at them."""

    def __init__(
        self,
        attempt: Attempt,
        *,
        rank: int,
        num_ranks: int,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._attempt = attempt
        self._rank = rank
        self._num_ranks = num_ranks
        self._limits = limits
        self._clock = clock
        self._stamp = self._seen = _Stamp("setup", 0)
        self._steps_s: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._longest_evaluation_s = 0.0
        self._looked_at = clock()
        self._waited_s = 0.0
        self._finished = False

    def stepped(self, step: int, seconds: float) -> None:
        """A step is done: two assignments. The set-up ends with an attempt's first."""
        self._steps_s.append(seconds)
        self._stamp = _Stamp("step", step)

    @contextlib.contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """What the block does belongs to `phase`; then what was before begins anew."""
        before, began_at = self._stamp, self._clock()
        self._stamp = _Stamp(phase, before.step)
        try:
            yield
        finally:
            if phase == "evaluation":
                self._longest_evaluation_s = max(self._longest_evaluation_s, self._clock() - began_at)
            self._stamp = _Stamp(before.phase, before.step)

    @contextlib.contextmanager
    def until_left(self) -> Iterator[None]:
        """After the block nothing is watched: closing what is open, such as the tracker, has limits of its own."""
        try:
            yield
        finally:
            self._finished = True

    def look(self) -> Hang | None:
        """Called every second: what has hung, if this rank has."""
        now = self._clock()
        passed_s, self._looked_at = min(now - self._looked_at, _MOST_ASLEEP_S), now
        stamp = self._stamp
        # By identity: a phase that begins anew is progress too.
        self._waited_s = self._waited_s + passed_s if stamp is self._seen else 0.0
        self._seen = stamp
        allowed_s = limit_s(
            stamp.phase,
            self._limits,
            recent_steps_s=list(self._steps_s),
            longest_evaluation_s=self._longest_evaluation_s,
        )
        return Hang(self._rank, stamp.phase, stamp.step, allowed_s) if self._waited_s > allowed_s else None

    def watch(self, ended: threading.Event) -> None:
        """The watchdog's thread: returns when `ended` is set, or ends the process."""
        while not ended.wait(_POLL_S) and not self._finished:
            own = self.look()
            if own is not None or _another_hangs(self._attempt):
                self._end(own)

    def _end(self, own: Hang | None) -> None:
        """Stacks first: whatever fails later, they are there."""
        last_word = threading.Timer(_GIVE_UP_S, os._exit, (HANG_EXIT_CODE,))
        last_word.daemon = True
        last_word.start()
        with contextlib.suppress(OSError):
            write_stacks(self._attempt, self._rank)
            if own is not None and not _another_hangs(self._attempt):
                write_text(_hang_file(self._attempt), json.dumps(asdict(own)))
                events.record(self._attempt.run, "hang", attempt=self._attempt.number, **asdict(own))
            until = time.monotonic() + _OTHERS_S
            while time.monotonic() < until and len(_stack_files(self._attempt)) < self._num_ranks:
                time.sleep(0.1)
        os._exit(HANG_EXIT_CODE)


@contextlib.contextmanager
def watching(attempt: Attempt, *, rank: int, num_ranks: int, limits: Limits) -> Iterator[Watchdog]:
    """A watchdog for as long as the block lasts."""
    dog, ended = Watchdog(attempt, rank=rank, num_ranks=num_ranks, limits=limits), threading.Event()
    thread = threading.Thread(target=dog.watch, args=(ended,), name="watchdog", daemon=True)
    thread.start()
    try:
        yield dog
    finally:
        ended.set()
        thread.join()


def write_stacks(attempt: Attempt, rank: int) -> Path:
    """What every thread of this process is doing, by name of function, file and line."""
    folder = attempt.run / STACKS
    folder.mkdir(exist_ok=True)
    path = folder / f"attempt-{attempt.number}-rank-{rank}.txt"
    with path.open("w", encoding="utf-8") as file:
        faulthandler.dump_traceback(file, all_threads=True)
    return path


@dataclass(frozen=True)
class WatchedHooks:
    """Hooks of a loop that tell the watchdog what it is in."""

    hooks: Hooks
    dog: Watchdog

    def consumed(self, step: int, first: int, numbers: Indices) -> None:
        """See `Hooks`."""
        self.hooks.consumed(step, first, numbers)

    def noticed(self, anomaly: Anomaly) -> None:
        """See `Hooks`."""
        self.hooks.noticed(anomaly)

    def on_step(self, line: dict[str, Any]) -> None:
        """See `Hooks`."""
        self.dog.stepped(line[metrics.STEP], line[metrics.STEP_TIME])
        self.hooks.on_step(line)

    def save(self, progress: Progress) -> None:
        """See `Hooks`."""
        with self.dog.during("checkpoint"):
            self.hooks.save(progress)

    def save_wanted(self) -> bool:
        """See `Hooks`."""
        return self.hooks.save_wanted()

    def let_change(self) -> float:
        """See `Hooks`."""
        with self.dog.during("checkpoint"):
            return self.hooks.let_change()

    def finish(self) -> None:
        """See `Hooks`."""
        with self.dog.during("checkpoint"):
            self.hooks.finish()

    def stop_requested(self) -> bool:
        """See `Hooks`."""
        return self.hooks.stop_requested()


@dataclass(frozen=True)
class WatchedEvaluation:
    """An evaluation of a loop that tells the watchdog when it is in it."""

    evaluate: Callable[[int], Scores]
    dog: Watchdog

    def __call__(self, step: int) -> Scores:
        """Collective, as the one within."""
        with self.dog.during("evaluation"):
            return self.evaluate(step)


def _hang_file(attempt: Attempt) -> Path:
    return attempt.run / f"hang-{attempt.number}"


def _another_hangs(attempt: Attempt) -> bool:
    try:
        return _hang_file(attempt).exists()
    except OSError:  # a store that does not answer is no hang of a rank's
        return False


def _stack_files(attempt: Attempt) -> list[Path]:
    return list((attempt.run / STACKS).glob(f"attempt-{attempt.number}-rank-*.txt"))
