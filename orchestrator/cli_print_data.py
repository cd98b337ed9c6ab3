"""How `slipway prepare` and `slipway data` show things to people: tables, and a histogram in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

_out = Console(highlight=False)
_BAR_CHARACTERS = 40


def print_prepared(document: dict[str, Any]) -> None:
    """The end of `slipway prepare`."""
    table = Table(show_header=False)
    table.add_row("dataset", f"{document['dataset']} ({document['state']})")
    for name in ("documents", "tokens", "train_tokens", "rejected"):
        table.add_row(name.replace("_", " "), f"{document[name]:,}")
    table.add_row("removed", _counts(document["removed"]))
    table.add_row("personal data", _counts(document["personal_data"]))
    if "tokens_per_s" in document:
        table.add_row("made in", f"{document['seconds']:,.1f} s, {document['tokens_per_s']:,.0f} tokens/s in all")
    table.add_row("report", escape(document["report"]))
    _out.print(table)


def print_datasets(document: dict[str, Any]) -> None:
    """The table of `slipway data list`."""
    if not document["datasets"]:
        _out.print("none")
        return
    table = Table(Column("dataset", overflow="fold"), "kind", "documents", "tokens", "train tokens", "rejected")
    for row in document["datasets"]:
        if "error" in row:
            table.add_row(escape(row["dataset"]), escape(row["error"]))
            continue
        table.add_row(row["dataset"], row["kind"], *(f"{row[k]:,}" for k in list(row)[2:]))
    _out.print(table)


def print_dataset(document: dict[str, Any]) -> None:
    """The tables of `slipway data show`."""
    details = document["details"]
    print_prepared({**document, "state": document["kind"]})
    if "sources" in details:
        _print_sources(details["sources"])
        _print_rules(details)
        _print_lengths(details["length_tokens"])
    for component in details.get("mixture", []):
        _out.print(f"{component['name']}: {component['place']}", markup=False)


def _print_sources(sources: list[dict[str, Any]]) -> None:
    table = Table(
        "source", "weight", "files", "MB", "read", "documents", "tokens", title="sources", title_justify="left"
    )
    for row in sources:
        numbers = (row["documents_read"], row["documents"], row["tokens"])
        weight = "" if row["weight"] is None else f"{row['weight']:g}"
        table.add_row(
            row["name"], weight, f"{row['files']:,}", f"{row['bytes'] / 1e6:,.1f}", *(f"{n:,}" for n in numbers)
        )
    _out.print(table)


def _print_rules(details: dict[str, Any]) -> None:
    table = Table("rule", "documents", "MB", "an example", title="removed and mended", title_justify="left")
    for rule, row in details["removed_by_rule"].items():
        example = escape(row["samples"][0]["text"][:60].replace("\n", " ")) if row["samples"] else ""
        table.add_row(rule, f"{row['documents']:,}", f"{row['bytes'] / 1e6:,.3f}", example)
    for rule, row in details["mended_by_rule"].items():
        table.add_row(f"{rule} (mended)", f"{row['documents']:,}", f"{row['bytes'] / 1e6:,.3f}", "")
    if table.row_count:
        _out.print(table)


def _print_lengths(lengths: dict[str, Any]) -> None:
    for split, found in lengths.items():
        if not found["histogram"]:
            continue
        _out.print(f"{split}: documents by length in tokens, the longest {found['longest']:,}")
        most = max(count for _, _, count in found["histogram"])
        for first, last, count in found["histogram"]:
            _out.print(f"{first:>10,} to {last:>10,} {'█' * max(1, round(_BAR_CHARACTERS * count / most))} {count:,}")


def print_samples(document: dict[str, Any]) -> None:
    """The documents of `slipway data sample`."""
    for sample in document["samples"]:
        _out.print(f"\n{sample['shard']} document {sample['position']}", style="bold", markup=False)
        for name, value in sample.items():
            if name not in ("shard", "position"):
                _out.print(f"{name}: {value}" if name != "text" else value, markup=False)


def print_found(document: dict[str, Any]) -> None:
    """The places of `slipway data find`."""
    if not document["matches"]:
        _out.print("no dataset of the store has it")
        return
    names = ("dataset", "state", "split", "shard", "position", "source file", "row", "runs that trained on it")
    table = Table(*(Column(name, overflow="fold") for name in names))
    for match in document["matches"]:
        cells = [match.get(k) for k in ("dataset", "state", "split", "shard", "position", "file", "row")]
        table.add_row(*("" if c is None else escape(str(c)) for c in cells), ", ".join(match["runs"]) or "none")
    _out.print(table)


def print_order(rows: list[dict[str, Any]]) -> None:
    """The samples of `slipway data order`."""
    for row in rows:
        for rank, ids in enumerate(row["ranks"]):
            _out.print(f"step {row['step']} rank {rank}: {' '.join(map(str, ids))}", soft_wrap=True)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items() if count) or "none"
