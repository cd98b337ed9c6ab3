"""The command line: verbs that parse, call and print. `--json`: one JSON document on stdout, all else on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from orchestrator.cli_chaos import register as register_chaos
from orchestrator.cli_common import (
    DEFAULT_STORE,
    Address,
    AsJson,
    JobFile,
    RunName,
    Sets,
    StoreDir,
    print_document,
    store_at,
    verb_of,
)
from orchestrator.cli_data import data
from orchestrator.cli_doctor import register as register_doctor
from orchestrator.cli_jobs import jobs, submit
from orchestrator.cli_keys import register as register_keys
from orchestrator.cli_kubernetes import register as register_kubernetes
from orchestrator.cli_models import register
from orchestrator.cli_runs import checkpoints, runs
from orchestrator.cli_serve import register as register_serve
from orchestrator.errors import Interrupted, JobError, SlipwayError, Stopped, storage_error
from orchestrator.plan import Stage

if TYPE_CHECKING:
    from orchestrator.run import Outcome
    from orchestrator.serve.deployment.deploy import Service

app = typer.Typer(
    name="slipway",
    help="One job file takes text to a served language model on a Ray cluster.\n\n"
    "Start with:  slipway plan jobs/quickstart.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data, name="data")
app.add_typer(jobs, name="jobs")
app.command()(submit)
app.add_typer(runs, name="runs")
app.add_typer(checkpoints, name="checkpoints")
register(app)
register_chaos(app)
register_doctor(app)
register_keys(app)
register_kubernetes(app)
register_serve(app)

Until = Annotated[Stage, typer.Option("--until", help="Stop after this stage.")]


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
    gpu_memory: Annotated[
        str | None, typer.Option("--gpu-memory", help="Declare a cluster: memory of one GPU, such as 80GB.")
    ] = None,
    gpu_name: Annotated[
        str | None, typer.Option("--gpu-name", help="Declare a cluster: its GPUs, such as H100; says how fast.")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Declare a cluster: memory of each node, such as 512GB.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Declare a cluster: its nodes.")] = 1,
    take_probe: Annotated[bool, typer.Option("--probe", help="Make a few real steps on this machine first.")] = False,
    probe_steps: Annotated[int, typer.Option(min=1, help="Of --probe: the fewest steps to time.")] = 8,
) -> None:
    """Say what a job would do: workers, memory, time, price, and which stages are done. Without --probe starts nothing.

    Example:  slipway plan jobs/gpt-124m.yaml --gpus 8 --gpu-memory 80GB
    """
    from orchestrator.cluster.view import declared_view, local_view
    from orchestrator.job_file import load_job
    from orchestrator.plan import make_plan, parse_bytes
    from orchestrator.status import given_vocabulary, standing

    spec = load_job(job, sets)
    here = local_view()
    declared = nodes > 1 or any(given is not None for given in (cpus, gpus, gpu_memory, gpu_name, memory))
    view = here
    if declared:
        view = declared_view(
            nodes=nodes,
            cpus=cpus if cpus or gpus else here.nodes[0].cpus,
            gpus=gpus or 0.0,
            gpu_memory_bytes=parse_bytes(gpu_memory) if gpu_memory else None,
            memory_bytes=parse_bytes(memory) if memory else None,
            gpu_name=gpu_name,
        )
    measured = None
    if take_probe and spec.train:
        from orchestrator.train.probing.probe import probe

        measured = probe(spec, view, store=store_at(store), steps=probe_steps)
    made = make_plan(spec, view, vocab_size=given_vocabulary(spec), probe=measured) if spec.train else None
    now = standing(spec, store_at(store))
    document = {
        **(made.summary() if made else {}),
        "plan": made.model_dump(mode="json") if made else None,
        "stages": {s.stage: s.model_dump(mode="json", exclude={"stage"}) for s in now.stages},
        "warnings": [*(made.warnings if made else []), *now.warnings],
    }
    print_document(document, as_json, "print_plan")


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
        announce_service(service, outcome, spec, store=store, stays=stays, lives_on=address is not None)
        if stays:
            print_document(as_document(outcome), as_json, "print_outcome")
            shown = True
            _wait_for_signal()

    with Session(address) as session:
        outcome = run_job(spec, store=store_at(store), session=session, until=until, while_serving=while_serving)
    if not shown:
        print_document(as_document(outcome), as_json, "print_outcome")


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
        document = prepare_only(load_job(job, sets), store=store_at(store), session=session)
    print_document(document, as_json, "data.print_prepared")


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
def export(
    run_name: RunName,
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
    gguf: Annotated[bool, typer.Option("--gguf", help="Write a GGUF file beside it: decoders, for llama.cpp.")] = False,
) -> None:
    """Export the best or newest checkpoint of a run, finished or not, as a Hugging Face folder that carries its proof.

    Example:  slipway export quickstart-0123456789ab --gguf
    """
    from orchestrator.export.stage import export_run, write_gguf_beside

    where = store_at(store)
    folder = where.find_run(run_name)
    with contextlib.ExitStack() as stack:
        made = export_run(folder, at_end=stack.callback)
        file = write_gguf_beside(made) if gguf else None
    document = {
        "run": where.relative(folder),
        "export": where.relative(made.path),
        "stage": "reused" if made.reused else "done",
        **({"gguf": where.relative(file)} if file else {}),
    }
    print_document(document, as_json)


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
        words = error.format_message().replace(": Value error, ", ": ")
        _fail(JobError(words, fix=f"slipway {verb_of(app, sys.argv[1:])}--help shows how"), as_json)
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
