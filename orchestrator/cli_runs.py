"""`slipway runs` and `slipway checkpoints`: how far runs are, where their time went, what they have saved."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator.cli_common import DEFAULT_STORE, AsJson, RunName, StoreDir, print_document, store_at
from orchestrator.errors import JobError, StoreError

Tag = Annotated[str | None, typer.Option("--tag", metavar="TAG", help="Only runs that have this tag.")]
runs = typer.Typer(invoke_without_command=True)
checkpoints = typer.Typer(no_args_is_help=True, help="The checkpoints of a run, and whether each is whole.")


@runs.callback()
def runs_(context: typer.Context, store: StoreDir = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """List the runs of a store, or show where the time of one went.

    Example:  slipway runs --store /data/slipway
    """
    if context.invoked_subcommand is None:
        runs_list(store, as_json)
        return
    for name, option in (("store", "--store"), ("as_json", "--json")):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise JobError(f"{option} stands before the verb", fix=f"put it at the end: slipway runs VERB {option}")


@runs.command("list")
def runs_list(store: StoreDir = DEFAULT_STORE, as_json: AsJson = False, tag: Tag = None) -> None:
    """List the runs of a store: how far each is, its losses, its export, its tags.

    Example:  slipway runs list --store /data/slipway --tag baseline
    """
    from orchestrator.compare import read_tags
    from orchestrator.status import describe_run

    where = store_at(store)
    folders = sorted(p for p in where.runs.glob("*") if (p / "job.yaml").is_file())
    rows = [{**describe_run(folder, where), "tags": read_tags(folder)} for folder in folders]
    chosen = [row for row in rows if tag is None or tag in row["tags"]]
    print_document({"runs": chosen}, as_json, "print_runs")


@runs.command("compare")
def runs_compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Two runs or more.")],
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Show what runs came to beside each other, and every key of their jobs that differs.

    Example:  slipway runs compare quickstart-0123456789ab quickstart-ba9876543210
    """
    from orchestrator.compare import compare_runs

    if len(names) < 2:
        raise JobError("there is one run to compare", fix="name two or more: slipway runs compare RUN RUN")
    where = store_at(store)
    document = compare_runs([where.find_run(name) for name in names], where)
    if as_json:
        print_document(document, as_json, "print_row")
        return
    from orchestrator.cli_print_runs import print_comparison

    print_comparison(document)


@runs.command("tag")
def runs_tag(
    run: RunName,
    tags: Annotated[list[str], typer.Argument(metavar="[TAG...]", help="Words to find it by.")] = [],
    remove: Annotated[list[str], typer.Option("--remove", metavar="TAG", help="Take a tag away. Repeatable.")] = [],
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Tag a run, so that `runs list --tag` finds it; without a tag, show those that it has.

    Example:  slipway runs tag quickstart-0123456789ab baseline --remove draft
    """
    from orchestrator.compare import tag_run

    where = store_at(store)
    folder = where.find_run(run)
    now = tag_run(folder, add=tags, remove=remove)
    print_document({"run": where.relative(folder), "tags": now}, as_json, "print_row")


@runs.command("show")
def runs_show(run: RunName, store: StoreDir = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Show where the time of a run's workers went, what it cost, and why it was restarted.

    Example:  slipway runs show quickstart-0123456789ab
    """
    from orchestrator.status import account_for_run

    where = store_at(store)
    document = account_for_run(where.find_run(run), where)
    if as_json:
        print_document(document, as_json, "print_row")
        return
    from orchestrator.cli_print_runs import print_account

    print_account(document)


@checkpoints.command("list")
def checkpoints_list(run: RunName, store: StoreDir = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """List the checkpoints of a run, oldest first; only the sizes of their files are looked at.

    Example:  slipway checkpoints list quickstart-0123456789ab
    """
    print_document(_document(run, store_at(store), deep=False), as_json, "print_checkpoints")


@checkpoints.command("verify")
def checkpoints_verify(run: RunName, store: StoreDir = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Check every byte of a run's checkpoints against their manifests; exit 6 if one is damaged.

    Example:  slipway checkpoints verify quickstart-0123456789ab
    """
    document = _document(run, store_at(store), deep=True)
    print_document(document, as_json, "print_checkpoints")
    if not document["verified"]:
        raise typer.Exit(StoreError.exit_code)


def _document(asked: str, store: Any, *, deep: bool) -> dict[str, Any]:
    from orchestrator.checkpoint.inspect import checkpoint_rows
    from orchestrator.track.progress import say

    run = store.find_run(asked)
    rows = []
    for row in checkpoint_rows(run, deep=deep):
        rows.append(row)
        if deep:
            say(f"{row['checkpoint']}: {row['problem'] or 'whole'}")
    found: dict[str, Any] = {"run": store.relative(run), "checkpoints": rows}
    return {**found, "verified": all(row["problem"] is None for row in rows)} if deep else found
