"""Serve an export from this process, on a Ray of its own, until a signal ends it."""

from __future__ import annotations

import os
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
from orchestrator.serve.accounts.audit import AuditLog
from orchestrator.serve.accounts.place import audit_path
from orchestrator.serve.host import records
from orchestrator.serve.host.address import check_host
from orchestrator.serve.host.control import listening
from orchestrator.serve.host.processes import HOST, check_port
from orchestrator.serve.host.target import prove
from orchestrator.serve.rollout.history import History

if TYPE_CHECKING:
    from orchestrator.serve.deployment.deploy import Service
    from orchestrator.serve.rollout.commands import Commands

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WATCH_EVERY_S = 5.0
_ENVIRONMENT = {
    # How soon Serve hears of load; 10 s by default.
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    # One event loop in each process: every message would wake three threads in turn. Nothing of ours blocks it.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
"""What Ray Serve reads when its processes start."""


def serve_foreground(
    export: Path,
    *,
    settings: Serve,
    model_name: str,
    port: int,
    ready: Callable[[Service], None],
    follow: Path | None = None,
    host: str = HOST,
) -> None:
    """Serve until SIGINT or SIGTERM; calls `ready` once it answers. Nothing is left running, however it ends.

    Meanwhile it takes the commands of `rollout.commands`. `follow` is a run whose newer checkpoints it brings as they
    come. Returns when a signal ended a service that was ready: that is how one ends it. Only for the main thread.

    Raises:
        Interrupted: a signal came before.
        SlipwayError: as `deploy`.
    """
    check_host(host, settings)
    check_port(port, host)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    history = History(records.history_path(port), AuditLog(audit_path()).append)
    version = history.next_version(model_name)
    with ThreadPoolExecutor(1) as pool, _one_signal():
        # Beside Ray's start, which mostly waits. Not through `deploy`: that imports ray.serve, which the main thread
        # is importing. A signal that is raised there in the middle would leave this thread waiting for the import's
        # lock, and the process for this thread.
        proof = pool.submit(prove, export, settings)
        with connected():
            from orchestrator.serve.deployment.deploy import deploy

            service = deploy(
                export,
                settings=settings,
                model_name=model_name,
                port=port,
                version=version,
                proof=proof,
                host=host,
            )
            told = {"model": model_name, "version": version, "export": str(export)}
            history.add("started", **told, settings=settings.model_dump(mode="json"))
            try:
                with listening(port, _commands(service, history, follow, settings, export)):
                    ready(service)
                    _watch()
            except Interrupted:
                service.stop()  # lets go of the port in good order; whatever else ends it, Ray's end does


def _commands(service: Service, history: History, follow: Path | None, settings: Serve, export: Path) -> Commands:
    from orchestrator.serve.deployment import fleet
    from orchestrator.serve.rollout.commands import Commands
    from orchestrator.serve.rollout.controller import Controller
    from orchestrator.serve.rollout.scores import scores_of
    from orchestrator.serve.rollout.thumbs import ThumbsOf

    controller = Controller(fleet, history, scores_of=scores_of, thumbs_of=ThumbsOf(settings.accounts))
    commands = Commands(controller, url=service.url)
    if follow is not None:
        commands.follow(follow, service.model, settings, served=export)
    return commands


def _watch() -> None:
    """Stay until a signal. Serve replaces its replicas and the gateway; nothing replaces a Ray that has died.

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
