"""`slipway import`, `evaluate` and `lineage`: weights from elsewhere, how good weights are, where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli_common import DEFAULT_STORE, AsJson, Sets, StoreDir, print_document, store_at
from orchestrator.errors import JobError

Folder = Annotated[
    Path, typer.Argument(metavar="HF_FOLDER", help="A folder as transformers' save_pretrained makes it.")
]
RunOrExport = Annotated[
    str, typer.Argument(metavar="RUN|EXPORT", help="A run, its name in the store, an export's folder, or an import.")
]
DataOf = Annotated[
    Path | None,
    typer.Option("--job", metavar="JOB", help="Take this job's dataset; an import has none of its own."),
]


def import_(folder: Folder, store: StoreDir = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Make a proven export of a Hugging Face folder: Llama, GPT-2 or BERT, safetensors only.

    Example:  slipway import path/to/gpt2
    """
    from orchestrator.export.importing import import_folder

    where = store_at(store)
    made = import_folder(folder, where)
    print_document({"export": where.relative(made)}, as_json)


def evaluate(
    target: RunOrExport,
    split: Annotated[str, typer.Option("--split", help="train, validation or test.")] = "validation",
    job: DataOf = None,
    sets: Sets = [],
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Score a run's checkpoint or an export on a split: loss, the objective's metrics, tables, generated texts.

    Example:  slipway evaluate quickstart-0123456789ab --split test
    """
    from orchestrator.evaluation.evaluate import evaluate_target
    from orchestrator.job_file import load_job

    if sets and job is None:
        raise JobError("--set changes the job of --job, and there is none", fix="name one, or leave --set out")
    given = None if job is None else load_job(job, sets)
    document = evaluate_target(store_at(store), target, split=split, job=given).as_json()
    print_document(document, as_json, "evaluate.print_evaluation")


def lineage(export: RunOrExport, store: StoreDir = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Show where an export comes from: checkpoint, run, job, code, dataset and every raw source with its SHA-256.

    Example:  slipway lineage quickstart-0123456789ab
    """
    from orchestrator.lineage import lineage_of

    document = lineage_of(store_at(store), export)
    print_document(document, as_json, "runs.print_lineage")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("lineage")(lineage)
    app.command("import")(import_)
    app.command("evaluate")(evaluate)
