"""The faults, one function each: what `slipway chaos` does to a run."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator import presence
from orchestrator.chaos import damage, find, sockets
from orchestrator.chaos.damage import Damage, NotNowError
from orchestrator.chaos.schedule import Kind
from orchestrator.errors import JobError
from orchestrator.presence import Process, Worker
from orchestrator.track.events import read_events

_SLOW_S, _STOPPED_S, _RUNNING_S = 6.0, 0.4, 0.1
_CUT_S = 3.0
_FULL_S = 4.0
_DIES_IN_S = 10.0
_PREEMPTED = 128 + signal.SIGTERM
DEFAULT_FILL_BYTES = 2 * 10**9


@dataclass
class Scene:
    """A run that faults are given to, and what they have left for later."""

    run: Path
    rng: random.Random
    patience_s: float
    fill_at_most_bytes: int | None = None
    driver: find.Driver = field(init=False)
    stopped: list[Process] = field(default_factory=list)
    """By SIGSTOP: those that still live go on when the drill ends."""
    doomed: list[Process] = field(default_factory=list)
    """What must be gone once the run has recovered."""
    damaged: list[Damage] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.driver = find.Driver(self.run)


@dataclass(frozen=True)
class Blow:
    """A fault that was given."""

    what: str
    """For people."""
    pid: int | None = None


def refuse(kind: Kind, scene: Scene) -> None:
    """Say, before anything is done, that a fault can never be given to this run on this machine.

    Raises:
        JobError: with what to do instead.
    """
    if kind in ("kill-driver", "preempt"):
        scene.driver.environ()
    if kind in ("kill-worker", "stop-worker"):
        _refuse_alone(kind, scene)
    if kind == "kill-node":
        _node(scene)
    if kind == "cut-network":
        sockets.try_out()
    if kind == "fill-disk":
        damage.refuse_to_fill(scene.run, scene.fill_at_most_bytes, default_bytes=DEFAULT_FILL_BYTES)


def give(kind: Kind, scene: Scene) -> Blow:
    """Give a fault; returns when it is over.

    Raises:
        NotNowError: there is nothing to hit at this moment.
        JobError: the machine does not let it be given.
    """
    return _FAULTS[kind](scene)


def release(scene: Scene) -> None:
    """Let go on what was stopped and still lives."""
    for process in scene.stopped:
        process.send(signal.SIGCONT)


def _kill_worker(scene: Scene) -> Blow:
    worker = _worker(scene)
    scene.doomed += [found.process for found in find.workers(scene.run)]
    _send(worker.process, signal.SIGKILL)
    return Blow(f"rank {worker.rank}", worker.process.pid)


def _kill_node(scene: Scene) -> Blow:
    raylet = _node(scene)
    family = [raylet, *presence.descendants(raylet)]
    for process in family:
        process.send(signal.SIGKILL)
    scene.doomed += family
    return Blow(f"raylet with {len(family) - 1} processes", raylet.pid)


def _stop_worker(scene: Scene) -> Blow:
    worker = _worker(scene)
    scene.doomed += [found.process for found in find.workers(scene.run)]
    scene.stopped.append(worker.process)
    _send(worker.process, signal.SIGSTOP)
    return Blow(f"rank {worker.rank}", worker.process.pid)


def _slow_worker(scene: Scene) -> Blow:
    worker = _worker(scene)
    scene.stopped.append(worker.process)
    until = time.monotonic() + _SLOW_S
    while time.monotonic() < until and worker.process.send(signal.SIGSTOP):
        time.sleep(_STOPPED_S)
        worker.process.send(signal.SIGCONT)
        time.sleep(_RUNNING_S)
    scene.stopped.remove(worker.process)
    return Blow(f"rank {worker.rank}, for {_SLOW_S:g} s", worker.process.pid)


def _kill_driver(scene: Scene) -> Blow:
    driver, environ = _driver(scene), scene.driver.environ()
    scene.doomed += [driver, *presence.descendants(driver)]
    _send(driver, signal.SIGKILL)
    _await_end(driver, _DIES_IN_S)
    scene.driver.start_again(environ)
    return Blow("its command is given again", driver.pid)


def _preempt(scene: Scene) -> Blow:
    driver, environ = _driver(scene), scene.driver.environ()
    scene.doomed += [driver, *presence.descendants(driver)]
    codes = len(scene.driver.exit_codes())
    _send(driver, signal.SIGTERM)
    _await_end(driver, scene.patience_s)
    if driver.is_alive:
        scene.violations.append(f"preempt: the driver has not ended {scene.patience_s:g} s after SIGTERM")
        return Blow("it does not end", driver.pid)
    if find.is_finished(scene.run):
        return Blow("it had just finished", driver.pid)
    ends = [event for event in read_events(scene.run) if event["event"] in ("ended", "failed")]
    if not ends or ends[-1].get("how") != "stopped":
        scene.violations.append("preempt: the run has ended without a word that it was stopped and saved")
    wrong = [code for code in scene.driver.exit_codes()[codes:] if code != _PREEMPTED]
    if wrong:
        scene.violations.append(f"preempt: the driver has ended with exit code {wrong[0]} instead of {_PREEMPTED}")
    scene.driver.start_again(environ)
    return Blow("saved; its command is given again", driver.pid)


def _fill_disk(scene: Scene) -> Blow:
    with damage.full_disk(scene.run) as again:
        damage.hold(_FULL_S, again)
    return Blow(f"for {_FULL_S:g} s")


def _tear_checkpoint(scene: Scene) -> Blow:
    scene.damaged.append(damage.tear(scene.run, scene.rng))
    return _damaged(scene)


def _flip_bit(scene: Scene) -> Blow:
    scene.damaged.append(damage.flip(scene.run, scene.rng))
    return _damaged(scene)


def _damaged(scene: Scene) -> Blow:
    return Blow(f"{scene.damaged[-1].folder.name}, {scene.damaged[-1].file}")


def _cut_network(scene: Scene) -> Blow:
    cut = 0

    def again() -> None:
        nonlocal cut
        for connection in sockets.between(worker.process.pid for worker in find.workers(scene.run)):
            sockets.destroy(connection)
            cut += 1

    again()
    if not cut:
        raise NotNowError("no two workers on this machine have a connection")
    damage.hold(_CUT_S, again)
    return Blow(f"{cut} ends of connections, for {_CUT_S:g} s")


_FAULTS: Mapping[Kind, Callable[[Scene], Blow]] = {
    "kill-worker": _kill_worker,
    "kill-node": _kill_node,
    "stop-worker": _stop_worker,
    "slow-worker": _slow_worker,
    "kill-driver": _kill_driver,
    "fill-disk": _fill_disk,
    "tear-checkpoint": _tear_checkpoint,
    "flip-bit": _flip_bit,
    "cut-network": _cut_network,
    "preempt": _preempt,
}


def _worker(scene: Scene) -> Worker:
    """One of the run's workers on this machine."""
    found = [worker for worker in find.workers(scene.run) if worker.process not in scene.stopped]
    if not found:
        raise NotNowError("no worker of the run is alive on this machine")
    return scene.rng.choice(found)


