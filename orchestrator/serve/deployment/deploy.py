"""Deploy an export on the Ray that this process has joined, and wait until it answers."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus, LoggingConfig

from orchestrator.errors import CapacityError, ServeError
from orchestrator.export.manifest import is_custom
from orchestrator.job import Serve
from orchestrator.serve.host.processes import HOST, check_port, port_is_free

APP_NAME = "slipway"
_READY_LIMIT_S = 600.0
"""A large model takes minutes to read; a replica that fails is noticed at once."""
_ANSWER_LIMIT_S = 30.0
_STOP_LIMIT_S = 20.0
_POLL_S = 0.05
_FAILED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)


@dataclass(frozen=True)
class Service:
    """A deployed model that answers."""

    url: str
    """Base of OpenAI's API: http://127.0.0.1:PORT/v1."""
    model: str
    port: int

    def stop(self) -> None:
        """End it, and Serve on this Ray with it; returns when the port is free again."""
        _shut_down_serve()
        _wait_until(lambda: port_is_free(self.port), _STOP_LIMIT_S, f"port {self.port} is still in use")


def prove(export: Path, settings: Serve) -> None:
    """Prove an export in this process: Serve would try replica after replica, and hide the reason in its logs.

    Raises:
        StoreError, ServeError: as `prove_to_serve`.
    """
    from orchestrator.export.custom import prove_to_serve

    prove_to_serve(export, precision=settings.precision)


def deploy(export: Path, *, settings: Serve, model_name: str, port: int, proof: Future[None] | None = None) -> Service:
    """Serve an export on this Ray; returns when it is ready and warm: it has answered a request through HTTP.

    `proof` is a call of `prove` that is under way already; None has it made here, while Serve starts. A service
    that runs on this Ray already is replaced: its replicas go when the new ones are ready.

    Raises:
        StoreError: the export is not the one that was written.
        ServeError: its probe fails, the port is taken, or no replica becomes ready. Nothing is left running.
        CapacityError: the smallest number of replicas does not fit on this Ray.
    """
    service = Service(f"http://{HOST}:{port}/v1", model_name, port)
    running = _controller()
    if running is None:
        check_port(port)
    else:
        _check_port_of(running, port)
    _check_capacity(settings)
    if proof is not None and proof.done():
        proof.result()  # refused before anything starts
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    # Each of these starts processes or imports torch, for seconds on a core of its own: side by side.
    with ThreadPoolExecutor(2) as pool, _shut_down_on_error() if running is None else contextlib.nullcontext():
        proof = proof or pool.submit(prove, export, settings)
        starting = pool.submit(_start_serve, port)
        _wait_until(lambda: starting.done() or _controller() is not None, _ANSWER_LIMIT_S, "Serve does not start")
        proof.result()
        _deploy_proven(export, settings, service)
        starting.result()
        _wait_until(_is_running, _READY_LIMIT_S, "no replica is ready")
        question = _question(export, service)
        _wait_until(lambda: _answers(service, *question), _ANSWER_LIMIT_S, f"port {port} does not answer")
    return service


def ask(
    service: Service, prompts: Sequence[str], *, max_tokens: int, temperature: float = 0.0, seed: int = 0
) -> list[dict[str, str]]:
    """Complete each prompt through the official `openai` client: [{"prompt", "completion"}].

    Raises:
        ServeError: the service did not answer, or refused.
    """
    import openai

    completions = []
    with openai.OpenAI(base_url=service.url, api_key="none") as client:
        for prompt in prompts:
            try:
                answer = client.completions.create(
                    model=service.model,
                    prompt=prompt,
                    max_tokens=max_tokens,
                    temperature=temperature,
                    seed=seed,
                )
            except openai.OpenAIError as error:
                raise ServeError(f"the service at {service.url} did not complete {prompt!r}: {error}") from error
            completions.append({"prompt": prompt, "completion": answer.choices[0].text})
    return completions


