"""How a system is watched while its workers are killed: its steps, its faults, what came of them."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "benchmarks" / "peers"
POLL_S = 0.02
START_LIMIT_S, STOP_LIMIT_S = 180.0, 120.0
"""How long a first step is waited for; and one after a worker was stopped."""
SETTLE_S = 1.0
"""After a fault: a step that was nearly finished still counts as before it. Nothing starts anew so soon."""
TAIL_BYTES = 8192


@dataclass(frozen=True)
class System:
    """Something that trains on two workers and is to survive."""

    command: Sequence[str]
    log: Callable[[], Path | None]
    """Where its steps are, a line each; None before there is one."""
    mark: str
    """What the command line of a worker has in it."""
    reset: Callable[[], None]
    """Takes away what an earlier run has left."""


@dataclass
class Fault:
    """What was done to a worker, and what came of it; moments by this process's clock."""

    at: float
    step: int = 0
    """The last that was finished."""
    back_at: float | None = None
    """When a step was finished, old or new."""
    recovered_at: float | None = None
    redone: int | None = None
    """Steps that were finished before, and were done once more."""


@dataclass
class Observed:
    """One run of a system."""

    start_s: float
    """From the command to the first step."""
    seconds: float
    """Watched since then."""
    new_steps: int
    step_s: float
    """The median."""
    faults: list[Fault] = field(default_factory=list)


class Steps:
    """The steps of a system's log, as they come."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.newest = 0
        """The highest so far."""
        self.times_s: list[float] = []
        self.lowest_since: int | None = None
        """The lowest since it was set to None."""
        self._size = 0

    def look(self) -> None:
        """Take in what is new at the log's end."""
        path = self._system.log()
        if path is None or not path.is_file() or (size := path.stat().st_size) == self._size:
            return
        grown, self._size = size > self._size, size
        if not grown:  # cut off at a checkpoint: the line that is the last one now is no step that was done just now
            return
        with path.open("rb") as file:
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().splitlines(keepends=True)
        try:
            line = json.loads(lines[-1]) if lines[-1].endswith(b"\n") else None
        except ValueError:  # a line that a kill has torn
            return
        if line is None:
            return
        step = int(line["train/step"])
        self.times_s.append(float(line["time/step_s"]))
        self.newest = max(self.newest, step)
        self.lowest_since = step if self.lowest_since is None else min(self.lowest_since, step)


class Watch:
    """One run of a system."""

    def __init__(self, system: System) -> None:
        system.reset()
        self._system = system
        self._steps = Steps(system)
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - `end` closes it
        self._began_at = time.monotonic()
        self._process = subprocess.Popen(
            system.command,
            stdout=self._output,
            stderr=self._output,
            env=environment(),
            cwd=ROOT,
            start_new_session=True,
        )
        self._faults: list[Fault] = []

    def observe(self, moments_s: Sequence[float], signum: int, *, seconds: float, seed: int) -> Observed:
        """Hurt a worker at each moment after the first step; a stopped one is watched until it is replaced."""
        chance, moments = random.Random(seed), list(moments_s)
        self._await_first_step()
        first_at, before = time.monotonic(), self._steps.newest
        until = first_at + seconds
        while time.monotonic() < until:
            self._look()
            passed_s = time.monotonic() - first_at
            if moments and passed_s >= moments[0] and (victims := self._workers()):
                moments.pop(0)
                self._hurt(chance.choice(victims), signum)
                if signum == signal.SIGSTOP:
                    until = min(until, time.monotonic() + STOP_LIMIT_S)
            if signum == signal.SIGSTOP and self._faults and not self._open:
                break
            time.sleep(POLL_S)
        return Observed(
            start_s=first_at - self._began_at,
            seconds=time.monotonic() - first_at,
            new_steps=self._steps.newest - before,
            step_s=statistics.median(self._steps.times_s),
            faults=self._faults,
        )

    def end(self) -> None:
        """The command and all below it, at once."""
        if self._process.poll() is None:
            for member in [*self._family(), psutil.Process(self._process.pid)]:
                try:
                    member.kill()
                except psutil.Error:
                    continue
        self._process.wait()
        self._output.close()

    def _await_first_step(self) -> None:
        while not self._steps.newest:
            if time.monotonic() > self._began_at + START_LIMIT_S:
                raise RuntimeError(f"no step within {START_LIMIT_S:.0f} s: {self._said()}")
            self._look()
            time.sleep(POLL_S)

    @property
    def _open(self) -> Fault | None:
        """The newest fault, if its system has not recovered."""
        return self._faults[-1] if self._faults and self._faults[-1].recovered_at is None else None

    def _look(self) -> None:
        if self._process.poll() is not None:
            raise RuntimeError(f"the command ended with {self._process.returncode}: {self._said()}")
        self._steps.look()
        fault = self._open
        if fault is None or self._steps.lowest_since is None:
            return
        fault.back_at = fault.back_at or time.monotonic()
        if self._steps.newest > fault.step:
            fault.recovered_at = time.monotonic()
            fault.redone = max(0, fault.step - self._steps.lowest_since + 1)

    def _hurt(self, victim: psutil.Process, signum: int) -> None:
        """One that comes before the system has recovered from the last belongs to that one."""
        if not self._open:
            self._faults.append(Fault(time.monotonic()))
        victim.send_signal(signum)
        time.sleep(SETTLE_S)
        self._steps.look()
        self._faults[-1].step = self._steps.newest
        self._steps.lowest_since = None

    def _workers(self) -> list[psutil.Process]:
        """The training processes, in a fixed order."""
        found = []
        for child in self._family():
            try:
                line = " ".join(child.cmdline())
            except psutil.Error:
                continue
            if self._system.mark in line and "torch.distributed.run" not in line:
                found.append(child)
        return sorted(found, key=lambda worker: worker.pid)

    def _family(self) -> list[psutil.Process]:
        try:
            return list(psutil.Process(self._process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    def _said(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace")[-2000:]


def environment() -> dict[str, str]:
    """Of every system."""
    return {
        **os.environ,
        "WANDB_MODE": "offline",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(PEERS))),
    }


def observe(system: System, moments_s: Sequence[float], signum: int, *, seconds: float, seed: int) -> Observed:
    """One run from its start to its end."""
    watch = Watch(system)
    try:
        return watch.observe(moments_s, signum, seconds=seconds, seed=seed)
    finally:
        watch.end()
