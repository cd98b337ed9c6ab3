"""Where an attempt finds room: in turn with the other runs of a cluster, on machines that come when they are asked for.

Where Ray is our own there is one machine, which stays, and nobody else: nothing is asked.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from orchestrator.cluster.bounds import Bounds
from orchestrator.cluster.demand import Demand
from orchestrator.cluster.queue import Queue, Turn
from orchestrator.cluster.turns import Waiter, left_by, may_try, place_of, told
from orchestrator.cluster.view import Machine, ready_view
from orchestrator.errors import CapacityError
from orchestrator.job import JobSpec
from orchestrator.plan import ClusterView
from orchestrator.plan.capacity import shortage, workers_on, workers_that_fit
from orchestrator.track.progress import say
from orchestrator.track.state_lines import say_state

_SETTLE_S = 5.0
"""What a group has held is free a moment after its end; what is held for longer, others hold."""
_GROWN_WITHIN_S = 300.0
"""How long an autoscaler is waited for where there is room for `min` workers already, and it may make some for more."""

Look = Callable[[], list[Machine] | None]


@dataclass(frozen=True)
class Cluster:
    """How an attempt sees what there is to run on; both ask anew each time."""

    connect: Callable[[], ClusterView]
    """Start or join the Ray."""
    machines: Look
    """None where Ray is our own."""
    queue: Queue | None = None
    """Of a cluster that others use too."""
    reach: Callable[[Sequence[Machine]], None] | None = None
    """Refuses machines that do not reach the store: asked of those that have come meanwhile, too."""

    def standing(self, job: JobSpec, name: str, *, begun: bool) -> AbstractContextManager[Turn | None]:
        """A place in the queue for a run of this name, as long as the block lasts; None where there is no queue."""
        if self.queue is None:
            return contextlib.nullcontext()
        return self.queue.standing(waiter_of(job, name, begun=begun))

    def is_waited_for(self) -> bool:
        """Whether others wait for room here: then nobody grows."""
        return self.queue is not None and bool(self.queue.waiting())


@dataclass(frozen=True)
class Room:
    """Where an attempt is planned."""

    view: ClusterView
    avoid: list[str] = field(default_factory=list)
    """Machines that are not to be used: they do not answer, or what is free there is somebody else's turn."""
    own: bool = False
    """Whether the Ray is our own: nobody else uses its one machine, which stays."""


def waiter_of(job: JobSpec, name: str, *, begun: bool = False) -> Waiter:
    """A run as the queue knows it."""
    return Waiter(id=name, name=name, workers=job.training.workers, priority=job.cluster.priority, begun=begun)


def find_room(job: JobSpec, cluster: Cluster, turn: Turn | None = None) -> Room:
    """Room for at least `min` workers: at once, or when it is the run's turn and there is some.

    Raises:
        CapacityError: the cluster was too small, empty or not, for `train.workers.wait_s`.
        StoreError: there is room on a machine that does not reach the store.
    """
    wait: _Wait | None = None
    try:
        while True:
            seen = cluster.machines()
            if seen is None:
                return Room(cluster.connect(), own=True)
            if wait is None:
                wait = _Wait(job, turn, cluster.queue.bounds() if cluster.queue is not None else None)
            if (found := wait.look(seen, now_s=time.monotonic())) is not None:
                if cluster.reach is not None:
                    cluster.reach([machine for machine in seen if machine.id not in found.avoid])
                return found
            time.sleep(0.5)
    finally:
        if wait is not None:
            wait.end()