def _check_port_of(running: Any, port: int) -> None:
    """Serve that runs on this Ray already, for an earlier service, goes on with the port it has."""
    listens = ray.get(running.get_http_config.remote()).port
    if listens != port:
        raise ServeError(
            f"Ray Serve listens on port {listens} of this Ray already, not on {port}", fix=f"use {listens}"
        )


def _deploy_proven(export: Path, settings: Serve, service: Service) -> None:
    # Not at the top: it imports torch, which the proof does in its thread while Serve starts.
    from orchestrator.serve.deployment.replica import build_application

    application = build_application(export, settings=settings, model_name=service.model)
    target = serve.RunTarget(target=application, name=APP_NAME, route_prefix="/")
    serve.run_many([target], wait_for_applications_running=False)


def _check_capacity(settings: Serve) -> None:
    """Serve would wait for ever for cores that there are not."""
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for name, each in (("CPU", settings.cpus), ("GPU", settings.gpus)):
        wanted = settings.replicas.min * each
        if wanted > have.get(name, 0.0):
            raise CapacityError(
                f"serve.replicas.min {settings.replicas.min} of {each} {name} each need {wanted}, "
                f"this Ray has {have.get(name, 0.0):g}",
                fix=f"lower serve.replicas.min or serve.{name.lower()}s",
            )


@contextlib.contextmanager
def _shut_down_on_error() -> Any:
    try:
        yield
    except BaseException:  # Ctrl-C too: a service that nobody has seen ready must not live on
        _shut_down_serve()
        raise


def _is_running() -> bool:
    """Whether the replicas that must be there are. Raises ServeError if they never will be."""
    status = serve.status().applications.get(APP_NAME)
    if status is None or status.status not in _FAILED:
        return status is not None and status.status == ApplicationStatus.RUNNING
    reasons = [d.message for d in status.deployments.values() if d.message] or [status.message]
    raise ServeError(f"no replica became ready: {_last_error(reasons[0])}")


def _last_error(message: str) -> str:
    """The error in Serve's message, without the traceback that leads to it."""
    flush_left = [line for line in message.splitlines() if line and not line[0].isspace()]
    return flush_left[-1] if flush_left else message


def _question(export: Path, service: Service) -> tuple[str, str]:
    """Path and body of a request that asks for little, and goes all the way: one token, or the probe's predictions."""
    if not is_custom(export):
        return "/v1/completions", json.dumps({"model": service.model, "prompt": "", "max_tokens": 1, "temperature": 0})
    from orchestrator.export.custom import probe_rows

    columns = {name: rows.tolist() for name, rows in probe_rows(export).items()}
    return "/v1/predict", json.dumps({"model": service.model, "columns": columns})


def _answers(service: Service, path: str, body: str) -> bool:
    """Whether it answers. Right after the deployment Serve's proxy does not know the route yet."""
    connection = http.client.HTTPConnection(HOST, service.port, timeout=_ANSWER_LIMIT_S)
    try:
        connection.request("POST", path, body)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _wait_until(done: Callable[[], bool], limit_s: float, complaint: str) -> None:
    deadline = time.monotonic() + limit_s
    while not done():
        if time.monotonic() > deadline:
            raise ServeError(f"{complaint} after {limit_s:g} s")
        time.sleep(_POLL_S)


def _start_serve(port: int) -> None:
    """Serve's controller, then its HTTP proxy: returns when that listens."""
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": HOST, "port": port},
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    )


def _controller() -> Any:
    """Serve's controller on this Ray; None where Serve does not run."""
    try:
        return ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return None


def _shut_down_serve() -> None:
    """As `serve.shutdown()`, but not from within a call that its actor does not survive: Ray prints that."""
    controller = _controller()
    if controller is not None:
        with contextlib.suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            ray.get(controller.graceful_shutdown.remote(wait=False), timeout=_STOP_LIMIT_S)
        _wait_until(lambda: _controller() is None, _STOP_LIMIT_S, "Ray Serve still runs")
