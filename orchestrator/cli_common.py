"""What all verbs share: options, the store, printing. `--json`: one JSON document on stdout, all else on stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from orchestrator.store import Store

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
DEFAULT_STORE = Path(".slipway")


def store_at(root: Path) -> Store:
    from orchestrator.store import Store

    return Store(root.absolute())


def print_document(document: dict[str, Any], as_json: bool, printer: str) -> None:
    if as_json:
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
        sys.stdout.flush()
        return
    from orchestrator import cli_print, cli_print_data  # tables are for people, and cost a tenth of a second

    getattr(cli_print_data if hasattr(cli_print_data, printer) else cli_print, printer)(document)


def print_list(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(rows, ensure_ascii=False) + "\n")
        return
    from orchestrator.cli_print_data import print_order

    print_order(rows)
