"""A Ray of our own lives as long as its driver: a SIGTERM to every process ends the driver, and that ends the rest."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from orchestrator.presence import Process, descendants, process_of

_GONE_WITHIN_S = 1.0


@contextlib.contextmanager
def deaf_to_sigterm() -> Iterator[None]:
    """What the block starts does not hear SIGTERM; one to this process is heard after the block.

    A machine that shuts down, and Slurm, tell every process to end. Ray would do so within a second and take its
    workers along, before they have saved.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end(copies: Callable[[], Sequence[Process]]) -> None:
    """`ray.shutdown`, without the second that it waits for each of its processes to hear a SIGTERM.

    `copies` tells its workers that are no children of its raylet.
    """
    import ray
    from ray._private import worker

    node = worker._global_node
    started: list[Process] = []
    if node is not None:
        kill = node.kill_all_processes

        def kill_at_once(**_: object) -> None:
            for raylet in node.all_processes.get("raylet", ()):
                if (found := process_of(raylet.process.pid)) is not None:
                    started.extend(descendants(found))
            kill(check_alive=False, wait=True)

        node.kill_all_processes = kill_at_once
    ray.shutdown()
    started += copies()
    for process in started:
        process.send(signal.SIGKILL)
    gone_by = time.monotonic() + _GONE_WITHIN_S
    while time.monotonic() < gone_by and any(process.is_alive for process in started):
        time.sleep(0.01)


def end_orphans(folder: Path) -> None:
    """End what still runs of the Ray in `folder`, whose driver is dead: workers would for seconds, agents for a minute.

    Its processes are known by their name and by the logs that they have open there.
    """
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is somebody else's
            if (entry / "cmdline").read_bytes().startswith(b"ray::") and _has_open(entry, folder):
                os.kill(int(entry.name), signal.SIGKILL)


def _has_open(process: Path, folder: Path) -> bool:
    for descriptor in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            if descriptor.readlink().is_relative_to(folder):
                return True
    return False
