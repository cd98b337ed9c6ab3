"""`slipway checkpoints`: what a run has saved."""

from __future__ import annotations

from typing import Any

import typer

from orchestrator.cli_common import DEFAULT_STORE, AsJson, RunName, StoreDir, print_document, store_at
from orchestrator.errors import StoreError

checkpoints = typer.Typer(no_args_is_help=True, help="The checkpoints of a run, and whether each is whole.")


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