def _driver(scene: Scene) -> Process:
    process = scene.driver.process
    if process is None:
        raise NotNowError("the run has no driver at this moment")
    return process


def _node(scene: Scene) -> Process:
    """A raylet of this machine that hosts a worker, and that is not the head.

    Raises:
        NotNowError: no worker is alive.
        JobError: there is only the head.
    """
    raylets = [find.raylet_of(worker) for worker in find.workers(scene.run)]
    if not raylets:
        raise NotNowError("no worker of the run is alive on this machine")
    nodes = sorted({raylet for raylet in raylets if raylet and not find.is_head(raylet)}, key=lambda found: found.pid)
    if not nodes:
        raise JobError(
            f"the workers of {scene.run.name} on this machine belong to Ray's head, without which nothing goes on, "
            "or to no Ray",
            fix="run on a cluster (`ray start --head`, then `ray start --address` on other machines or with other "
            "--num-cpus, then slipway run --address), and give this command where such a node is; or use kill-driver",
        )
    return scene.rng.choice(nodes)


def _refuse_alone(kind: Kind, scene: Scene) -> None:
    driver = scene.driver.process
    if driver is not None and driver in [worker.process for worker in find.workers(scene.run)]:
        raise JobError(
            f"{kind}: the one worker of {scene.run.name} is also what drives it, and nobody would notice",
            fix="use kill-driver, or train with `slipway run`",
        )


def _send(process: Process, signum: signal.Signals) -> None:
    if not process.send(signum):
        raise NotNowError(f"process {process.pid} has just ended")


def _await_end(process: Process, limit_s: float) -> None:
    until = time.monotonic() + limit_s
    while process.is_alive and time.monotonic() < until:
        time.sleep(0.05)
