"""Serve an export from this process, on a Ray of its own, until a signal ends it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from orchestrator.cluster.connect import connected
from orchestrator.errors import Interrupted, ServeError
from orchestrator.job import Serve
from orchestrator.serve.processes import check_port, port_is_free

if TYPE_CHECKING:
    from orchestrator.serve.deploy import Service

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WATCH_EVERY_S = 5.0
_LOST_AFTER_S = 60.0


def serve_foreground(
    export: Path, *, settings: Serve, model_name: str, port: int, ready: Callable[[Service], None]
) -> None:
    """Serve until SIGINT or SIGTERM; calls `ready` once it answers. Nothing is left running, however it ends.

    Returns when a signal ended a service that was ready: that is how one ends it. Only for the main thread.

    Raises:
        Interrupted: a signal came before.
        SlipwayError: as `deploy`.
    """
    check_port(port)
    with ThreadPoolExecutor(1) as pool, _one_signal():
        proof = pool.submit(_prove, export, settings)  # beside Ray's start, which mostly waits
        with connected():
            from orchestrator.serve.deploy import deploy

            service = deploy(export, settings=settings, model_name=model_name, port=port, proof=proof)
            try:
                ready(service)
                _watch(port)
            except Interrupted:
                return
            finally:
                service.stop()


def _watch(port: int) -> None:
    """Stay until a signal. Serve replaces its replicas and its proxy; nothing replaces a Ray that has died.

    Raises:
        ServeError: nothing has listened for so long that nothing will.
    """
    listened_at = time.monotonic()
    while time.monotonic() - listened_at < _LOST_AFTER_S:
        time.sleep(_WATCH_EVERY_S)
        if not port_is_free(port):
            listened_at = time.monotonic()
    raise ServeError(f"nothing has listened on port {port} for {_LOST_AFTER_S:g} s: Ray has died", fix="serve it again")


def _prove(export: Path, settings: Serve) -> None:
    # Not through `deploy`: that imports ray.serve, which the main thread is importing. A signal that is raised there
    # in the middle would leave this thread waiting for the import's lock, and the process for this thread.
    from orchestrator.export.prove import load_proven

    load_proven(export, precision=settings.precision)


@contextmanager
def _one_signal() -> Iterator[None]:
    """The first SIGINT or SIGTERM raises Interrupted; those that follow are ignored: nothing interrupts the ending."""
    raised = False

    def handle(signum: int, _frame: FrameType | None) -> None:
        nonlocal raised
        if not raised:
            raised = True
            raise Interrupted(signum)

    before = {signum: signal.signal(signum, handle) for signum in _SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
