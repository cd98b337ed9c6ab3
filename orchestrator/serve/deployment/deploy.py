"""Deploy an export on the Ray that this process has joined, and wait until it answers."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from orchestrator.cluster import template
from orchestrator.errors import ServeError
from orchestrator.job import Serve
from orchestrator.serve.deployment import fleet, gateway, table
from orchestrator.serve.deployment.applications import IMPORTS
from orchestrator.serve.deployment.table import Entry
from orchestrator.serve.host.address import asked_at
from orchestrator.serve.host.processes import HOST, check_port, port_is_free

_START_LIMIT_S = 30.0
_ANSWER_LIMIT_S = 30.0
_STOP_LIMIT_S = 20.0


@dataclass(frozen=True)
class Service:
    """A deployed model that answers."""

    url: str
    """Base of OpenAI's API: http://127.0.0.1:PORT/v1."""
    model: str
    port: int
    version: str = "v1"
    host: str = HOST
    """The address that it listens on."""

    def stop(self) -> None:
        """End it, and Serve on this Ray with it; returns when the port is free again."""
        fleet.shut_down()
        fleet.wait_until(lambda: port_is_free(self.port, self.host), _STOP_LIMIT_S, f"port {self.port} is still in use")


def deploy(
    export: Path,
    *,
    settings: Serve,
    model_name: str,
    port: int,
    version: str | None = None,
    proof: Future[None] | None = None,
    host: str = HOST,
) -> Service:
    """Serve an export on this Ray; returns when it is ready and warm: it has answered a request through HTTP.

    `proof` is a call of `fleet.prove` that is under way already; None has it made here, while Serve starts. A version
    of the same model that runs on this Ray already is replaced: its replicas go when the new ones are ready, and have
    finished what they had begun. Other models stay. `version` is the next one where None is given.

    Raises:
        StoreError: the export is not the one that was written.
        ServeError: its probe fails, the port is taken, or no replica becomes ready. Nothing is left running.
        CapacityError: the smallest number of replicas does not fit on this Ray.
    """
    running = fleet.controller()
    if running is None:
        check_port(port, host)
    else:
        _check_port_of(running, port)
    fleet.check_capacity(settings)
    if proof is not None and proof.done():
        proof.result()  # refused before anything starts
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    template.begin(IMPORTS)
    # Each of these starts processes or imports torch, for seconds on a core of its own: side by side.
    with ThreadPoolExecutor(2) as pool, _shut_down_on_error() if running is None else contextlib.nullcontext():
        proof = proof or pool.submit(fleet.prove, export, settings)
        starting = pool.submit(fleet.start_serve, port, host)
        fleet.wait_until(
            lambda: starting.done() or fleet.controller() is not None, _START_LIMIT_S, "Serve does not start"
        )
        before = gateway.stored_table() if running is not None else ()
        if not before:
            gateway.store_table(())
            fleet.start_gateway(settings, host=host, port=port)  # it is there when the proof is
        proof.result()
        entry = fleet.entry_of(export, settings, model=model_name, version=version or _next(before, model_name))
        service = Service(f"http://{asked_at(host)}:{port}/v1", model_name, port, entry.version, host)
        _replace(before, entry, settings)
        starting.result()
        question = _question(entry)
        fleet.wait_until(lambda: _answers(service, *question), _ANSWER_LIMIT_S, f"port {port} does not answer")
    for old in table.of_model(before, model_name):
        fleet.remove(old)
    return service


def ask(
    service: Service,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    api_key: str | None = None,
) -> list[dict[str, str]]:
    """Complete each prompt through the official `openai` client: [{"prompt", "completion"}].

    Raises:
        ServeError: the service did not answer, or refused.
    """
    import openai

    completions = []
    with openai.OpenAI(base_url=service.url, api_key=api_key or "none") as client:
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


def _next(before: table.Table, model: str) -> str:
    return table.next_version(entry.version for entry in table.of_model(before, model))


def _replace(before: table.Table, entry: Entry, settings: Serve) -> None:
    """Start a version, and have it answer once it can."""
    fleet.start(entry, settings)
    try:
        fleet.wait_running(entry.app)
        fleet.wait_running(table.GATEWAY)
    except BaseException:
        fleet.end(entry.app)
        raise
    fleet.route(table.alone(before, entry))


@contextlib.contextmanager
def _shut_down_on_error() -> Iterator[None]:
    try:
        yield
    except BaseException:  # Ctrl-C too: a service that nobody has seen ready must not live on
        fleet.shut_down()
        raise


def _question(entry: Entry) -> tuple[str, str]:
    """Path and body of a request that asks for little, and goes all the way: one token, or the probe's predictions."""
    if entry.facts.kind == "decoder":
        return "/v1/completions", json.dumps({"model": entry.model, "prompt": "", "max_tokens": 1, "temperature": 0})
    if entry.facts.kind == "encoder":
        path = "/v1/classify" if entry.facts.labels else "/v1/embeddings"
        return path, json.dumps({"model": entry.model, "input": "a"})
    from orchestrator.export.custom import probe_rows

    columns = {name: rows.tolist() for name, rows in probe_rows(Path(entry.export)).items()}
    return "/v1/predict", json.dumps({"model": entry.model, "columns": columns})


def _answers(service: Service, path: str, body: str) -> bool:
    """Whether it answers, or asks for a key."""
    connection = http.client.HTTPConnection(asked_at(service.host), service.port, timeout=_ANSWER_LIMIT_S)
    try:
        connection.request("POST", path, body)
        return connection.getresponse().status in (http.client.OK, http.client.UNAUTHORIZED)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
