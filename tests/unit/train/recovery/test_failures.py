"""Failures told apart: over the exceptions that Ray, torch and we ourselves raise."""

from __future__ import annotations

import errno
import pickle
import signal
from collections.abc import Callable

import pyarrow as pa
import pytest
from ray import exceptions as core
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.train import ControllerError, PreemptionError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.preemption import PreemptionInfo

from orchestrator.attempts import FencedError
from orchestrator.errors import (
    CapacityError,
    DataError,
    JobError,
    NumericalError,
    OneSampleError,
    OutOfMemoryError,
    StorageError,
    StoreError,
)
from orchestrator.train.recovery.failures import HANG_EXIT_CODE, LOST_PEER, FailureClass, classify

GLOO = (
    "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:29087. This is typically caused by a crash."
)
KILLED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force was called"
)


def died(said: str = KILLED, *, preempted: bool = False) -> WorkerHealthCheckFailedError:
    """How the end of a worker's process reaches us."""
    context = ActorDiedErrorContext(class_name="RayTrainWorker", actor_id=b"\1" * 16, pid=15795, error_message=said)
    if preempted:
        context.node_death_info.reason = NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED
    return WorkerHealthCheckFailedError("A worker health check failed.", failure=core.ActorDiedError(cause=context))


def group(*failures: Exception, first: int = 0) -> WorkerGroupError:
    """As it comes out of the controller's process."""
    return pickle.loads(pickle.dumps(WorkerGroupError("", dict(enumerate(failures, first)))))


@pytest.mark.parametrize(
    ("error", "kind", "cause"),
    [
        (group(died(), first=1), FailureClass.WORKER, "rank 1: its process was killed or crashed"),
        (group(RuntimeError(GLOO), died()), FailureClass.WORKER, "rank 1: its process was killed or crashed"),
        (group(RuntimeError(GLOO)), FailureClass.WORKER, f"rank 0: {LOST_PEER}"),
        (group(RuntimeError(GLOO), ValueError("bad\nshape")), FailureClass.USER_MISTAKE, "rank 1: shape"),
        (group(RuntimeError("CUDA error: an illegal memory access")), FailureClass.WORKER, "rank 0: CUDA error"),
        (
            group(died("The actor died because its node has died. Node Id: 1f")),
            FailureClass.NODE,
            "rank 0: its machine",
        ),
        (group(RuntimeError(GLOO), died(preempted=True)), FailureClass.PREEMPTION, "rank 1: its machine was taken"),
        (group(died("1 worker(s) were killed due to the node running low on memory.")), FailureClass.OUT_OF_MEMORY, ""),
        (group(core.OutOfMemoryError("evicted")), FailureClass.OUT_OF_MEMORY, "rank 0: Ray ended a worker"),
        (group(WorkerHealthCheckTimeoutError("hanging")), FailureClass.HANG, "rank 0: a worker no longer answers"),
        (group(RuntimeError("Timed out waiting 1800000ms for recv operation")), FailureClass.HANG, "rank 0: Timed out"),
        (group(RuntimeError(GLOO), NumericalError("the loss is nan")), FailureClass.NUMERICAL, "the loss is nan"),
        (group(DataError("a row"), DataError("another")), FailureClass.BAD_DATA, "a row"),
        (group(pa.ArrowInvalid("not an Arrow file")), FailureClass.BAD_DATA, "rank 0: not an Arrow file"),
        (group(OSError(errno.ENOSPC, "No space left")), FailureClass.STORAGE, "the disk is full while training"),
        (group(OSError(errno.EIO, "Input/output error")), FailureClass.STORAGE, "storage failed while training"),
        (group(PermissionError(errno.EACCES, "no")), FailureClass.USER_MISTAKE, "no permission while training"),
        (group(FencedError("overtaken"), died()), FailureClass.FENCED, "overtaken"),
        (group(JobError("a wrong key")), FailureClass.USER_MISTAKE, "a wrong key"),
        (group(OutOfMemoryError("with 4 samples")), FailureClass.OUT_OF_MEMORY, "with 4 samples"),
        (PreemptionError(PreemptionInfo(None, {"n": [1]})), FailureClass.PREEMPTION, "the cluster takes back"),
        (ControllerError(WorkerGroupStartupTimeoutError(2)), FailureClass.CONTROL_PLANE, ""),
        (ControllerError(WorkerGroupStartupFailedError("x")), FailureClass.CONTROL_PLANE, "x"),
        (ControllerError(core.NodeDiedError("gone")), FailureClass.NODE, "its machine was lost"),
        (core.RaySystemError("the raylet is gone"), FailureClass.CONTROL_PLANE, "System error: the raylet is gone"),
        (core.GetTimeoutError("no answer"), FailureClass.CONTROL_PLANE, "no answer"),
    ],
)
def test_of_ray(error: Exception, kind: FailureClass, cause: str) -> None:
    found = classify(error)
    assert found.kind is kind
    assert found.cause.startswith(cause)
    assert found.fix


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StorageError("full"), FailureClass.STORAGE),
        (StoreError("held"), FailureClass.USER_MISTAKE),
        (CapacityError("small"), FailureClass.USER_MISTAKE),
        (TypeError("x"), FailureClass.USER_MISTAKE),
        (ImportError("x"), FailureClass.USER_MISTAKE),
        (MemoryError(), FailureClass.OUT_OF_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), FailureClass.OUT_OF_MEMORY),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), FailureClass.OUT_OF_MEMORY),
        (Exception("Current loss scale already at minimum - cannot decrease"), FailureClass.NUMERICAL),
        (ConnectionResetError(errno.ECONNRESET, "reset"), FailureClass.WORKER),
        (TimeoutError(errno.ETIMEDOUT, "the mount"), FailureClass.STORAGE),
        (SystemExit(HANG_EXIT_CODE), FailureClass.HANG),
        (SystemExit("no number"), FailureClass.WORKER),
    ],
)
def test_without_ray(error: BaseException, kind: FailureClass) -> None:
    assert classify(error).kind is kind


