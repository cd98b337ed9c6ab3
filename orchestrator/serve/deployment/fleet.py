"""What of ours runs on the Ray that this process has joined: the gateway, and an application for each version."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, LoggingConfig

from orchestrator.errors import CapacityError, ServeError
from orchestrator.export.manifest import is_custom, read_custom_manifest, read_export_manifest
from orchestrator.job import Serve
from orchestrator.serve.deployment import direct, gateway, swapping
from orchestrator.serve.deployment.applications import gateway_application, most_requests, version_application
from orchestrator.serve.deployment.observe import Seen
from orchestrator.serve.deployment.table import GATEWAY, Entry, Facts, Table, app_of
from orchestrator.serve.host import target
from orchestrator.store import MARKER

_ANSWER_LIMIT_S = 30.0
_STOP_LIMIT_S = 20.0
_DRAIN_LIMIT_S = 600.0
"""How long a version that is replaced may go on with what it has begun."""
_TRY_LIMIT_S = 60.0
_POLL_S = 0.05
_FAILED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)


def prove(export: Path, settings: Serve) -> None:
    """See `target.prove`."""
    target.prove(export, settings)


def entry_of(export: Path, settings: Serve, *, model: str, version: str) -> Entry:
    """A version that gets all requests, of a proven export."""
    facts = replace(_facts(export, settings), requests=most_requests(settings))
    return Entry(
        model=model,
        version=version,
        export=str(export),
        share=1.0,
        app=app_of(model, version),
        facts=facts,
        sleeps=settings.replicas.min == 0,
    )


def _facts(export: Path, settings: Serve) -> Facts:
    created = int((export / MARKER).stat().st_mtime)
    if is_custom(export):
        return Facts(kind="custom", fingerprint=_fingerprint(read_custom_manifest(export).tensors), created=created)
    # Not at the top: they import torch, which the proof does in its thread while Serve starts.
    from model.huggingface import from_hf_config

    manifest = read_export_manifest(export)
    context = from_hf_config(json.loads((export / "config.json").read_text(encoding="utf-8"))).context
    return Facts(
        kind="decoder" if manifest.is_decoder else "encoder",
        labels=tuple(manifest.head.labels) if manifest.head.kind == "classification" else (),
        fingerprint=_fingerprint(manifest.tensors),
        created=created,
        eos_id=manifest.eos_token_id,
        vocab_size=manifest.tokenizer_size,
        context=context,
        max_tokens=settings.max_tokens or context,
    )


def _fingerprint(tensors: dict[str, str]) -> str:
    text = json.dumps(tensors, sort_keys=True)
    return f"fp_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def start_serve(port: int, host: str) -> None:
    """Serve's controller, without a proxy; it keeps where the gateway listens."""
    serve.start(
        proxy_location="Disabled",
        http_options={"host": host, "port": port},
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    )


def controller() -> Any:
    """Serve's controller on this Ray; None where Serve does not run."""
    try:
        return ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return None


def check_capacity(settings: Serve) -> None:
    """Serve would wait for ever for cores that there are not.

    Raises:
        CapacityError: the smallest number of replicas does not fit on this Ray.
    """
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for name, each in (("CPU", settings.cpus), ("GPU", settings.gpus)):
        wanted = settings.replicas.min * each
        if wanted > have.get(name, 0.0):
            raise CapacityError(
                f"serve.replicas.min {settings.replicas.min} of {each} {name} each need {wanted}, "
                f"this Ray has {have.get(name, 0.0):g}",
                fix=f"lower serve.replicas.min or serve.{name.lower()}s",
            )


def start_gateway(settings: Serve, *, host: str, port: int) -> None:
    """Have the gateway started, if it is not there. Accounts and prices are those of the first job that it serves."""
    if (status := serve.status().applications.get(GATEWAY)) is None or status.status in _FAILED:
        _run(gateway_application(settings, host=host, port=port), name=GATEWAY)


def start(entry: Entry, settings: Serve, *, cpus: float | None = None) -> None:
    """Have the replicas of a version started; `cpus`: what Ray sets aside for each, if not what it computes on."""
    _run(version_application(entry, settings, cpus=cpus), name=entry.app)


def _run(application: Any, *, name: str) -> None:
    wanted = serve.RunTarget(target=application, name=name, route_prefix=None)
    serve.run_many([wanted], wait_for_applications_running=False)


def start_beside(entry: Entry, settings: Serve) -> None:
    """Start a version beside those that are there; return when its replicas are warm. Leaves nothing if they never are.

    Where no cores are free it shares those that the others have, until these go.

    Raises:
        CapacityError: there is no GPU for it.
        ServeError: no replica becomes ready.
    """
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    gpus = settings.replicas.min * settings.gpus
    if gpus > free.get("GPU", 0.0):
        raise CapacityError(
            f"a version starts beside the one it replaces and needs {gpus} GPUs, {free.get('GPU', 0.0):g} are free",
            fix="lower serve.replicas, or stop the service and serve the export anew",
        )
    fits = settings.replicas.min * settings.cpus <= free.get("CPU", 0.0)
    try:
        start(entry, settings, cpus=None if fits else 0.0)
        wait_running(entry.app)
    except BaseException:
        end(entry.app)
        raise


