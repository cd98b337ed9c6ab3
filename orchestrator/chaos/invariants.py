"""What must hold of a run whatever comes: each check gives the promises that were broken, in words."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from orchestrator.chaos.damage import Damage
from orchestrator.chaos.watch import Redone, loss_of
from orchestrator.checkpoint.inspect import checkpoint_rows
from orchestrator.checkpoint.layout import checkpoints_folder
from orchestrator.presence import Process
from orchestrator.store import is_committed
from orchestrator.track import metrics
from orchestrator.track.events import moment
from orchestrator.track.metric_log import FILE, parse_line

SAME_WORKERS_TOLERANCE, TOLERANCE = 1e-3, 0.05
"""Of the loss of a step that is redone: sums in another order; and with another number of workers, other dropout."""
_AROUND = 5
_SIGMAS, _SHARE = 8.0, 0.05
_LEFT_S = 60.0
_SHARED_MEMORY = Path("/dev/shm")


def lines_of(run: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The metric lines of a run, and what is wrong with their order: each step once, ascending from 1, and finite."""
    lines: list[dict[str, Any]] = []
    broken: list[str] = []
    raws = (run / FILE).read_bytes().splitlines(keepends=True) if (run / FILE).is_file() else []
    for number, raw in enumerate(raws, start=1):
        line = parse_line(raw)
        if line is None:
            if number < len(raws):  # the last may be half written at this moment
                broken.append(f"{FILE}: line {number} is no line of metrics")
            continue
        wanted = lines[-1][metrics.STEP] + 1 if lines else 1
        if line[metrics.STEP] != wanted:
            broken.append(f"{FILE}: line {number} is of step {line[metrics.STEP]} instead of {wanted}")
        excused = line.get(metrics.SKIPPED_UPDATES)  # the guard has left the update out for that
        if not math.isfinite(loss_of(line)) and not excused:
            broken.append(f"{FILE}: the loss of step {line[metrics.STEP]} is {line.get(metrics.LOSS)}")
        lines.append(line)
    return lines, broken


def redone_alike(redone: Iterable[Redone], *, tolerance: float, changed_after: int | None) -> list[str]:
    """A step that is done again has the loss that it had, but where other batches come since `changed_after`."""
    return [
        f"the loss of step {one.step} was {one.before:.6g} and is {one.after:.6g} when it is done again"
        for one in redone
        if (changed_after is None or one.step <= changed_after)
        and not (math.isnan(one.before) and math.isnan(one.after))
        and not math.isclose(one.before, one.after, rel_tol=tolerance, abs_tol=1e-6)
    ]


def continuous(losses: Mapping[int, float], resumed: Iterable[int]) -> list[str]:
    """After a resume the loss goes on where it was: no higher than noise explains.

    Noise is the median absolute difference of neighbours (as a standard deviation of a normal distribution); compared
    are the medians of the five steps before and after.
    """
    steps = sorted(losses)
    changes = [abs(losses[b] - losses[a]) for a, b in itertools.pairwise(steps)]
    noise = 1.4826 * median(changes) if changes else 0.0
    broken = []
    for step in sorted(set(resumed)):
        before = [losses[s] for s in range(step - _AROUND + 1, step + 1) if s in losses]
        after = [losses[s] for s in range(step + 1, step + _AROUND + 1) if s in losses]
        if min(len(before), len(after)) < _AROUND:
            continue
        jump = median(after) - median(before)
        if jump > _SIGMAS * noise + _SHARE * abs(median(before)):
            broken.append(f"the loss jumps by {jump:.4g} after the resume at step {step}")
    return broken


def checkpoints_whole(run: Path, damaged: Collection[Damage]) -> list[str]:
    """Every committed checkpoint verifies, but those that the drill has damaged."""
    excused = {damage.folder.name for damage in damaged if damage.stands}
    return [
        f"{row['checkpoint']} does not verify: {row['problem']}"
        for row in checkpoint_rows(run, deep=True)
        if row["problem"] is not None
        and row["checkpoint"] not in excused
        and is_committed(checkpoints_folder(run) / row["checkpoint"])  # retention may have just taken it
    ]


def passed_over(events: Iterable[Mapping[str, Any]], damaged: Iterable[Damage]) -> list[str]:
    """No attempt has gone on from a checkpoint that the drill had damaged, unless it was saved anew."""
    bad: dict[int, float] = {damage.step: damage.at for damage in damaged}
    broken = []
    for event in events:
        at = bad.get(event.get("step", -1))
        if at is None or moment(event["time"]) < at:
            continue
        if event["event"] == "checkpoint":
            del bad[event["step"]]
        elif event["event"] == "resumed":
            broken.append(f"attempt {event.get('attempt')} went on from step {event['step']}, which was damaged")
    return broken


def none_left(doomed: Iterable[Process]) -> list[str]:
    """No process of an attempt or a driver that has ended is alive."""
    alive = sorted({process for process in doomed if process.is_alive}, key=lambda process: process.pid)
    return [f"process {process.pid} of an earlier attempt is still alive: {_name(process)}" for process in alive]


def nothing_unfinished(run: Path, *, now: float) -> list[str]:
    """No temporary file or folder in the run is older than a minute."""
    found = []
    for path in run.rglob("*.tmp-*"):
        with contextlib.suppress(FileNotFoundError):
            newest = max(inner.stat().st_mtime for inner in (path, *path.rglob("*")))
            if now - newest > _LEFT_S:
                found.append(f"{path.relative_to(run)} was left behind {now - newest:.0f} s ago")
    return found


def shared_memory() -> set[str]:
    """Names of this user's files in shared memory."""
    found = set()
    for path in _SHARED_MEMORY.iterdir() if _SHARED_MEMORY.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_uid == os.geteuid():
                found.add(path.name)
    return found


def shared_memory_given_back(before: set[str]) -> list[str]:
    """No file has come into shared memory that no living process has open."""
    new = shared_memory() - before
    used = _in_use() if new else set()
    return [f"{_SHARED_MEMORY / name} belongs to no living process" for name in sorted(new - used)]


def await_nothing(check: Any, *, limit_s: float) -> Sequence[str]:
    """What a check still finds after some seconds, or as soon as it finds nothing."""
    until = time.monotonic() + limit_s
    while (broken := check()) and time.monotonic() < until:
        time.sleep(0.5)
    return list(broken)


def _in_use() -> set[str]:
    """Names of files in shared memory that a process maps or has open; other users' processes cannot be read."""
    prefix = f"{_SHARED_MEMORY}/"
    used = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                for line in (entry / "maps").read_text(errors="replace").splitlines():
                    if prefix in line:
                        used.add(line.partition(prefix)[2].removesuffix(" (deleted)"))
            with contextlib.suppress(OSError):
                for link in (entry / "fd").iterdir():
                    with contextlib.suppress(OSError):
                        target = os.readlink(link)
                        if target.startswith(prefix):
                            used.add(target.removeprefix(prefix).removesuffix(" (deleted)"))
    return used


def _name(process: Process) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process.pid}/comm").read_text().strip()
    return "?"