class _Wait:
    """One wait: since when it is the run's turn, since when the cluster is too small, and what was said of it."""

    def __init__(self, job: JobSpec, turn: Turn | None, bounds: Bounds | None) -> None:
        self._job, self._asked, self._turn, self._bounds = job, job.training.workers, turn, bounds
        self._me = turn.waiter if turn is not None else waiter_of(job, job.name)
        self._demand = Demand()
        self._turn_since_s: float | None = None
        self._small_since_s: float | None = None
        self._said: tuple[object, ...] | None = None

    def look(self, seen: Sequence[Machine], *, now_s: float) -> Room | None:
        """What follows from the machines and the queue as they are."""
        waiting = self._turn.waiting() if self._turn is not None else [self._me]
        if waiting is None:
            return None
        ahead = waiting[: place_of(self._me, waiting) - 1]
        if not may_try(self._me, ahead, seen):
            self._turn_since_s = None
            self._demand.withdraw()
            self._tell(waiting, seen)
            return None
        since_s = self._turn_since_s = now_s if self._turn_since_s is None else self._turn_since_s
        found = self._room_in(left_by(ahead, seen), behind=bool(ahead), waited_s=now_s - since_s)
        if found is None:
            self._stay(waiting, seen, now_s, waited_s=now_s - since_s)
        elif self._turn is not None and not self._turn.take(ahead):
            return None  # somebody has come who stands before it
        return found

    def end(self) -> None:
        """Nothing is asked for any more, and nothing is waited for."""
        self._demand.withdraw()
        if self._said is not None:
            say_state(state="training")

    def _room_in(self, seen: Sequence[Machine], *, behind: bool, waited_s: float) -> Room | None:
        """What the machines have in all, where it is free; once settled, what is free."""
        whole, free = ready_view(seen), ready_view(seen, free=True)
        fit, all_fit = workers_that_fit(self._asked, free), workers_that_fit(self._asked, whole)
        wanted = all_fit if self._bounds is None else max(all_fit, self._grown(seen))
        settle_s = _SETTLE_S if wanted == all_fit else _GROWN_WITHIN_S
        if fit < self._asked.min or (wanted > all_fit and waited_s < settle_s):
            self._ask_for(wanted if waited_s < _GROWN_WITHIN_S else self._asked.min)
            if self._demand.come():
                return None  # what it held shows as free in a moment
        if fit < self._asked.min or (fit < wanted and waited_s < settle_s):
            return None
        avoid = [machine.id for machine in seen if machine.state == "silent"]
        if behind:
            avoid += [m.id for m in seen if m.state == "ready" and not workers_on(self._asked, m.free)]
        return Room(whole if fit == all_fit else free, avoid)

    def _grown(self, seen: Sequence[Machine]) -> int:
        """How many workers the cluster would hold, grown as far as its autoscaler goes; unknown: as many as asked."""
        if self._bounds is None or not self._bounds.known:
            return self._asked.max
        return workers_that_fit(self._asked, self._bounds.view(self._asked, seen))

    def _ask_for(self, workers: int) -> None:
        if self._bounds is not None:
            self._demand.ask(self._asked, max(workers, self._asked.min))

    def _stay(self, waiting: Sequence[Waiter], seen: Sequence[Machine], now_s: float, *, waited_s: float) -> None:
        """Wait on where others hold the room or machines are started for it; for missing ones not for ever."""
        view = ready_view(seen)
        comes = self._bounds is not None and self._bounds.known and self._grown(seen) >= self._asked.min
        if comes or workers_that_fit(self._asked, view) >= self._asked.min:
            self._small_since_s = None
            if waited_s >= _SETTLE_S:
                self._tell(waiting, seen)
            return
        since_s = self._small_since_s = now_s if self._small_since_s is None else self._small_since_s
        if now_s - since_s >= max(self._asked.wait_s, _SETTLE_S):
            raise CapacityError(
                f"{shortage(self._job, ready_view(seen, free=True))} after {now_s - since_s:.0f} s",
                fix="run the same command again once there are machines: it continues; train.workers.wait_s says how "
                "long it waits, train.workers.min with how many it goes on",
            )
        if now_s - since_s >= _SETTLE_S:
            why = f"waiting up to {self._asked.wait_s} s for room: {shortage(self._job, view)}"
            self._say(("missing",), why, place=place_of(self._me, waiting))

    def _tell(self, waiting: Sequence[Waiter], seen: Sequence[Machine]) -> None:
        place = place_of(self._me, waiting)
        asked_for = self._bounds is not None
        why = told(self._me, waiting, ready_view(seen, free=True), asked_for=asked_for)
        before = waiting[place - 2].id if place > 1 else None
        self._say((place, len(waiting), before), f"waiting: {why}", place=place)

    def _say(self, what: tuple[object, ...], why: str, *, place: int) -> None:
        """Once for each change of what matters."""
        if what != self._said:
            self._said = what
            say(why)
            say_state(state="waiting", place=place, why=why.removeprefix("waiting: "))
