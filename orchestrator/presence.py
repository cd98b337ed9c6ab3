"""Who works on a run, noted in its folder: its workers, and the command that drives it. Imports no torch.

    RUN/workers/rank-RRRRR.json     a worker's process, while it works
    RUN/command.json                the driver's process, and the command that starts it again

A note outlives a process that is killed. A process is the noted one if its number and its start agree, so a number that
the kernel has given away again is not mistaken for it. Of the environment nothing is written: it may hold secrets.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.store import write_json

_WORKERS = "workers"
COMMAND = "command.json"
_GONE = ("Z", "X")
"""States of a process that has ended, and that only waits to be asked how."""


@dataclass(frozen=True)
class Process:
    """A process of this machine or of another."""

    pid: int
    started: int
    """When, in ticks of its machine's kernel since that was booted: the clock's corrections do not move it."""
    host: str

    @property
    def is_here(self) -> bool:
        """Whether it is one of this machine's."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether it still runs, or is stopped; of another machine's nothing is known, and it is taken for dead."""
        found = _stat(self.pid) if self.is_here else None
        return found is not None and found.started == self.started and found.state not in _GONE

    def send(self, signum: signal.Signals) -> bool:
        """Send it a signal; False where it has ended."""
        with contextlib.suppress(ProcessLookupError):
            if self.is_alive:
                os.kill(self.pid, signum)
                return True
        return False


@dataclass(frozen=True)
class Worker:
    """A rank of an attempt."""

    rank: int
    attempt: int
    process: Process


@dataclass(frozen=True)
class Command:
    """What drives a run, and what starts it again."""

    argv: list[str]
    cwd: str
    process: Process


def process_of(pid: int) -> Process | None:
    """A living process of this machine by its number; None where there is none."""
    found = _stat(pid)
    return None if found is None or found.state in _GONE else Process(pid, found.started, socket.gethostname())


def parent_of(process: Process) -> Process | None:
    """Who started a process of this machine, or who has adopted it; None of one that has ended."""
    found = _stat(process.pid) if process.is_alive else None
    return process_of(found.parent) if found is not None else None


def descendants(ancestor: Process) -> list[Process]:
    """All living processes below one of this machine."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (found := _stat(int(entry.name))) is not None:
            children.setdefault(found.parent, []).append(int(entry.name))
    below, ahead = [], [ancestor.pid]
    while ahead:
        own = children.get(ahead.pop(), [])
        below += own
        ahead += own
    return [process for pid in below if (process := process_of(pid)) is not None]


@contextlib.contextmanager
def present(run: Path, *, rank: int, attempt: int) -> Iterator[None]:
    """Note this process as a worker of a run, as long as the block lasts."""
    path = run / _WORKERS / f"rank-{rank:05d}.json"
    path.parent.mkdir(exist_ok=True)
    note = {"rank": rank, "attempt": attempt, **_this_process()}
    write_json(path, note)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a store that is gone; what has failed before is what is told
            if _read(path) == note:  # a worker that hung for long may end when the next attempt's is at work
                path.unlink()


def _folder() -> str:
    """Where this process works; `/` where that folder is gone, which is no reason not to train."""
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return "/"


def note_command(run: Path) -> None:
    """Note this process as the driver of a run, with the command that it was started by."""
    argv = [sys.executable, *sys.orig_argv[1:]]
    write_json(run / COMMAND, {"argv": argv, "cwd": _folder(), **_this_process()})


def read_workers(run: Path) -> list[Worker]:
    """The noted workers of a run by rank, dead ones among them; a note that is not readable is left out."""
    notes = (_read(path) for path in sorted((run / _WORKERS).glob("rank-*.json")))
    found = []
    for note in notes:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            found.append(Worker(int(note["rank"]), int(note["attempt"]), _process(note)))
    return found


def read_command(run: Path) -> Command | None:
    """The command that has driven a run last; None where none is noted."""
    note = _read(run / COMMAND)
    try:
        return Command([str(word) for word in note["argv"]], str(note["cwd"]), _process(note))
    except (KeyError, TypeError, ValueError):
        return None


@dataclass(frozen=True)
class _Stat:
    """Of `/proc/PID/stat`, what matters here."""

    state: str
    parent: int
    started: int


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return _Stat(fields[0], int(fields[1]), int(fields[19]))


def _this_process() -> dict[str, Any]:
    own = process_of(os.getpid())
    return asdict(own) if own is not None else {}


def _process(note: dict[str, Any]) -> Process:
    return Process(int(note["pid"]), int(note["started"]), str(note["host"]))


def _read(path: Path) -> dict[str, Any]:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}
