"""Machines that come and go: from what is seen of a cluster to what a run does about it. Pure.

A notice that a machine is taken back is acted on at once. More room is a status, which may flap: it counts when it has
been the same for a while, and when the restart that it costs is won back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.cluster.view import Machine
from orchestrator.errors import CapacityError
from orchestrator.job_train import Workers
from orchestrator.plan.capacity import workers_on
from orchestrator.train.recovery.failures import Failure, FailureClass

STABLE_S = 10.0
"""How long an offer of more room has to be the same."""
_FEWEST_LOOKS = 3
_SHARE_WON = 0.5
"""Of the time that a step's largest share gets shorter by: the rest of a step does not shrink."""

Places = Mapping[str, Sequence[int]]
"""The ranks on each machine, by its id."""


@dataclass(frozen=True)
class Offer:
    """What the cluster would have held at a moment."""

    at_s: float
    """By a clock that never goes back."""
    workers: int


@dataclass(frozen=True)
class Pace:
    """How an attempt gets on, and what another start would cost."""

    steps_left: int
    step_s: float
    """Median of its last steps."""
    restart_s: float
    """What its own start took up to its first step, and a checkpoint."""


def room(asked: Workers, machines: Iterable[Machine], places: Places) -> int:
    """How many workers the cluster would hold, up to `max`: the run's own, and what fits beside whatever runs there."""
    ready = [machine for machine in machines if machine.state == "ready"]
    own = sum(len(places.get(machine.id, ())) for machine in ready)
    return min(asked.max, own + sum(workers_on(asked, machine.free) for machine in ready))


def settled(offers: Sequence[Offer], *, now_s: float, workers: int) -> int | None:
    """The number that all looks of the last `STABLE_S` seconds agree on, where it is above `workers`; else None."""
    if not offers or offers[0].at_s > now_s - STABLE_S:
        return None
    recent = [offer.workers for offer in offers if offer.at_s >= now_s - STABLE_S]
    if len(recent) < _FEWEST_LOOKS or len(set(recent)) > 1 or recent[0] <= workers:
        return None
    return recent[0]


def pays(pace: Pace, *, samples: int, workers: int, more: int) -> bool:
    """Whether going on with `more` workers wins back what the restart costs.

    A step of `samples` takes as long as its largest share, so 5 workers are no faster than 4 where it has 8.
    """
    largest, then = -(-samples // workers), -(-samples // more)
    won_s = pace.steps_left * pace.step_s * (1.0 - then / largest) * _SHARE_WON
    return won_s > pace.restart_s


def leaving(machines: Iterable[Machine], places: Places) -> list[str]:
    """Machines with workers of the run that are to be taken back."""
    return [machine.id for machine in machines if machine.state == "leaving" and places.get(machine.id)]


def blamed(failure: Failure, machines: Iterable[Machine], places: Places, *, told: Iterable[str]) -> Failure:
    """The failure of an attempt, or the loss of a machine where that is what it comes from.

    What ranks say then, a closed connection or a process that has ended, is the consequence. `told` are the machines
    whose leaving was seen while the attempt ran.
    """
    if failure.kind not in _MAY_BE_A_MACHINE or failure.error is not None:
        return failure
    states = {machine.id: machine.state for machine in machines}
    taken = [i for i in places if states.get(i) == "leaving" or (i in told and states.get(i) != "ready")]
    lost = [i for i in places if i not in taken and states.get(i) != "ready"]
    if taken:
        return Failure.of(FailureClass.PREEMPTION, f"the machine of {of_ranks(taken, places)} was taken back")
    return Failure.of(FailureClass.NODE, f"the machine of {of_ranks(lost, places)} was lost") if lost else failure


_MAY_BE_A_MACHINE = (FailureClass.WORKER, FailureClass.HANG, FailureClass.NODE, FailureClass.CONTROL_PLANE)


def no_room(error: CapacityError) -> Failure:
    """The end of a run that found no room for its smallest group, however long it was allowed to wait."""
    fix = error.fix or "run the same command again once there are machines"
    return Failure(FailureClass.CONTROL_PLANE, error.message, fix, error, retriable=False)


def of_ranks(ids: Iterable[str], places: Places) -> str:
    """Whose machines: `rank 1`, `ranks 1, 3`."""
    ranks = sorted(rank for i in ids for rank in places.get(i, ()))
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
