"""The story of a drill: faults on a live run, one after another, and what is to be said of it in the end."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.chaos import faults, find, verdict
from orchestrator.chaos.damage import NotNowError
from orchestrator.chaos.faults import Scene
from orchestrator.chaos.invariants import shared_memory
from orchestrator.chaos.schedule import DISTURBING, ENDING, Fault, Kind, Planned, Report, schedule
from orchestrator.chaos.watch import Watch, watching
from orchestrator.errors import JobError
from orchestrator.track import events
from orchestrator.track.events import read_events

_POLL_S = 0.1
_UNTIL_SAVED_S = 60.0
_RESTARTS_IN_S = 30.0
"""How long a driver that has gone may be without a successor: a cluster's own retry takes seconds."""


@dataclass(frozen=True)
class Drill:
    """What was asked for."""

    kinds: Sequence[Kind]
    every_s: float
    for_s: float
    seed: int
    patience_s: float
    """How long a recovery may take."""
    fill_at_most_bytes: int | None = None

    def planned(self) -> list[Planned]:
        """The faults, in their order."""
        return schedule(self.kinds, every_s=self.every_s, for_s=self.for_s, seed=self.seed)


class _OverError(Exception):
    """The run has ended; what is left of the schedule is not given."""


def run_drill(run: Path, drill: Drill, *, say: Callable[[str], None]) -> Report:
    """Give a live run its faults, wait until it has recovered from each, and look whether it kept its promises.

    A fault waits for the recovery from the one before: a drill may last longer than `for_s`.

    Raises:
        JobError: the run is not live, or a fault cannot be given to it on this machine.
    """
    scene = Scene(run, random.Random(drill.seed), drill.patience_s, drill.fill_at_most_bytes)
    report, before = Report(), shared_memory()
    with watching(run) as watch:
        try:
            _await_live(scene, watch)
            for kind in drill.kinds:
                with contextlib.suppress(NotNowError):
                    faults.refuse(kind, scene)
            _give_all(drill, scene, watch, report, say)
            if not report.faults:
                scene.violations.append("no fault was given: nothing is proved")
            _await_saved(scene, say)
        finally:
            faults.release(scene)
        verdict.judge(scene, watch, report, shared_memory_before=before)
    return report


def _give_all(drill: Drill, scene: Scene, watch: Watch, report: Report, say: Callable[[str], None]) -> None:
    planned, began_at = drill.planned(), time.monotonic()
    for one in planned:
        try:
            _wait(scene, began_at + one.at_s)
            _give(one.kind, scene, watch, report, say, until=time.monotonic() + drill.every_s)
        except _OverError as over:
            left = len(planned) - len(report.faults) - len(report.put_off)
            say(f"{over}{f'; {left} fault(s) of the schedule are not given' if left else ''}")
            return


def _give(kind: Kind, scene: Scene, watch: Watch, report: Report, say: Callable[[str], None], *, until: float) -> None:
    """One fault, as soon as there is something to hit, and the recovery from it."""
    while True:
        began_at, moment, attempt = time.monotonic(), time.time(), find.begun(scene.run)
        try:
            blow = faults.give(kind, scene)
            break
        except (NotNowError, JobError) as reason:
            _refuse_over(scene)
            if time.monotonic() > until or isinstance(reason, JobError):
                report.put_off.append(f"{kind}: {reason}")
                say(f"{kind}: put off, {reason}")
                return
            time.sleep(1.0)
    fault = Fault(kind, events.iso_time(moment), blow.pid)
    report.faults.append(fault)
    watch.look()
    say(f"{kind}: {blow.what}{f', process {blow.pid}' if blow.pid else ''}; at step {watch.highest}")
    with contextlib.suppress(OSError):
        events.record(scene.run, "chaos", kind=kind, pid=blow.pid, step=watch.highest)
    if kind in DISTURBING:
        fault.recovered_in_s = _await_step(scene, watch, began_at, after=attempt if kind in ENDING else 0)
        _tell_recovery(fault, scene, watch, say)