def test_w_and_bs_own_errors() -> None:
    from wandb.errors import CommError

    assert classify(CommError("no route")).kind is FailureClass.TRACKER


@pytest.mark.parametrize(
    ("code", "kind", "cause"),
    [
        (HANG_EXIT_CODE, FailureClass.HANG, "a watchdog ended the process"),
        (-signal.SIGKILL, FailureClass.WORKER, "the process was ended by SIGKILL"),
        (128 + signal.SIGSEGV, FailureClass.WORKER, "the process was ended by SIGSEGV"),
        (3, FailureClass.WORKER, "the process ended with exit code 3"),
    ],
)
def test_an_exit_code(code: int, kind: FailureClass, cause: str) -> None:
    found = classify(code)
    assert (found.kind, found.cause) == (kind, cause)


def raised(make: Callable[[], None]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - whatever it is
        make()
    return caught.value


def test_a_chain_is_followed_to_what_began_it() -> None:
    def load() -> None:
        try:
            raise OSError(errno.EIO, "Input/output error", "/shards/0.arrow")
        except OSError as error:
            raise RuntimeError("the reading thread ended") from error

    assert classify(raised(load)).kind is FailureClass.STORAGE


def test_a_chain_in_a_circle_ends() -> None:
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert classify(first).kind is FailureClass.WORKER


def test_what_a_watchdog_left_is_told_first() -> None:
    found = classify(group(died()), hang="rank 0 made no progress")
    assert (found.kind, found.cause) == (FailureClass.HANG, "rank 0 made no progress")


def test_one_sample_that_does_not_fit_is_not_tried_again() -> None:
    assert not classify(OneSampleError("1 sample")).retriable
    assert classify(OutOfMemoryError("4 samples")).retriable


def test_the_same_error_at_another_address_is_the_same() -> None:
    one = classify(RuntimeError("CUDA error at 0x7f of process 10001"))
    assert one.signature == classify(RuntimeError("CUDA error at 0x8a of process 20002")).signature
    assert one.signature != classify(RuntimeError("CUDA error 2")).signature
