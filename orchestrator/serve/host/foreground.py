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
from orchestrator.serve.host.processes import check_port

if TYPE_CHECKING:
    from orchestrator.serve.deployment.deploy import Service

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WATCH_EVERY_S = 5.0


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
            from orchestrator.serve.deployment.deploy import deploy

            service = deploy(export, settings=settings, model_name=model_name, port=port, proof=proof)
            try:
                ready(service)
                _watch()
            except Interrupted:
                service.stop()  # lets go of the port in good order; whatever else ends it, Ray's end does


def _watch() -> None:
    """Stay until a signal. Serve replaces its replicas and its proxy; nothing replaces a Ray that has died.

    Raises:
        ServeError: Ray has no living node any more, or does not say.
    """
    import ray

    try:
        while any(node["Alive"] for node in ray.nodes()):  # type: ignore[no-untyped-call]
            time.sleep(_WATCH_EVERY_S)
    except ray.exceptions.RaySystemError as error:
        raise ServeError(f"the service's Ray does not answer: {error}", fix="serve it again") from error
    raise ServeError("the service's Ray has died", fix="serve it again")


def _prove(export: Path, settings: Serve) -> None:
    # Not through `deploy`: that imports ray.serve, which the main thread is importing. A signal that is raised there
    # in the middle would leave this thread waiting for the import's lock, and the process for this thread.
    from orchestrator.export.custom import prove_to_serve

    prove_to_serve(export, precision=settings.precision)


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
