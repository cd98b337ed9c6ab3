"""Failures told apart: from whatever ended an attempt to its class, its cause, and what to do about it. Pure.

Ray's types are looked at only where an error is of Ray: without it nothing of it is imported.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from orchestrator.attempts import FencedError
from orchestrator.errors import (
    DataError,
    NumericalError,
    OneSampleError,
    OutOfMemoryError,
    SlipwayError,
    StorageError,
    TrainError,
    storage_error,
)

HANG_EXIT_CODE = 75
"""Of a process that its watchdog has ended: `EX_TEMPFAIL` of sysexits.h, try again later."""


class FailureClass(str, Enum):
    """What kind of thing went wrong. In order: where the ranks tell different things, the first of these is told."""

    FENCED = "fenced"
    """A newer attempt has taken over."""
    HANG = "hang"
    PREEMPTION = "preemption"
    """The machine was taken back, with or without notice."""
    NODE = "node"
    """A machine was lost."""
    NUMERICAL = "numerical"
    BAD_DATA = "bad-data"
    OUT_OF_MEMORY = "out-of-memory"
    STORAGE = "storage"
    USER_MISTAKE = "user-mistake"
    """What another attempt would only find again: the job, or code."""
    WORKER = "worker"
    """A worker was killed, or crashed."""
    TRACKER = "tracker"
    CONTROL_PLANE = "control-plane"
    """Ray itself."""


_FIXES = {
    FailureClass.FENCED: "nothing: the newer attempt goes on",
    FailureClass.HANG: "look at the stacks/ of the run: they show what each rank waited for; raise train.watchdog "
    "where the step was only slow",
    FailureClass.PREEMPTION: "run the same command again once there are machines",
    FailureClass.NODE: "look at that machine, then run the same command again",
    FailureClass.NUMERICAL: "lower train.optimizer.learning_rate, then run the same command again",
    FailureClass.BAD_DATA: "look at the dataset: slipway data show",
    FailureClass.OUT_OF_MEMORY: "shorten model.context, set train.activation_checkpointing: true, or shard more "
    "(train.zero.stage)",
    FailureClass.STORAGE: "check the store's disk, then run the same command again",
    FailureClass.USER_MISTAKE: "the logs/ of the run have the traceback; the same command continues from the last "
    "checkpoint",
    FailureClass.WORKER: "look at the logs/ of the run and at the kernel's log (dmesg), which names what it killed for "
    "memory; the same command continues from the last checkpoint",
    FailureClass.TRACKER: "set track.wandb.mode=offline, then run the same command again",
    FailureClass.CONTROL_PLANE: "check the cluster (slipway doctor, ray status), then run the same command again",
}
_OWN: tuple[tuple[type[SlipwayError], FailureClass], ...] = (
    (FencedError, FailureClass.FENCED),
    (OneSampleError, FailureClass.OUT_OF_MEMORY),
    (OutOfMemoryError, FailureClass.OUT_OF_MEMORY),
    (NumericalError, FailureClass.NUMERICAL),
    (DataError, FailureClass.BAD_DATA),
    (StorageError, FailureClass.STORAGE),
    (TrainError, FailureClass.WORKER),
    (SlipwayError, FailureClass.USER_MISTAKE),
)
_LOST_PEER = re.compile(r"Connection closed by peer|Connection reset by peer|Broken pipe|ncclRemoteError")
_SAID = (
    (re.compile(r"Timed out waiting \d+ ?ms|collective operation timeout"), FailureClass.HANG),
    (re.compile(r"out of memory|can't allocate memory|low on memory", re.IGNORECASE), FailureClass.OUT_OF_MEMORY),
    (re.compile(r"loss scale already at minimum"), FailureClass.NUMERICAL),
)
"""How libraries put it that have no type of their own for it: gloo, NCCL; torch, Ray; DeepSpeed."""
_LIBRARIES = {"pyarrow": FailureClass.BAD_DATA, "wandb": FailureClass.TRACKER}
_FAULTS = (RuntimeError, MemoryError, SystemError, ConnectionError)
"""What drivers of devices, collectives and the interpreter raise; other types come from the same line each time."""
_CHANGING = re.compile(r"0x[0-9a-f]+|:\d+|\b\d{5,}\b")


@dataclass(frozen=True)
class Failure:
    """What ended an attempt."""

    kind: FailureClass
    cause: str
    """In one line."""
    fix: str
    error: SlipwayError | None = None
    """Our own error, where one was raised."""
    retriable: bool = True
    """False where this one cannot end otherwise, whatever its class allows."""

    @classmethod
    def of(cls, kind: FailureClass, cause: str) -> Failure:
        """With what is to be done about its class."""
        return cls(kind, cause, _FIXES[kind])

    @property
    def signature(self) -> tuple[FailureClass, str]:
        """Equal of two that are the same error: addresses, ports and process numbers do not count."""
        return self.kind, _CHANGING.sub("#", self.cause)


def classify(error: BaseException | int, *, doing: str = "training", hang: str | None = None) -> Failure:
    """The class of an exception with its chain of causes, or of an exit code (negative: a signal).

    `hang` is what a watchdog has left: it is told before all else, since the rest follows from it. `doing` completes
    what is said of a failed disk.
    """
    if hang is not None:
        return _failure(FailureClass.HANG, hang)
    if isinstance(error, int):
        return _of_exit(error)
    for link in _chain(error):
        found = _of_ray(link, doing) if type(link).__module__.startswith("ray.") else _recognised(link, doing)
        if found is not None:
            return found
    fault = isinstance(error, _FAULTS)
    return _failure(FailureClass.WORKER if fault else FailureClass.USER_MISTAKE, _last_line(error))


def _failure(kind: FailureClass, cause: str) -> Failure:
    return Failure.of(kind, cause)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from, to the first that began it."""
    seen: list[BaseException] = []
    while error is not None and not any(error is one for one in seen):
        seen.append(error)
        yield error
        error = error.__cause__


