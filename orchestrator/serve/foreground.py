"""Serve an export from this process, on a Ray of its own, until a signal ends it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from orchestrator.cluster.connect import connected
from orchestrator.errors import Stopped
from orchestrator.job import Serve
from orchestrator.serve.processes import check_port

if TYPE_CHECKING:
    from orchestrator.serve.deploy import Service

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve_foreground(
    export: Path, *, settings: Serve, model_name: str, port: int, ready: Callable[[Service], None]
) -> None:
    """Serve until SIGINT or SIGTERM; calls `ready` once it answers. Nothing is left running, however it ends.

    Returns when a signal ended a service that was ready: that is how one ends it.

    Raises:
        Stopped: a signal came before.
        SlipwayError: as `deploy`.
    """
    check_port(port)
    with ThreadPoolExecutor(1) as pool, _stoppable() as arm:
        proof = pool.submit(_prove, export, settings)  # beside Ray's start, which mostly waits
        with connected():
            arm()  # ray.init puts its own handler of SIGTERM in the place of ours
            from orchestrator.serve.deploy import deploy

            service = deploy(export, settings=settings, model_name=model_name, port=port, proof=proof)
            try:
                ready(service)
                while True:
                    signal.pause()
            except Stopped:
                return
            finally:
                service.stop()


def _prove(export: Path, settings: Serve) -> None:
    from orchestrator.serve.deploy import prove

    prove(export, settings)


@contextmanager
def _stoppable() -> Iterator[Callable[[], None]]:
    """The first signal raises Stopped; those that follow are ignored, so that nothing interrupts the ending.

    Gives a function that takes the signals back from whoever has taken them since.
    """
    stopped = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            raise Stopped(f"stopped by {signal.Signals(signum).name}", signum=signum)

    def arm() -> None:
        for signum in _SIGNALS:
            signal.signal(signum, stop)

    before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    arm()
    try:
        yield arm
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
