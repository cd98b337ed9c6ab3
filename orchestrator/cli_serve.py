"""`slipway serve` and `slipway rollback`: start a service, bring versions to one that runs, list and stop them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from orchestrator.cli_common import DEFAULT_STORE, AsJson, StoreDir, print_document, store_at
from orchestrator.errors import JobError, ServeError
from orchestrator.job import Canary, Serve
from orchestrator.job_section import span_s

Port = Annotated[int | None, typer.Option(min=1, max=65535, help="The job's by default.")]
Host = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Where it listens; 127.0.0.1 by default. Others need a key.")
]
Share = Annotated[
    str | None, typer.Option(metavar="5%", help="Of a rollout: the share of requests that it gets first.")
]
Span = Annotated[
    str | None, typer.Option("--for", metavar="2m", help="How long a canary or shadow is watched; 2m by default.")
]
Shadow = Annotated[
    bool, typer.Option("--shadow", help="Of a rollout: it gets copies of 5 %, or of --canary, and nobody its answers.")
]
Engine = Annotated[
    str | None, typer.Option(metavar="NAME", help="slipway, or vllm where it is installed; the job's by default.")
]
Dashboard = Annotated[str | None, typer.Option(metavar="URL", help="Of --status and --stop: a cluster's dashboard.")]


def serve(
    run_name: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A run, its name in the store, or an export's folder.")
    ] = None,
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
    port: Port = None,
    host: Host = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when the service is ready; it lives on.")] = False,
    canary: Share = None,
    for_: Span = None,
    shadow: Shadow = False,
    engine: Engine = None,
    follow: Annotated[bool, typer.Option("--follow", help="Bring newer checkpoints of the run as they come.")] = False,
    status: Annotated[bool, typer.Option("--status", help="List the detached services of this machine.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the detached services, or the one on --port.")] = False,
    address: Dashboard = None,
) -> None:
    """Serve a run's newest proven export through an OpenAI-compatible API, or bring it to the service on that port.

    Example:  slipway serve quickstart-0123456789ab --port 8123 --detach
    """
    from orchestrator.serve.host import control

    if status or stop:
        print_document({"services": _listed(port, address, stop=stop and not status)}, as_json, "print_services")
        return
    if address is not None:
        raise JobError(
            "serve --address shows or stops a cluster's service, and starts none",
            fix="add --status or --stop; `slipway submit JOB --address URL` brings a model there",
        )
    if run_name is None:
        raise JobError("serve needs a RUN", fix="`slipway runs` lists them; --status and --stop need none")
    tried = _canary(canary, for_, shadow=shadow)
    from orchestrator.serve.host.target import find_export, followed_run

    where = store_at(store)
    run = followed_run(where, run_name) if follow else None
    export, settings, name = find_export(where, run_name)
    settings = _with_engine(settings, engine)
    port = port or settings.port
    if control.is_listening(port):
        if host is not None:
            raise JobError(
                f"a service of ours runs on port {port}, and listens where it was told when it was started",
                fix="leave --host out to bring this run to it, or stop it first",
            )
        _bring(export, settings, name, port=port, tried=tried, follow=run, as_json=as_json)
        return
    if tried is not None:
        raise JobError(
            f"--canary and --shadow try a version beside one that is served, and nothing of ours runs on port {port}",
            fix="leave them out to start a service, or say with --port where it runs",
        )
    _start(export, settings, name, port=port, host=host, follow=run, detach=detach, as_json=as_json)


def _canary(share: str | None, for_: str | None, *, shadow: bool) -> Canary | None:
    """What the options say of how a version is tried out; None: nothing."""
    if share is None and not shadow:
        if for_ is not None:
            raise JobError("--for says how long a version is watched, and none is", fix="add --canary 5% or --shadow")
        return None
    given: dict[str, Any] = {} if share is None else {"share": parse_share(share)}
    return Canary(**given, **({} if for_ is None else {"for": parse_span(for_)}), shadow=shadow)


def _with_engine(settings: Serve, engine: str | None) -> Serve:
    """The job's settings with another engine, which must be there; None: with the job's."""
    from orchestrator.serve.engine.installed import require_vllm

    try:
        settings = Serve.model_validate({**settings.model_dump(), "engine": engine or settings.engine})
    except ValidationError as error:
        fix = "slipway, or vllm without serve.int8"
        raise JobError(f"--engine {engine}: {error.errors()[0]['msg']}", fix=fix) from None
    if settings.engine == "vllm":
        require_vllm()
    return settings


def _bring(
    export: Path,
    settings: Serve,
    name: str,
    *,
    port: int,
    tried: Canary | None,
    follow: Path | None,
    as_json: bool,
) -> None:
    """A version for the service that runs; `tried`: how it is tried out, if not as its job says."""
    request = {
        "export": str(export),
        "model": name,
        "settings": settings.model_dump(mode="json"),
        "canary": None if tried is None else tried.model_dump(mode="json"),
        "follow": None if follow is None else str(follow),
    }
    _command(port, {"command": "rollout", **request}, as_json)


def _listed(port: int | None, address: str | None, *, stop: bool) -> list[dict[str, Any]]:
    """The services of this machine or of a cluster, ended where `stop`."""
    if address is not None:
        from orchestrator.serve.host import on_cluster

        return on_cluster.stop(address, port) if stop else on_cluster.status(address)
    from orchestrator.serve.host import detached

    return detached.stop(port) if stop else detached.status()


def _start(
    export: Path,
    settings: Serve,
    name: str,
    *,
    port: int,
    host: str | None,
    follow: Path | None,
    detach: bool,
    as_json: bool,
) -> None:
    """A service of its own."""
    from orchestrator.serve.host import detached
    from orchestrator.serve.host.processes import HOST

    host = host or HOST
    if detach:
        answer = detached.start_detached(
            export, settings=settings, model_name=name, port=port, follow=follow, host=host
        )
        print_document({"url": answer["url"], "model": answer["model"]}, as_json, "say_url")
        return
    from orchestrator.serve.host.foreground import serve_foreground

    serve_foreground(
        export,
        settings=settings,
        model_name=name,
        port=port,
        follow=follow,
        host=host,
        ready=lambda service: print_document({"url": service.url, "model": service.model}, as_json, "say_url"),
    )


def rollback(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's name, as clients ask for it.")],
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of the service; not needed where one alone has the model.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Have a service go back to the version of a model that it served before.

    Example:  slipway rollback quickstart
    """
    _command(port or _port_of(model), {"command": "rollback", "model": model}, as_json)


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(serve)
    app.command()(rollback)


