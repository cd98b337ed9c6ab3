"""`slipway data`: verbs that look into prepared datasets."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli_common import (
    DEFAULT_STORE,
    AsJson,
    JobFile,
    Sets,
    StoreDir,
    print_document,
    store_at,
)

data = typer.Typer(help="Look into prepared datasets.", no_args_is_help=True, rich_markup_mode=None)
DatasetName = Annotated[str, typer.Argument(metavar="DATASET", help="A dataset: its folder, or its name in the store.")]


@data.command("list")
def data_list(store: StoreDir = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """List the datasets of a store.

    Example:  slipway data list
    """
    from orchestrator.data.show import list_datasets

    print_document({"datasets": list_datasets(store_at(store))}, as_json, "data.print_datasets")


@data.command("show")
def data_show(dataset: DatasetName, store: StoreDir = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Say what a dataset holds: sources, documents, tokens, what was removed and why, personal data, lengths.

    Example:  slipway data show quickstart-0123456789ab
    """
    from orchestrator.data.dataset import open_dataset
    from orchestrator.data.show import show

    where = store_at(store)
    print_document(show(open_dataset(where.find_dataset(dataset), verify=False), where), as_json, "data.print_dataset")


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

    found = open_dataset(store_at(store).find_dataset(dataset), verify=False)
    print_document({"samples": sample(found, split=split, count=count, seed=seed)}, as_json, "data.print_samples")


@data.command("verify")
def data_verify(dataset: DatasetName, store: StoreDir = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Check every byte of a dataset against its manifest, and that its shards add up.

    Example:  slipway data verify quickstart-0123456789ab
    """
    from orchestrator.data.show import verify

    where = store_at(store)
    path = where.find_dataset(dataset)
    print_document({"dataset": where.relative(path), "verified": True, **verify(path)}, as_json)


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

    print_document(find(store_at(store), asked), as_json, "data.print_found")


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

    rows = sample_order(load_job(job, sets), store=store_at(store), steps=steps, workers=workers)
    print_document(rows, as_json, "data.print_order")
