"""How keys, usage, feedback and the audit log are shown to people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

_SHOWN = ("at", "event", "key", "name", "previous")
_out = Console(highlight=False)


def print_new_key(document: dict[str, Any]) -> None:
    """The end of `slipway keys create`: plain lines, so that a key is copied whole."""
    _out.print(f"id   {document['id']}\nkey  {document['key']}", soft_wrap=True, markup=False)
    _out.print("Keep the key now: it cannot be shown again.")


def print_keys(document: dict[str, Any]) -> None:
    """The table of `slipway keys list`."""
    rows = document["keys"]
    table = Table(Column("id", no_wrap=True), "name", "for", "limits", Column("until", no_wrap=True))
    for row in rows:
        models = f": {', '.join(row['models'])}" if row["models"] is not None else ""
        cells = (row["name"], ", ".join(row["scopes"]) + models, _limits(row), _until(row))
        table.add_row(row["id"], *(escape(cell) for cell in cells))
    _out.print(table if rows else "none: everybody on this machine may ask")


def print_key(row: dict[str, Any]) -> None:
    """One of them, after `slipway keys update`."""
    print_keys({"keys": [row]})


def _limits(row: dict[str, Any]) -> str:
    limits = [f"{row[name]:,} {name}" for name in ("rpm", "tpm") if row[name] is not None]
    if row["budget"] is not None:
        limits.append(f"{row['spent']:,.4g} of {row['budget']:,.4g} spent")
    return ", ".join(limits)


def _until(row: dict[str, Any]) -> str:
    if row["revoked"]:
        return f"revoked {row['revoked'][:10]}"
    return row["expires"][:16].replace("T", " ") if row["expires"] else ""


def print_usage(document: dict[str, Any]) -> None:
    """The table of `slipway usage`."""
    rows = document["usage"]
    numbers = [Column(name, justify="right") for name in ("requests", "prompt", "completion", "cost")]
    table = Table("day", "key", "model", "version", *numbers)
    for row in rows:
        table.add_row(row["day"], escape(row["name"]), row["model"], row["version"], *_figures(row))
    table.add_section()
    table.add_row("in all", "", "", "", *_figures(document["total"]))
    _out.print(table if rows else "none")


def _figures(row: dict[str, Any]) -> list[str]:
    counts = [f"{row[name]:,}" for name in ("requests", "prompt_tokens", "completion_tokens")]
    return [*counts, "" if row["cost"] is None else f"{row['cost']:,.6g}"]


def print_feedback(document: dict[str, Any]) -> None:
    """The table of `slipway feedback list`."""
    rows = document["feedback"]
    table = Table(Column("at (UTC)", no_wrap=True), "answer", "model", "rating", "comment", "correction", "consent")
    for row in rows:
        answer = row["id"] if row["choice"] == 0 else f"{row['id']} choice {row['choice']}"
        said = (f"{row['model']} {row['version']}", str(row["rating"]), row["comment"] or "", row["correction"] or "")
        at = row["at"][:19].replace("T", " ")
        table.add_row(at, escape(answer), *map(escape, said), "yes" if row["consent"] else "no")
    _out.print(table if rows else "none")


def print_events(document: dict[str, Any]) -> None:
    """The table of `slipway audit show`."""
    events = document["events"]
    table = Table(Column("at (UTC)", no_wrap=True), "event", "key", "")
    for event in events:
        facts = ", ".join(f"{name}: {_plain(value)}" for name, value in event.items() if name not in _SHOWN)
        key = " ".join(str(event[name]) for name in ("key", "name") if event.get(name))
        table.add_row(event["at"][:19].replace("T", " "), event["event"], escape(key), escape(facts))
    _out.print(table if events else "none")


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