def _recognised(error: BaseException, doing: str) -> Failure | None:
    """The class of an error by its type, or by what libraries say; None of any other."""
    if isinstance(error, SlipwayError):
        kind = next(kind for own, kind in _OWN if isinstance(error, own))
        fix = error.fix or _FIXES[kind]
        return Failure(kind, error.message, fix, error, retriable=not isinstance(error, OneSampleError))
    if isinstance(error, SystemExit):
        return _of_exit(error.code if isinstance(error.code, int) else 1)
    if (kind_of := _LIBRARIES.get(type(error).__module__.partition(".")[0])) is not None:
        return _failure(kind_of, _last_line(error))
    return _by_what_it_says(error, doing)


def _by_what_it_says(error: BaseException, doing: str) -> Failure | None:
    said = str(error)
    if isinstance(error, ConnectionError) or _LOST_PEER.search(said):
        return _failure(FailureClass.WORKER, LOST_PEER)
    if isinstance(error, OSError) and error.errno is not None:
        return _recognised(storage_error(error, doing=doing), doing)
    if isinstance(error, MemoryError):
        return _failure(FailureClass.OUT_OF_MEMORY, "memory ran out")
    kinds = [kind for pattern, kind in _SAID if pattern.search(said)]
    return _failure(kinds[0], _last_line(error)) if kinds else None


LOST_PEER = "the connection to another rank was lost"


def _of_exit(code: int) -> Failure:
    """As `subprocess` tells it, or a shell: 137 is -9."""
    if code == HANG_EXIT_CODE:
        return _failure(FailureClass.HANG, "a watchdog ended the process")
    number = -code if code < 0 else code - 128
    if number in {known.value for known in signal.Signals}:
        return _failure(FailureClass.WORKER, f"the process was ended by {signal.Signals(number).name}")
    return _failure(FailureClass.WORKER, f"the process ended with exit code {code}")


def _of_ray(error: BaseException, doing: str) -> Failure | None:
    """The class of an error of Ray or Ray Train; None where what it wraps has to be asked."""
    from ray import exceptions as core
    from ray.train import ControllerError, NCCLHangError, PreemptionError, WorkerGroupError
    from ray.train.v2._internal.exceptions import CollectiveTimeoutError, WorkerHealthCheckTimeoutError

    if isinstance(error, PreemptionError):
        return _failure(FailureClass.PREEMPTION, "the cluster takes back machines of this run")
    if isinstance(error, (NCCLHangError, WorkerHealthCheckTimeoutError, CollectiveTimeoutError)):
        return _failure(FailureClass.HANG, "a worker no longer answers Ray")
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        return _of_ranks(error.worker_failures, doing)
    if isinstance(error, ControllerError):
        inner = classify(error.controller_failure, doing=doing)
        above = (FailureClass.PREEMPTION, FailureClass.NODE)
        return inner if inner.kind in above else _failure(FailureClass.CONTROL_PLANE, _last_line(error))
    if isinstance(error, core.RayTaskError):
        return classify(error.cause, doing=doing)
    return _failure(*_of_ray_core(error))


def _of_ray_core(error: BaseException) -> tuple[FailureClass, str]:
    from ray import exceptions as core

    said = str(error)
    if (isinstance(error, core.RayActorError) and error.preempted) or "node was preempted" in said:
        return FailureClass.PREEMPTION, "its machine was taken back"
    if isinstance(error, core.NodeDiedError) or "its node has died" in said or "node was terminated" in said:
        return FailureClass.NODE, "its machine was lost"
    if isinstance(error, core.OutOfMemoryError) or "low on memory" in said:
        return FailureClass.OUT_OF_MEMORY, "Ray ended a worker because its machine ran out of memory"
    if isinstance(error, (core.OutOfDiskError, core.ObjectStoreFullError)):
        return FailureClass.STORAGE, "Ray's disk is full"
    if isinstance(error, (core.RayActorError, core.WorkerCrashedError)):
        return FailureClass.WORKER, "its process was killed or crashed"
    return FailureClass.CONTROL_PLANE, _last_line(error)


def _of_ranks(failures: dict[int, Exception], doing: str) -> Failure:
    """What tells most of what the ranks say: a lost connection is the consequence of another's end."""
    found = [(rank, _of_rank(failures[rank], doing)) for rank in sorted(failures)]
    order = list(FailureClass)
    rank, told = min(found, key=lambda pair: (order.index(pair[1].kind), pair[1].cause == LOST_PEER, pair[0]))
    return told if told.error is not None else replace(told, cause=f"rank {rank}: {told.cause}")


def _of_rank(error: BaseException, doing: str) -> Failure:
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return classify(
        error.health_check_failure if isinstance(error, WorkerHealthCheckFailedError) else error, doing=doing
    )


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
