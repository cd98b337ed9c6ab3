"""Start a Ray of our own, or join one that is up. The one place that calls `ray.init`.

A Ray of our own is closed by default: token mode, loopback, no dashboard, no usage statistics, its own temporary
folder. It ends with the `with` block; if this process is killed, Ray's processes see that and end by themselves.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator import presence
from orchestrator.cluster import own, template
from orchestrator.cluster.machines import machines
from orchestrator.cluster.token import ensure_token
from orchestrator.cluster.view import Machine, local_view, ready_view
from orchestrator.errors import CapacityError, Interrupted, JobError
from orchestrator.plan import ClusterView

_TMP_PREFIX = "slipway-ray-"
_OBJECT_STORE_BYTES = 512 << 20
"""Slipway passes file names through Ray, not data: a small store leaves the memory to the workers."""

_REACH_LIMIT_S = 5.0
_OWN_DEFAULTS = {
    "RAY_preload_python_modules": "orchestrator.cluster.preload",  # what stands by has its imports done
    "RAY_TRAIN_METRICS_ENABLED": "0",  # one more process to start beside the workers
}

_DEFAULTS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # how soon the end of the workers is noticed; 2 s by default
    # How long a worker may leave Ray without an answer, stopped or in code that holds Python's lock; 600 by default.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; silences a warning in every worker
    "RAY_worker_niceness": "0",  # Ray runs its workers at 15: whatever else runs on the machine would starve them
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    # Machines that are taken back are seen by the driver itself (train/driver/room.py): for all ranks, with no actor.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


def prepare_environment() -> None:
    """Set what Ray reads from the environment, where the user has not; child processes inherit it."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if os.environ["RAY_AUTH_MODE"] == "token":
        ensure_token()
    if "ray" in sys.modules:
        # Ray reads its configuration when it is imported; whoever imported it before us must see token mode too.
        from ray import _raylet

        _raylet.Config.initialize("")  # type: ignore[attr-defined]


@contextlib.contextmanager
def connected(address: str | None = None) -> Iterator[ClusterView]:
    """A Ray to work on, as long as the block lasts: our own (no address), or the one at `address`.

    Raises:
        JobError: the address is not one that a driver can join.
        CapacityError: nothing answers at the address.
    """
    with _local() if address is None else _joined(address) as view:
        yield view


class Session:
    """A Ray that starts when the first stage needs it: a run whose stages are all done starts nothing."""

    def __init__(self, address: str | None = None) -> None:
        self.address = address
        self._stack = contextlib.ExitStack()
        self._view: ClusterView | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def connect(self) -> ClusterView:
        """Start or join the Ray, once; what it has now."""
        if self._view is None:
            self._view = self._stack.enter_context(connected(self.address))
        elif self.address is not None:
            self._view = ready_view(machines())
        return self._view

    def machines(self) -> list[Machine] | None:
        """The machines of the Ray that was joined, as they are now; None of a Ray of our own, whose one machine stays.

        Raises:
            Exception: of Ray's, where its control service does not answer.
        """
        return None if self.address is None else machines()

    def at_end(self, call: Callable[[], None]) -> None:
        """Have something called when the session ends."""
        self._stack.callback(call)

    def view(self) -> ClusterView:
        """What there is to run on; on this machine nothing has to start for that."""
        return local_view() if self.address is None else self.connect()


@contextlib.contextmanager
def _local() -> Iterator[ClusterView]:
    for name, value in _OWN_DEFAULTS.items():
        os.environ.setdefault(name, value)
    prepare_environment()
    import ray

    _sweep_dead()
    # Unix sockets live below this folder and their names are limited to 107 bytes: /tmp, not $TMPDIR.
    folder = Path(tempfile.mkdtemp(prefix=f"{_TMP_PREFIX}{os.getpid()}-", dir="/tmp"))
    view = local_view()
    try:
        with own.deaf_to_sigterm(), _own_signals():
            ray.init(
                address="local",
                num_cpus=int(view.nodes[0].cpus),
                include_dashboard=False,
                log_to_driver=False,  # a worker's stdout would mix with the command's own
                logging_level=logging.ERROR,
                object_store_memory=_OBJECT_STORE_BYTES,
                namespace="slipway",
                _temp_dir=str(folder),
                _node_ip_address="127.0.0.1",
            )
        folder.chmod(0o700)  # Ray lets everybody write there, and workers send their environment to a socket in it
        if not view.nodes[0].gpus:  # what a process has of a GPU does not live on in a copy of it
            template.open_templates(folder)
        yield view
    finally:
        own.end(template.copies)
        template.close_templates()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _joined(address: str) -> Iterator[ClusterView]:
    if address.startswith(("http://", "https://")):
        raise JobError(
            f"{address} is a dashboard; a driver joins the cluster itself",
            fix="use `slipway submit JOB --address URL`, or give run the head's address, such as 10.0.0.1:6379",
        )
    if not _reachable(address):
        raise CapacityError(
            f"no Ray cluster can be joined at {address}: nothing answers there",
            fix="check the address and port; `ray start --head` on the cluster prints them",
        )
    prepare_environment()
    import ray

    try:
        with own.deaf_to_sigterm(), _own_signals():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace="slipway")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise CapacityError(
            f"no Ray cluster can be joined at {address}: {str(error).splitlines()[0]}",
            fix="check the address and port, and that this machine has the cluster's token in ~/.ray/auth_token",
        ) from None
    try:
        yield ready_view(machines())
    finally:
        ray.shutdown()


def _reachable(address: str) -> bool:
    """Whether something listens there: asked first, because `ray.init` asks for minutes. `auto` finds out."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return True
    try:
        socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=_REACH_LIMIT_S).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """`ray.init` puts a handler of its own in the place of SIGTERM's, which exits with the signal's number.

    Ours is put back, and a SIGTERM that came meanwhile is what it is elsewhere.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except SystemExit as left:
        if left.code != signal.SIGTERM:
            raise
        raise Interrupted(signal.SIGTERM) from None
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _sweep_dead() -> None:
    """End what is left of the Rays of drivers that were killed, and remove their temporary folders."""
    for left in Path("/tmp").glob(f"{_TMP_PREFIX}*"):
        pid = left.name.removeprefix(_TMP_PREFIX).partition("-")[0]
        # Dead too is one whose parent has not asked yet how it ended.
        if pid.isdigit() and presence.process_of(int(pid)) is None:
            own.end_orphans(left)
            shutil.rmtree(left, ignore_errors=True)
