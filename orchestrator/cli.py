"""The command line: verbs that parse, call and print. `--json`: one JSON document on stdout, all else on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from orchestrator.errors import Interrupted, JobError, SlipwayError, Stopped, storage_error
from orchestrator.plan import Stage

if TYPE_CHECKING:
    from orchestrator.run import Outcome
    from orchestrator.serve.deploy import Service
    from orchestrator.store import Store

app = typer.Typer(
    name="slipway",
    help="One job file takes text to a served language model on a Ray cluster.\n\n"
    "Start with:  slipway plan jobs/quickstart.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="A job file, such as jobs/quickstart.yaml.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run: its folder, or its name in the store.")]
Sets = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key; any YAML value. Repeatable.")
]
StoreDir = Annotated[
    Path,
    typer.Option("--store", envvar="SLIPWAY_STORE", metavar="DIR", help="Where datasets, runs and exports live."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; progress goes to stderr.")]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", help="Join this Ray cluster (or `auto`) instead of starting a Ray."),
]
Until = Annotated[Stage, typer.Option("--until", help="Stop after this stage.")]
DEFAULT_STORE = Path(".slipway")


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """One job file takes text to a served language model on a Ray cluster."""
    if debug:
        os.environ["SLIPWAY_DEBUG"] = "1"


@app.command()
def plan(
    job: JobFile,
    sets: Sets = [],
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
    gpus: Annotated[float | None, typer.Option(min=0, help="Declare a cluster: GPUs of each node.")] = None,
    cpus: Annotated[float | None, typer.Option(min=1, help="Declare a cluster: CPUs of each node.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Declare a cluster: its nodes.")] = 1,
) -> None:
    """Say what a job would do: workers, steps, size, and which stages are done. Starts nothing.

    Example:  slipway plan jobs/quickstart.yaml --cpus 16 --nodes 2
    """
    from orchestrator.cluster.view import declared_view, local_view
    from orchestrator.job_file import load_job
    from orchestrator.plan import make_plan
    from orchestrator.status import given_vocabulary, standing

    spec = load_job(job, sets)
    here = local_view()
    declared = cpus is not None or gpus is not None or nodes > 1
    view = declared_view(nodes=nodes, cpus=cpus or here.nodes[0].cpus, gpus=gpus or 0.0) if declared else here
    made = make_plan(spec, view, vocab_size=given_vocabulary(spec)) if spec.train else None
    now = standing(spec, _store(store))
    document = {
        "plan": made.model_dump(mode="json") if made else None,
        "stages": {s.stage: s.model_dump(mode="json", exclude={"stage"}) for s in now.stages},
        "warnings": [*(made.warnings if made else []), *now.warnings],
    }
    _print(document, as_json, "print_plan")


@app.command()
def run(
    job: JobFile,
    sets: Sets = [],
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
    until: Until = "serve",
    leave: Annotated[bool, typer.Option("--exit", help="Check the service, then stop it and end.")] = False,
    address: Address = None,
) -> None:
    """Take a job from text to a served model. The same command again resumes, and skips what is finished.

    Example:  slipway run jobs/quickstart.yaml --set train.steps=20 --until export
    """
    from orchestrator.cli_print import announce_service
    from orchestrator.cluster.connect import Session
    from orchestrator.job_file import load_job
    from orchestrator.run import as_json as as_document
    from orchestrator.run import run as run_job

    spec = load_job(job, sets)
    shown = False

    def while_serving(service: Service, outcome: Outcome) -> None:
        nonlocal shown
        stays = not leave and address is None
        announce_service(service, outcome, spec, store=store, stays=stays)
        if stays:
            _print(as_document(outcome), as_json, "print_outcome")
            shown = True
            _wait_for_signal()

    with Session(address) as session:
        outcome = run_job(spec, store=_store(store), session=session, until=until, while_serving=while_serving)
    if not shown:
        _print(as_document(outcome), as_json, "print_outcome")


@app.command()
def prepare(
    job: JobFile,
    sets: Sets = [],
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
    address: Address = None,
) -> None:
    """Make the dataset of a job: clean, without duplicates and personal data, tokenised, as Arrow shards.

    Example:  slipway prepare jobs/quickstart.yaml --set data.clean.quality=gopher
    """
    from orchestrator.cluster.connect import Session
    from orchestrator.job_file import load_job
    from orchestrator.run import prepare_only

    with Session(address) as session:
        document = prepare_only(load_job(job, sets), store=_store(store), session=session)
    _print(document, as_json, "print_prepared")


@app.command()
def train(
    job: JobFile,
    sets: Sets = [],
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
    address: Address = None,
) -> None:
    """Train a job's model to its last step; prepares its dataset first if that is not done.

    Example:  slipway train jobs/quickstart.yaml --set train.zero.stage=3
    """
    run(job, sets, store, as_json, "train", False, address)


@app.command()
def export(run_name: RunName, store: StoreDir = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Export the newest checkpoint of a run, finished or not, as a Hugging Face folder that carries its proof.

    Example:  slipway export quickstart-0123456789ab
    """
    from orchestrator.export.stage import export_run

    where = _store(store)
    folder = where.find_run(run_name)
    with contextlib.ExitStack() as stack:
        made = export_run(folder, at_end=stack.callback)
    document = {
        "run": where.relative(folder),
        "export": where.relative(made.path),
        "stage": "reused" if made.reused else "done",
    }
    _print(document, as_json, "print_row")


