"""Machines that come and go while an attempt trains: watched, and acted on.

Where Ray is our own there is one machine, which stays: nothing is asked.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Literal

from orchestrator.attempts import Attempt
from orchestrator.cluster.bounds import Bounds
from orchestrator.cluster.demand import Demand
from orchestrator.cluster.queue import Turn
from orchestrator.cluster.view import Machine
from orchestrator.job import JobSpec
from orchestrator.plan.capacity import workers_that_fit
from orchestrator.runfolder import request_stop
from orchestrator.track import events, metrics
from orchestrator.track.events import read_events
from orchestrator.track.history import recorded
from orchestrator.track.metric_log import read_metrics
from orchestrator.track.progress import say
from orchestrator.train.driver.elastic import STABLE_S, Offer, Pace, blamed, leaving, of_ranks, pays, room, settled
from orchestrator.train.driver.waiting import Cluster
from orchestrator.train.recovery.failures import Failure

LOOK_EVERY_S = 2.0
_AGAIN_S = 60.0
"""After more workers were not worth it, and after Ray did not answer."""
_RECENT_STEPS = 32


@dataclass(frozen=True)
class Wish:
    """Why an attempt was asked to save and end."""

    kind: Literal["more", "preemption"]
    why: str


class Watch:
    """Looks at the cluster while an attempt trains, and asks its workers to save and end where that is called for."""

    def __init__(
        self,
        attempt: Attempt,
        job: JobSpec,
        *,
        workers: int,
        cluster: Cluster,
        turn: Turn | None = None,
        demand: Demand | None = None,
    ) -> None:
        self.wish: Wish | None = None
        self.places: dict[str, list[int]] = {}
        """The ranks on each machine, once they have said so."""
        self.told: set[str] = set()
        """Machines of this attempt that are to be taken back."""
        self._attempt, self._job, self._workers = attempt, job, workers
        self._cluster, self._turn = cluster, turn
        self._demand = demand or Demand()
        self._offers: list[Offer] = []
        self._began_at = time.monotonic()
        self._not_before = self._began_at + job.training.workers.grow_after_s

    def run(self, ended: threading.Event) -> None:
        """The thread: until `ended`, or until the workers were asked."""
        try:
            self._run(ended)
        finally:
            self._demand.withdraw()

    def _run(self, ended: threading.Event) -> None:
        while self.wish is None and not ended.wait(LOOK_EVERY_S):
            try:
                seen = self._cluster.machines()
            except Exception as error:  # noqa: BLE001 - Ray's; what follows from its end, the attempt says itself
                say(f"the cluster could not be looked at: {error}")
                ended.wait(_AGAIN_S)
                continue
            if seen is None:
                return
            self.wish = self.look(seen, now_s=time.monotonic())
        if self.wish is not None and not ended.is_set():
            say(f"{self.wish.why}: the workers finish their step and save")
            request_stop(self._attempt.run)

    def look(self, seen: list[Machine], *, now_s: float) -> Wish | None:
        """What follows from the machines as they are."""
        if not self._placed:
            self.places = places_of(self._attempt.run)
            if self._placed and self._turn is not None:
                self._turn.leave()
        taken = leaving(seen, self.places)
        self.told |= set(taken)
        if taken:
            return Wish("preemption", f"the machine of {of_ranks(taken, self.places)} is taken back")
        return self._more(seen, now_s)

    def blamed(self, failure: Failure) -> Failure:
        """The failure of the attempt, or the loss of a machine where the cluster now shows one."""
        try:
            seen = self._cluster.machines() if self.places else None
        except Exception:  # noqa: BLE001 - Ray's: then the failure stays what it is
            return failure
        return failure if seen is None else blamed(failure, seen, self.places, told=self.told)

    @property
    def _placed(self) -> bool:
        """Whether every rank has said where it works."""
        return sum(map(len, self.places.values())) >= self._workers

    def _more(self, seen: list[Machine], now_s: float) -> Wish | None:
        asked = self._job.training.workers
        if self._workers >= asked.max or not self._placed or self._cluster.is_waited_for():
            self._demand.withdraw()
            return None
        samples = self._job.training.batch_tokens // self._job.model.context
        self._offers.append(Offer(now_s, min(samples, room(asked, seen, self.places))))
        self._offers = [offer for offer in self._offers if offer.at_s >= now_s - 2 * STABLE_S]
        more = settled(self._offers, now_s=now_s, workers=self._workers)
        is_free = self._offers[-1].workers > self._workers
        wanted = more if is_free else min(samples, self._grown(seen))
        if wanted is None or wanted <= self._workers or now_s < self._not_before or self._demand.come():
            return None
        pace = pace_of(self._attempt, steps=self._job.training.steps)
        if pace is None or not pays(pace, samples=samples, workers=self._workers, more=wanted):
            self._not_before = now_s + (_AGAIN_S if pace else 0.0)
            return None
        if is_free:
            return Wish("more", f"the cluster has room for {wanted} workers")
        self._demand.ask(asked, wanted - self._workers)
        return None

    @cached_property
    def _bounds(self) -> Bounds | None:
        return self._cluster.queue.bounds() if self._cluster.queue is not None else None

    def _grown(self, seen: list[Machine]) -> int:
        """How many workers there would be room for if an autoscaler brought what it may; 0 where there is none."""
        if self._bounds is None:
            return 0
        asked = self._job.training.workers
        return workers_that_fit(asked, self._bounds.view(asked, seen)) if self._bounds.known else asked.max


@contextlib.contextmanager
def watching_cluster(watch: Watch) -> Iterator[None]:
    """The watch in a thread of its own, as long as the block lasts: a busy Ray may be slow to answer."""
    ended = threading.Event()
    threading.Thread(target=watch.run, args=(ended,), name="cluster", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def record_size(attempt: Attempt, *, workers: int, step: int, why: str) -> None:
    """The event `resized`, where the attempt before, of whichever command, had another number of workers."""
    before = [event["workers"] for event in read_events(attempt.run) if event["event"] in ("launched", "resumed")]
    if before and before[-1] != workers:
        facts = {"from": before[-1], "to": workers, "step": step, "why": why}
        events.record(attempt.run, "resized", attempt=attempt.number, **facts)
        say(f"going on with {workers} worker(s) instead of {before[-1]}: {why}")


def pace_of(attempt: Attempt, *, steps: int) -> Pace | None:
    """How an attempt gets on, by what it has written; None before it has made a few steps."""
    mine = next((one for one in reversed(recorded(read_events(attempt.run))) if one.number == attempt.number), None)
    if mine is None or mine.first_step_at is None or not math.isfinite(mine.launched_at):
        return None
    newest = deque(read_metrics(attempt.run), _RECENT_STEPS)
    lines = [line for line in newest if line[metrics.STEP] > mine.step + 1]
    if not lines:
        return None
    restart_s = mine.first_step_at - mine.launched_at + max(mine.checkpoints_s, default=0.0)
    step_s = median(line[metrics.STEP_TIME] for line in lines)
    return Pace(steps - int(lines[-1][metrics.STEP]), step_s, restart_s)


def scratch_of(run: Path) -> Path:
    """What an attempt leaves for its driver, and Ray Train for itself; gone with the attempt."""
    return run / ".ray"


def note_place(run: Path, rank: int, *, machine: str) -> None:
    """Called by each rank: the machine that it works on, by Ray's id."""
    folder = scratch_of(run) / "places"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{rank:05d}").write_text(machine, encoding="ascii")


def places_of(run: Path) -> dict[str, list[int]]:
    """The ranks on each machine, as far as they have said so."""
    found: dict[str, list[int]] = {}
    with contextlib.suppress(OSError):  # the folder goes with the attempt
        for path in sorted((scratch_of(run) / "places").iterdir()):
            found.setdefault(path.read_text(encoding="ascii"), []).append(int(path.name))
    found.pop("", None)  # a file that is being written
    return found
