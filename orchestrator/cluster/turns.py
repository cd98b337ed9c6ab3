"""Whose turn it is to take room on a cluster that several runs share. Pure: the clock is given.

Ray places a group of workers whole or not at all, so two runs never hold half of a cluster each. What it does not have
is an order: whoever asks at the right moment wins. Here the order is kept: who takes room at this moment, then runs
that had begun and start again, then by priority, then who has waited longest. One that stands behind may go ahead only
on room that nobody before it could use.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from orchestrator.cluster.view import Machine, ready_view
from orchestrator.job_train import Workers
from orchestrator.plan import ClusterView, Node
from orchestrator.plan.capacity import workers_on, workers_that_fit

LAPSE_S = 15.0
"""A run that was not heard of for so long waits no more: its driver has died, or its machine has."""


@dataclass(frozen=True)
class Waiter:
    """A run that waits for room, or that takes it at this moment."""

    id: str
    name: str
    """Of the run, for people."""
    workers: Workers
    priority: int = 0
    begun: bool = False
    """Whether it has trained before, and starts again."""
    waited_s: float = 0.0
    placing: bool = False
    """Whether it has its turn: it takes room, and its workers do not run yet."""

    def as_json(self) -> dict[str, Any]:
        """What travels: plain data, which drivers of other versions read too."""
        needs = self.workers.model_dump(include={"min", "max", "cpus", "gpus"})
        return {**asdict(self), "workers": needs}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Waiter:
        """The inverse."""
        return cls(**{**data, "workers": Workers(**data["workers"])})


class Book:
    """Who waits, by what the drivers say again and again."""

    def __init__(self) -> None:
        self._waiters: dict[str, Waiter] = {}
        self._since_s: dict[str, float] = {}
        self._heard_s: dict[str, float] = {}

    def renew(self, waiter: Waiter, *, now_s: float) -> list[Waiter]:
        """Hear of a run that waits; all that wait, in order. `waited_s` counts when it is first heard of."""
        self._since_s.setdefault(waiter.id, now_s - waiter.waited_s)
        before = self._waiters.get(waiter.id)
        placing = waiter.placing or (before is not None and before.placing)
        self._waiters[waiter.id], self._heard_s[waiter.id] = replace(waiter, placing=placing), now_s
        return self.waiting(now_s=now_s)

    def take(self, waiter_id: str, *, considered: Collection[str], now_s: float) -> bool:
        """Let a run take room, unless somebody stands before it by now whom it has not considered."""
        waiting = self.waiting(now_s=now_s)
        place = next((i for i, one in enumerate(waiting) if one.id == waiter_id), None)
        if place is None or any(one.id not in considered for one in waiting[:place]):
            return False
        self._waiters[waiter_id] = replace(self._waiters[waiter_id], placing=True)
        return True

    def leave(self, waiter_id: str) -> None:
        """Forget a run: it has its room, or gives up."""
        for kept in (self._waiters, self._since_s, self._heard_s):
            kept.pop(waiter_id, None)

    def waiting(self, *, now_s: float) -> list[Waiter]:
        """All that wait, in order; those that have fallen silent are forgotten."""
        for silent in [one for one, heard_s in self._heard_s.items() if heard_s < now_s - LAPSE_S]:
            self.leave(silent)
        return in_order(replace(one, waited_s=now_s - self._since_s[one.id]) for one in self._waiters.values())


def in_order(waiters: Iterable[Waiter]) -> list[Waiter]:
    """First who takes room already, then what starts again, then by priority, then who has waited longest."""
    return sorted(waiters, key=lambda one: (not one.placing, not one.begun, -one.priority, -one.waited_s, one.id))


def left_by(ahead: Sequence[Waiter], machines: Iterable[Machine]) -> list[Machine]:
    """The machines with what stays free when each of `ahead` has taken as much as it may ask for."""
    left = list(machines)
    for waiter in ahead:
        wanted = waiter.workers.max
        for i in sorted(range(len(left)), key=lambda i: _comes_last(waiter.workers, left[i])):
            if left[i].state != "ready":
                continue
            taken = min(wanted, workers_on(waiter.workers, left[i].free))
            wanted -= taken
            left[i] = replace(left[i], free=_without(left[i].free, waiter.workers, taken))
    return left


def may_try(me: Waiter, ahead: Sequence[Waiter], machines: Iterable[Machine]) -> bool:
    """Whether a run may take room now: it is the first, or those before it could not use what it takes."""
    return not ahead or workers_that_fit(me.workers, ready_view(left_by(ahead, machines), free=True)) >= me.workers.min


def told(me: Waiter, waiting: Sequence[Waiter], free: ClusterView, *, asked_for: bool) -> str:
    """For people: `2nd of 3, waits for 8 GPUs; small-0123 is before it`. `asked_for`: an autoscaler knows of it."""
    place = place_of(me, waiting)
    text = f"{_ordinal(place)} of {max(len(waiting), place)}, waits for {needs(me.workers)}"
    if place > 1:
        return f"{text}; {waiting[place - 2].name} is before it"
    return f"{text}; {free.describe()} are free" + (", more machines are asked for" if asked_for else "")


def place_of(me: Waiter, waiting: Sequence[Waiter]) -> int:
    """From 1."""
    return next((i for i, one in enumerate(waiting, start=1) if one.id == me.id), 1)


def needs(workers: Workers) -> str:
    """The least that it takes: `8 GPUs`, or `2 CPUs`."""
    number, what = (workers.min * workers.gpus, "GPU") if workers.gpus else (workers.min * workers.cpus, "CPU")
    return f"{number} {what}{'' if number == 1 else 's'}"


def _comes_last(workers: Workers, machine: Machine) -> bool:
    """Workers without GPUs are thought of on machines that have none, as long as there is room."""
    return bool(machine.has.gpus) and not workers.gpus


def _without(node: Node, workers: Workers, taken: int) -> Node:
    return node.model_copy(update={"cpus": node.cpus - taken * workers.cpus, "gpus": node.gpus - taken * workers.gpus})


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