@app.command()
def serve(
    run_name: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A run, its name in the store, or an export's folder.")
    ] = None,
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port on 127.0.0.1; the job's by default.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when the service is ready; it lives on.")] = False,
    status: Annotated[bool, typer.Option("--status", help="List the detached services of this machine.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the detached services, or the one on --port.")] = False,
) -> None:
    """Serve a run's newest proven export through an OpenAI-compatible API.

    Example:  slipway serve quickstart-0123456789ab --port 8123 --detach
    """
    from orchestrator.serve import detached

    if status or stop:
        rows = detached.status() if status else detached.stop(port)
        _print({"services": rows}, as_json, "print_services")
        return
    if run_name is None:
        raise JobError("serve needs a RUN", fix="`slipway runs` lists them; --status and --stop need none")
    from orchestrator.serve.target import find_export

    export_folder, settings, name = find_export(_store(store), run_name)
    port = port or settings.port
    if detach:
        answer = detached.start_detached(export_folder, settings=settings, model_name=name, port=port)
        _print({"url": answer["url"], "model": answer["model"]}, as_json, "say_url")
        return
    from orchestrator.serve.foreground import serve_foreground

    serve_foreground(
        export_folder,
        settings=settings,
        model_name=name,
        port=port,
        ready=lambda service: _print({"url": service.url, "model": service.model}, as_json, "say_url"),
    )


