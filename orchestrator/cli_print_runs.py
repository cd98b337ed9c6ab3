"""How runs are shown to people: numbers, where the time went, restarts, and where an export comes from."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from rich.tree import Tree

_BAR_CELLS = 60
_BLOCKS = " ▏▎▍▌▋▊▉█"
"""A cell, from empty to full, in eighths."""
_SOURCES_SHOWN = 10
_NUMBERS = ("step", "loss", "val.", "tokens/s")
_USEFUL, _LOST = "green", "red"
_COLOURS = {
    "useful": _USEFUL,
    "recomputed": _LOST,
    "startup": "yellow",
    "compile": "yellow",
    "data_wait": "magenta",
    "checkpoint_stall": "blue",
    "evaluation": "cyan",
    "recovery": _LOST,
    "idle": "white",
}


def print_runs(document: dict[str, Any]) -> None:
    """The document of `slipway runs list`."""
    out = Console(highlight=False)
    if not document["runs"]:
        out.print("none")
        return
    served = any(row["served"] for row in document["runs"])
    tagged = any(row["tags"] for row in document["runs"])
    table = Table(
        Column("run", overflow="fold"), "state", *(Column(n, justify="right", no_wrap=True) for n in _NUMBERS)
    )
    for name, shown in (("at work", True), ("tags", tagged), ("served", served)):
        if shown:
            table.add_column(name, overflow="fold")
    for row in document["runs"]:
        steps = "" if row["steps"] is None else f"{row['step']:,}/{row['steps']:,}"
        losses = ("" if row[key] is None else f"{row[key]:.4f}" for key in ("train_loss", "validation_loss"))
        speed = "" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:,.0f}"
        lists = [", ".join(row[key]) for key, shown in (("tags", tagged), ("served", served)) if shown]
        table.add_row(row["name"], row["state"], steps, *losses, speed, _minute(row["worked_at"]), *lists)
    out.print(table)


def _minute(moment: str | None) -> str:
    """To the minute, on this machine's clock."""
    return f"{datetime.fromisoformat(moment).astimezone():%m-%d %H:%M}" if moment else ""


def print_account(document: dict[str, Any]) -> None:
    """The document of `slipway runs show`."""
    out = Console(highlight=False)
    for part in shown(document):
        out.print(part)


def shown(document: dict[str, Any]) -> Iterator[Table | Text]:
    """What is printed, in its order."""
    alive = ", being trained" if document["alive"] else ""
    yield Text(f"{document['run']}: {document['state']}{alive}, step {document['step']:,} of {document['steps']:,}")
    yield _numbers(document)
    seconds = {name: document["goodput"][f"{name}_s"] for name in _COLOURS}
    total_s = sum(seconds.values())
    if total_s > 0:
        yield _parts(seconds, total_s)
        yield _stacked(seconds, total_s)
    if document["restarts"]:
        yield _restarts(document["restarts"])
    if document["jobs"]:
        yield _commands(document["jobs"])
    for name, lines in (("began with it", document["children"]), ("served at", document["served"])):
        if lines:
            yield Text(f"{name}: {', '.join(lines)}")


def print_comparison(document: dict[str, Any]) -> None:
    """The document of `slipway runs compare`: a column for each run."""
    out = Console(highlight=False)
    rows = {name: [row[name] for row in document["runs"]] for name in document["runs"][0] if name != "run"}
    rows |= {row["key"]: row["values"] for row in document["differences"]}
    table = Table("", *(row["run"].removeprefix("runs/") for row in document["runs"]))
    for name, values in rows.items():
        table.add_row(name, *map(_cell, values), end_section=name == "goodput")
    out.print(table)
    if not document["differences"]:
        out.print("their jobs are the same")


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def print_lineage(document: dict[str, Any]) -> None:
    """The document of `slipway lineage`, as a tree."""
    Console(highlight=False).print(lineage_tree(document))


def lineage_tree(document: dict[str, Any]) -> Tree:
    """Each thing above what it was made of; of many sources the first few."""
    root = Tree(_name(document, ("export", "checkpoint", "weights", "run")))
    branch = root
    for key in ("checkpoint", "run"):
        if document[key] and (name := _name(document, (key,))) != root.label:
            branch = branch.add(name)
    if document["job"]:
        branch.add(_name(document, ("job",)))
        branch.add(f"commit {document['commit'] or 'unknown'}")
    data = branch.add(_name(document, ("dataset",))) if document["dataset"] else branch
    sources = document["sources"]
    for row in sources[:_SOURCES_SHOWN]:
        data.add(f"{row['path']}  {row['bytes']:,} bytes  sha256 {row['sha256'][:12]}")
    if len(sources) > _SOURCES_SHOWN:
        data.add(f"and {len(sources) - _SOURCES_SHOWN:,} more; --json has them all")
    for parent in document["parents"]:
        branch.add("began with").add(lineage_tree(parent))
    return root


def _name(document: dict[str, Any], keys: tuple[str, ...]) -> str:
    return next(f"{key} {document[key]}" for key in keys if document.get(key))


def _numbers(document: dict[str, Any]) -> Table:
    table = Table(show_header=False)
    rows = {
        "wall time": f"{document['wall_s']:,.1f} s in {document['attempts']} attempt(s)",
        "workers": f"{document['workers']} now; {document['worker_s']:,.1f} s of all workers",
        "GPU-hours": f"{document['gpu_hours']:,.3f}",
        "CPU-hours": f"{document['cpu_hours']:,.3f}",
        "cost": "unknown" if document["cost"] is None else f"{document['cost']:,.2f}",
        "useful": f"{document['goodput']['fraction']:.1%}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _parts(seconds: dict[str, float], total_s: float) -> Table:
    table = Table("part", title="where the workers' time went", title_justify="left")
    table.add_column("s", justify="right")
    table.add_column("%", justify="right")
    table.add_column("")
    for name, part_s in seconds.items():
        share = part_s / total_s
        table.add_row(name.replace("_", " "), f"{part_s:,.1f}", f"{100 * share:.1f}", Text(bar(share), _COLOURS[name]))
    return table


def bar(share: float, cells: int = 20) -> str:
    """A share of 1 as blocks, to an eighth of a cell."""
    eighths = round(share * cells * 8)
    return "█" * (eighths // 8) + _BLOCKS[eighths % 8].strip()


def _stacked(seconds: dict[str, float], total_s: float) -> Text:
    """All parts in one bar: a part ends in the cell where the sum up to it ends."""
    line, drawn, passed_s = Text(), 0, 0.0
    for name, part_s in seconds.items():
        passed_s += part_s
        until = round(_BAR_CELLS * passed_s / total_s)
        line.append("█" * (until - drawn), _COLOURS[name])
        drawn = until
    return line


def _restarts(restarts: list[dict[str, Any]]) -> Table:
    table = Table("class", "cause", title="restarts", title_justify="left")
    table.add_column("after step", justify="right")
    table.add_column("recovered in s", justify="right")
    for row in restarts:
        in_s = row["recovered_in_s"]
        table.add_row(
            Text(row["class"]), Text(row["cause"]), f"{row['step']:,}", "not yet" if in_s is None else f"{in_s:,.1f}"
        )
    return table


def _commands(jobs: list[dict[str, Any]]) -> Table:
    table = Table("attempt", "launched", "workers", "by", "on", "submission", title="attempts", title_justify="left")
    for row in jobs:
        known = (str(row[name] or "") for name in ("workers", "submitter", "host", "submission"))
        table.add_row(str(row["attempt"] or ""), _minute(row["launched_at"]), *known)
    return table