def try_out(entry: Entry) -> str:
    """Have a version generate or predict for itself, and say how that went.

    Raises:
        ServeError: it did not.
    """
    began = time.monotonic()
    try:
        failures = direct.call_each(entry.app, "try_out", timeout_s=_TRY_LIMIT_S)
    except ray.exceptions.RayError as error:
        raise ServeError(f"{entry.version} did not generate: {direct.last_error(str(error))}") from error
    if failure := next(filter(None, failures), None):
        raise ServeError(f"{entry.version} did not generate: {failure}")
    return f"it has generated in {(time.monotonic() - began) * 1e3:.0f} ms"


def make_ready(old: Entry, export: Path, settings: Serve) -> bool:
    """See `swapping.make_ready`."""
    return swapping.make_ready(old, export, settings)


def swap(old: Entry, new: Entry) -> float:
    """See `swapping.swap`."""
    return swapping.swap(old, new)


def trouble(entry: Entry) -> str | None:
    """Why a version has no healthy replica; None if it has."""
    status = serve.status().applications.get(entry.app)
    if status is None:
        return f"{entry.app} is gone"
    if status.status in _FAILED:
        return f"its replicas fail: {_reason(status)}"
    return None


def wait_running(app: str) -> None:
    """Return when the replicas that an application must have are there.

    Raises:
        ServeError: they never will be.
    """
    wait_until(lambda: _is_running(app), direct.READY_LIMIT_S, "no replica is ready")


def _is_running(app: str) -> bool:
    status = serve.status().applications.get(app)
    if status is None or status.status not in _FAILED:
        return status is not None and status.status == ApplicationStatus.RUNNING
    raise ServeError(f"no replica became ready: {_reason(status)}")


def _reason(status: ApplicationStatusOverview) -> str:
    return direct.last_error(next((d.message for d in status.deployments.values() if d.message), status.message))


def stored_table() -> Table:
    """What the gateway answers from."""
    return gateway.stored_table()


def route(table: Iterable[Entry]) -> None:
    """Have the gateway answer from another table, from the return of this on.

    Raises:
        ServeError: it does not answer; the one that takes its place answers from that table.
    """
    gateway.store_table(table)
    try:
        direct.call_each(GATEWAY, "route", timeout_s=_ANSWER_LIMIT_S)
    except ray.exceptions.RayError as error:
        raise ServeError(f"the gateway did not take the new table: {direct.last_error(str(error))}") from error


def seen(entry: Entry, last_s: float) -> Seen:
    """What clients have had of one version in the last seconds."""
    try:
        found: list[Seen] = direct.call_each(GATEWAY, "seen", entry.app, last_s, timeout_s=_ANSWER_LIMIT_S)
    except ray.exceptions.RayError:  # the gateway starts anew: it has seen nothing
        return Seen()
    return found[0] if found else Seen()


def remove(entry: Entry) -> None:
    """End a version that the table has no more, once it has finished what it has begun."""
    with contextlib.suppress(ServeError):  # then what is left is cut
        wait_until(lambda: not _under_way(entry), _DRAIN_LIMIT_S, f"{entry.app} is still at work")
    end(entry.app)


def end(app: str) -> None:
    """End an application of a version at once."""
    serve.delete(app, _blocking=False)


def _under_way(entry: Entry) -> int:
    try:
        return sum(direct.call_each(GATEWAY, "under_way", entry.app, timeout_s=_ANSWER_LIMIT_S))
    except ray.exceptions.RayError:  # the gateway has died, and with it what was under way
        return 0


def shut_down() -> None:
    """End Serve, and all that runs on it. As `serve.shutdown()`, which prints what its actor does not survive."""
    running = controller()
    if running is not None:
        for replica in direct.replicas():  # Serve would wait, up to minutes, for what they have begun
            ray.kill(replica)
        with contextlib.suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            ray.get(running.graceful_shutdown.remote(wait=False), timeout=_STOP_LIMIT_S)
        wait_until(lambda: controller() is None, _STOP_LIMIT_S, "Ray Serve still runs")
    gateway.store_table(())


def wait_until(done: Callable[[], bool], limit_s: float, complaint: str) -> None:
    """Return once it is so.

    Raises:
        ServeError: it is not, in time.
    """
    deadline = time.monotonic() + limit_s
    while not done():
        if time.monotonic() > deadline:
            raise ServeError(f"{complaint} after {limit_s:g} s")
        time.sleep(_POLL_S)
