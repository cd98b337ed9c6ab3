"""The queue of a cluster: an actor on the head knows which runs wait for room; each of them asks whether it may try.

The actor holds nothing that cannot be told again: when it dies, Ray starts it anew, and those who wait say so within a
second. Without an answer for long a run goes on without a place in the queue: Ray still places a group whole or not at
all.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from orchestrator.cluster import bounds
from orchestrator.cluster.bounds import Bounds, bounds_from
from orchestrator.cluster.machines import HEAD
from orchestrator.cluster.turns import LAPSE_S, Book, Waiter

NAMESPACE = "slipway"
ACTOR = "slipway-queue-1"
"""The number is that of what travels: drivers that speak otherwise have a queue of their own."""
_ON_THE_HEAD = {HEAD: 0.001}
_RENEW_S = 1.0
_ANSWER_S = 10.0
_PATIENCE_S = 2 * LAPSE_S


class _Desk:
    """The actor: a book, and the clock that it is kept by."""

    def __init__(self) -> None:
        self._book = Book()

    def renew(self, waiter: dict[str, Any]) -> list[dict[str, Any]]:
        waiting = self._book.renew(Waiter.from_json(waiter), now_s=time.monotonic())
        return [one.as_json() for one in waiting]

    def take(self, waiter_id: str, considered: list[str]) -> bool:
        return self._book.take(waiter_id, considered=considered, now_s=time.monotonic())

    def leave(self, waiter_id: str) -> None:
        self._book.leave(waiter_id)

    def waiting(self) -> list[dict[str, Any]]:
        return [one.as_json() for one in self._book.waiting(now_s=time.monotonic())]

    def declared(self) -> dict[str, Any] | None:
        return bounds.declared()


class Queue:
    """The queue of the cluster that this process has joined."""

    def __init__(self) -> None:
        self._desk: Any = None

    @contextlib.contextmanager
    def standing(self, waiter: Waiter) -> Iterator[Turn]:
        """A place in the queue, until the block ends or the run has its room (`Turn.leave`)."""
        turn = Turn(self, waiter)
        try:
            yield turn
        finally:
            turn.leave()

    def waiting(self) -> list[Waiter]:
        """Who waits, in order; nobody where the queue does not answer."""
        found = self._ask("waiting")
        return [Waiter.from_json(one) for one in found or ()]

    def bounds(self) -> Bounds | None:
        """How far the cluster's autoscaler goes; None where it has none, or nobody answers."""
        return bounds_from(self._ask("declared"))

    def renew(self, waiter: Waiter) -> list[Waiter] | None:
        """Say that a run waits; all that do, in order. None: the queue does not answer."""
        found = self._ask("renew", waiter.as_json())
        return None if found is None else [Waiter.from_json(one) for one in found]

    def take(self, waiter_id: str, considered: list[str]) -> bool | None:
        """Whether a run may take room now, which holds until it leaves; None: the queue does not answer."""
        found = self._ask("take", waiter_id, considered)
        return None if found is None else bool(found)

    def forget(self, waiter_id: str) -> None:
        """Say that a run waits no more; unheard, it falls out by itself."""
        import ray

        with contextlib.suppress(Exception):  # Ray's, where it has ended
            if ray.is_initialized():  # else it would start one
                self._actor().leave.remote(waiter_id)

    def _ask(self, name: str, *args: Any) -> Any:
        """An answer of the actor's; None where it has none to give, or there is none."""
        import ray

        for _ in range(2):  # the second time of one that was made anew
            if not ray.is_initialized():  # else it would start one
                return None
            try:
                return ray.get(getattr(self._actor(), name).remote(*args), timeout=_ANSWER_S)
            except (ray.exceptions.RayError, ValueError, RuntimeError):
                self._desk = None
        return None

    def _actor(self) -> Any:
        import ray

        if self._desk is None:
            self._desk = (
                ray.remote(_Desk)
                .options(
                    name=ACTOR,
                    namespace=NAMESPACE,
                    get_if_exists=True,
                    lifetime="detached",
                    num_cpus=0,
                    resources=_ON_THE_HEAD,
                    max_restarts=-1,
                )
                .remote()
            )
        return self._desk


class Turn:
    """A run's place in the queue, renewed by a thread until it is left."""

    def __init__(self, queue: Queue, waiter: Waiter) -> None:
        self.waiter = replace(waiter, id=uuid.uuid4().hex)
        self._queue, self._began_s = queue, time.monotonic()
        self._answer: tuple[float, list[Waiter]] | None = None
        self._heard, self._left = False, threading.Event()
        self._renew()
        self._thread = threading.Thread(target=self._keep, name="queue", daemon=True)
        self._thread.start()

    def waiting(self) -> list[Waiter] | None:
        """Who waits, this one among them, in order; None for as long as the queue has not answered.

        A queue that stays silent has nobody in it.
        """
        answer, now_s = self._answer, time.monotonic()
        if answer is not None and answer[0] >= now_s - LAPSE_S:
            return answer[1]
        silent_since = answer[0] if answer is not None else self._began_s
        return [self.waiter] if now_s - silent_since > _PATIENCE_S else None

    def take(self, considered: Iterable[Waiter]) -> bool:
        """Take the turn, where nobody else stands before the run by now; it holds until it is left."""
        taken = self._queue.take(self.waiter.id, [one.id for one in considered])
        if taken is None:  # as in `waiting`
            taken = self.waiting() == [self.waiter]
        if taken:
            self.waiter = replace(self.waiter, placing=True)
        return taken

    def leave(self) -> None:
        """Give the turn back, or give up; a second time does nothing."""
        if not self._left.is_set():
            self._left.set()
            self._queue.forget(self.waiter.id)

    def _keep(self) -> None:
        while not self._left.wait(_RENEW_S if self._heard else _ANSWER_S):
            self._renew()
        self._queue.forget(self.waiter.id)  # where a renewal was under way

    def _renew(self) -> None:
        waited_s = time.monotonic() - self._began_s
        waiting = self._queue.renew(replace(self.waiter, waited_s=waited_s))
        self._heard = waiting is not None
        if waiting is not None:
            self._answer = time.monotonic(), waiting