@app.command()
def runs(store: StoreDir = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """List the runs of a store: how far each is, its losses, its export.

    Example:  slipway runs --store /data/slipway
    """
    from orchestrator.status import describe_run

    where = _store(store)
    folders = sorted(p for p in where.runs.glob("*") if (p / "job.yaml").is_file())
    _print({"runs": [describe_run(folder, where) for folder in folders]}, as_json, "print_runs")


data = typer.Typer(help="Look into prepared datasets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data, name="data")
DatasetName = Annotated[str, typer.Argument(metavar="DATASET", help="A dataset: its folder, or its name in the store.")]


@data.command("list")
def data_list(store: StoreDir = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """List the datasets of a store.

    Example:  slipway data list
    """
    from orchestrator.data.show import list_datasets

    _print({"datasets": list_datasets(_store(store))}, as_json, "print_datasets")


@data.command("show")
def data_show(dataset: DatasetName, store: StoreDir = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Say what a dataset holds: sources, documents, tokens, what was removed and why, personal data, lengths.

    Example:  slipway data show quickstart-0123456789ab
    """
    from orchestrator.data.dataset import open_dataset
    from orchestrator.data.show import show

    where = _store(store)
    _print(show(open_dataset(where.find_dataset(dataset), verify=False), where), as_json, "print_dataset")


@data.command("sample")
def data_sample(
    dataset: DatasetName,
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 5,
    seed: Annotated[int, typer.Option(help="Another seed, other documents.")] = 0,
) -> None:
    """Show some documents of a dataset, as training sees them.

    Example:  slipway data sample quickstart-0123456789ab --split validation --count 2
    """
    from orchestrator.data.dataset import open_dataset
    from orchestrator.data.show import sample

    found = open_dataset(_store(store).find_dataset(dataset), verify=False)
    _print({"samples": sample(found, split=split, count=count, seed=seed)}, as_json, "print_samples")


@data.command("verify")
def data_verify(dataset: DatasetName, store: StoreDir = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Check every byte of a dataset against its manifest, and that its shards add up.

    Example:  slipway data verify quickstart-0123456789ab
    """
    from orchestrator.data.show import verify

    where = _store(store)
    path = where.find_dataset(dataset)
    _print({"dataset": where.relative(path), "verified": True, **verify(path)}, as_json, "print_row")


@data.command("find")
def data_find(
    asked: Annotated[str, typer.Argument(metavar="TEXT|ID", help="A document, a piece of one, or a document's id.")],
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Find a document: which datasets, shards and positions hold it, and which runs trained on it.

    Example:  slipway data find "the whole text of a document" --json
    """
    from orchestrator.data.find import find

    _print(find(_store(store), asked), as_json, "print_found")


@data.command("order")
def data_order(
    job: JobFile,
    steps: Annotated[str, typer.Option(metavar="FIRST:LAST", help="Steps, counted from 0; LAST is not among them.")],
    workers: Annotated[int, typer.Option(min=1, help="Training processes.")] = 1,
    sets: Sets = [],
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Say which samples each worker reads in which step. The dataset must be prepared.

    Example:  slipway data order jobs/quickstart.yaml --steps 0:10 --workers 3 --json
    """
    from orchestrator.job_file import load_job
    from orchestrator.run import sample_order

    rows = sample_order(load_job(job, sets), store=_store(store), steps=steps, workers=workers)
    _print_list(rows, as_json)


@app.command()
def submit(
    job: JobFile,
    address: Annotated[str, typer.Option(metavar="URL", help="The cluster's dashboard, such as https://head:8265.")],
    sets: Sets = [],
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
    until: Until = "serve",
) -> None:
    """Run a job on a cluster that is up, through Ray's Jobs API. Logs follow; Ctrl-C detaches, the job goes on.

    Example:  slipway submit jobs/quickstart.yaml --address http://127.0.0.1:8265 --store /shared/slipway
    """
    from orchestrator.cluster.submit import submit_and_follow
    from orchestrator.job_file import load_job

    ended = submit_and_follow(load_job(job, sets), address=address, store=store.absolute(), until=until)
    _print(ended.document, as_json, "print_row")
    sys.exit(ended.exit_code)


@app.command()
def doctor(store: StoreDir = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Check this machine: versions, compiler, Ray, token, ports, disk, W&B. A line each; what is wrong has its fix.

    Example:  slipway doctor
    """
    from orchestrator.cluster.doctor import examine

    checks = [vars(check) for check in examine(_store(store).root)]
    healthy = all(check["ok"] for check in checks)
    _print({"healthy": healthy, "checks": checks}, as_json, "print_checks")
    if not healthy:
        sys.exit(1)


def main() -> NoReturn:
    """Run a verb; a user's mistake prints what was asked, what was found, what to do, and never a traceback."""
    as_json = "--json" in sys.argv
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _on_signal)
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        code = _INTERRUPTED
    except typer.TyperException as error:
        _fail(JobError(error.format_message(), fix=f"slipway {_verb()}--help shows how"), as_json)
    except SlipwayError as error:
        _fail(error, as_json)
    except OSError as error:
        _fail(storage_error(error, doing=f"running slipway {_verb()}".strip()), as_json)
    except KeyboardInterrupt:
        code = _INTERRUPTED
    if code == _INTERRUPTED:  # typer has made this of the interrupt, or we above
        came = _signals[0] if _signals else signal.SIGINT
        _fail(Stopped("nothing is half-written", fix="the same command goes on", signum=came), as_json)
    sys.exit(code if isinstance(code, int) else 0)


_INTERRUPTED = 130
_signals: list[int] = []


def _on_signal(signum: int, _frame: object) -> None:
    _signals.append(signum)
    raise Interrupted(signum)


def _fail(error: SlipwayError, as_json: bool) -> NoReturn:
    if os.environ.get("SLIPWAY_DEBUG"):
        traceback.print_exc()
    if as_json:
        sys.stdout.write(json.dumps(error.as_json(), ensure_ascii=False) + "\n")
    sys.stderr.write(f"{'stopped' if isinstance(error, Stopped) else 'error'}: {error}\n")
    sys.exit(error.exit_code)


def _verb() -> str:
    return next((word + " " for word in sys.argv[1:] if not word.startswith("-")), "")


def _store(root: Path) -> Store:
    from orchestrator.store import Store

    return Store(root.absolute())


def _print(document: dict[str, Any], as_json: bool, printer: str) -> None:
    if as_json:
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
        sys.stdout.flush()
        return
    from orchestrator import cli_print, cli_print_data  # tables are for people, and cost a tenth of a second

    getattr(cli_print_data if hasattr(cli_print_data, printer) else cli_print, printer)(document)


def _print_list(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(rows, ensure_ascii=False) + "\n")
        return
    from orchestrator.cli_print_data import print_order

    print_order(rows)


def _wait_for_signal() -> None:
    """Serve until Ctrl-C, which ends well; SIGTERM ends as such."""
    try:
        while True:
            signal.pause()
    except Interrupted as interrupt:
        if interrupt.signum != signal.SIGINT:
            raise


if __name__ == "__main__":
    main()
