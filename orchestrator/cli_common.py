"""What all verbs share: options, the store, printing. `--json`: one JSON document on stdout, all else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from importlib import import_module
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


def print_document(document: Any, as_json: bool, printer: str = "print_row") -> None:
    """For machines as JSON, for people by a printer: `print_plan` of cli_print, `runs.print_runs` of cli_print_runs."""
    if as_json:
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
        sys.stdout.flush()
        return
    group, _, name = printer.rpartition(".")
    # Imported here: tables are for people, and cost a tenth of a second.
    getattr(import_module(f"orchestrator.cli_print{group and '_'}{group}"), name)(document)


def verb_of(app: typer.Typer, words: Iterable[str]) -> str:
    """The verb that a command line asks for, with a space behind each of its words; as much of it as there is."""
    found, here = "", app
    for word in (word for word in words if not word.startswith("-")):
        groups = {group.name: group.typer_instance for group in here.registered_groups}
        verbs = {one.name or one.callback.__name__ for one in here.registered_commands if one.callback}
        if word not in verbs | groups.keys():
            break
        found += f"{word} "
        if (inner := groups.get(word)) is None:
            break
        here = inner
    return found
