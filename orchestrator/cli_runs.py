"""`slipway runs` and `slipway checkpoints`: how far runs are, where their time went, what they have saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli_common import DEFAULT_STORE, AsJson, RunName, StoreDir, print_document, store_at
from orchestrator.errors import JobError, SlipwayError, StoreError

if TYPE_CHECKING:
    from orchestrator.catalogue.look import Catalogue
    from orchestrator.store import Store

State = Annotated[str | None, typer.Option("--state", help="Only prepared, started, trained, exported or unreadable.")]
Tag = Annotated[str | None, typer.Option("--tag", metavar="TAG", help="Only runs that have this tag.")]
JobName = Annotated[str | None, typer.Option("--job", metavar="NAME", help="Only runs of jobs of this name.")]
Since = Annotated[
    str | None, typer.Option("--since", metavar="WHEN", help="Only runs at work since then: 12h, 7d, or a date.")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="So many at most, those last at work first.")]
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
def runs_list(
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
    state: State = None,
    tag: Tag = None,
    job: JobName = None,
    since: Since = None,
    limit: Limit = None,
) -> None:
    """List the runs of a store, the last at work first: how far each is, its losses, its tags, where it is served.

    Example:  slipway runs list --store /data/slipway --state trained --since 7d --tag baseline
    """
    from datetime import datetime

    from orchestrator.catalogue.choose import Wanted, choose, moment

    at = None if since is None else moment(since, now=datetime.now().astimezone())
    chosen = choose(_look(store_at(store)).runs(), Wanted(state=state, tag=tag, job=job, since=at, limit=limit))
    document = {"runs": chosen}
    print_document(document, as_json, "runs.print_runs")


def _look(store: Store) -> Catalogue:
    """What the store holds, with the services of this machine."""
    from orchestrator.catalogue.look import look
    from orchestrator.serve.host import records
    from orchestrator.track.events import iso_time

    try:
        living = records.living()
    except (SlipwayError, OSError):  # `serve --status` says what is wrong with them
        living = []
    found = [{**vars(one), "export": store.relative(Path(one.export))} for one in living]
    services = [{**one, "started_at": iso_time(one["started_at"])} for one in found if one["export"][0] != "/"]
    return look(store, services=services)


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
    print_document(document, as_json, "runs.print_comparison")


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
    print_document({"run": where.relative(folder), "tags": now}, as_json)


@runs.command("show")
def runs_show(run: RunName, store: StoreDir = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Show where the time of a run's workers went, what it cost, why it was restarted, and who has started it.

    Example:  slipway runs show quickstart-0123456789ab
    """
    from orchestrator.status import account_for_run

    where = store_at(store)
    folder = where.find_run(run)
    document = {**account_for_run(folder, where), **_look(where).about(where.relative(folder))}
    print_document(document, as_json, "runs.print_account")


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