def _command(port: int, request: dict[str, Any], as_json: bool) -> None:
    from orchestrator.serve.host import control
    from orchestrator.track.progress import say

    print_document(control.call(port, request, say), as_json, "say_rollout")


def _port_of(model: str) -> int:
    """The one service of ours that has this model."""
    from orchestrator.serve.host import control, records

    having = []
    for port in filter(control.is_listening, records.commanded()):
        if any(each["model"] == model for each in control.call(port, {"command": "status"})["versions"]):
            having.append(port)
    if len(having) == 1:
        return having[0]
    if having:
        ports = ", ".join(map(str, having))
        raise JobError(f"several services have {model}: on ports {ports}", fix="say which with --port")
    raise ServeError(f"no service of ours has a model {model}", fix="`slipway serve --status` lists them")


def parse_share(text: str) -> float:
    """`5%` or `0.05` as a share above 0, to 1.

    Raises:
        JobError: it is none.
    """
    try:
        share = float(text.strip().removesuffix("%")) / (100.0 if text.strip().endswith("%") else 1.0)
    except ValueError:
        share = 0.0
    if not 0.0 < share <= 1.0:
        raise JobError(f"--canary {text} is no share of the requests", fix="such as 5% or 0.05")
    return share


def parse_span(text: str) -> float:
    """`2m`, `90s`, `500ms` or `1h` in seconds.

    Raises:
        JobError: it is none.
    """
    try:
        return float(span_s(text))
    except ValueError:
        raise JobError(f"--for {text} is no span of time", fix="such as 90s, 2m or 1h") from None