def _tell_recovery(fault: Fault, scene: Scene, watch: Watch, say: Callable[[str], None]) -> None:
    if fault.recovered_in_s is not None:
        say(f"{fault.kind}: recovered in {fault.recovered_in_s:.1f} s, at step {watch.highest}")
    elif not find.is_finished(scene.run):
        why = _last_word(scene)
        scene.violations.append(f"{fault.kind} at {fault.at}: no new step in {scene.patience_s:g} s{why}")
        raise _OverError(f"{fault.kind}: not recovered{why}")


def _await_step(scene: Scene, watch: Watch, began_at: float, *, after: int) -> float | None:
    """Seconds up to a step that is new, of an attempt later than `after`; None if none comes in time, or the run ends.

    Raises:
        _OverError: the driver has ended.
    """
    until, beyond, begun = time.monotonic() + scene.patience_s, watch.highest, False
    while time.monotonic() < until:
        begun = begun or find.begun(scene.run) > after
        if begun and watch.highest > beyond:
            return time.monotonic() - began_at
        if not begun:  # what the ended attempt has still finished is nothing new
            beyond = watch.highest
        if find.is_finished(scene.run):
            return None
        _refuse_over(scene)
        time.sleep(_POLL_S)
    return None


def _await_live(scene: Scene, watch: Watch) -> None:
    """The newest attempt has to make steps before it is disturbed.

    Raises:
        JobError: nothing drives the run, its driver is on another machine, or no step comes.
    """
    driver, fix = scene.driver.command().process, "start it: slipway run JOB; then give this command again beside it"
    if not driver.is_here:
        raise JobError(f"{scene.run.name} is driven on {driver.host}", fix="give this command there")
    if find.is_finished(scene.run):
        raise JobError(f"{scene.run.name} is trained to its end: there is nothing to disturb", fix="train another run")
    if not driver.is_alive:
        raise JobError(f"{scene.run.name} is not being trained: its driver, process {driver.pid}, has ended", fix=fix)
    first = watch.highest
    until = time.monotonic() + scene.patience_s
    while watch.highest <= first or not find.workers(scene.run):
        if time.monotonic() > until or scene.driver.process is None:
            raise JobError(f"{scene.run.name} has made no step in {scene.patience_s:g} s{_last_word(scene)}", fix=fix)
        time.sleep(_POLL_S)


def _await_saved(scene: Scene, say: Callable[[str], None]) -> None:
    """The next checkpoint, if one comes soon: it proves the samples of the steps after the last recovery."""
    if scene.violations or find.is_finished(scene.run):
        return
    say("waiting for a checkpoint, up to which the samples are proved")
    until, now = time.monotonic() + min(_UNTIL_SAVED_S, scene.patience_s), events.iso_time()
    while time.monotonic() < until and not find.is_finished(scene.run):
        if any(event["event"] == "checkpoint" and event["time"] > now for event in read_events(scene.run)):
            return
        time.sleep(0.5)


def _wait(scene: Scene, until: float) -> None:
    while time.monotonic() < until:
        _refuse_over(scene)
        time.sleep(_POLL_S)


def _refuse_over(scene: Scene) -> None:
    """Raises _OverError where nothing is left to disturb; a driver that has gone by itself has broken a promise."""
    if find.is_finished(scene.run):
        raise _OverError("the run is trained to its end")
    if scene.driver.process is not None:
        return
    until = time.monotonic() + _RESTARTS_IN_S
    while time.monotonic() < until:
        time.sleep(_POLL_S)
        if scene.driver.process is not None:
            return
        if find.is_finished(scene.run):
            raise _OverError("the run is trained to its end")
    why = _last_word(scene)
    scene.violations.append(f"the driver has ended before the run did{why}")
    raise _OverError(f"the driver has ended{why}")


def _last_word(scene: Scene) -> str:
    """What the run has said of its last failure."""
    said = [event for event in read_events(scene.run) if event["event"] == "failed"]
    return f" (its last failure: {said[-1].get('class')}, {said[-1].get('cause')})" if said else ""
