"""How jobs on a cluster are shown to people."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDE = 200
"""Columns where nobody's terminal is the limit: names stay whole, for grep."""
_out = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)


def print_job_line(document: dict[str, Any]) -> None:
    """The end of `slipway submit`."""
    run = f"  {document['run']}" if document["run"] else ""
    _out.print(f"{document['job']}: {document['state']}{run}", markup=False, soft_wrap=True)


def print_jobs(document: dict[str, Any]) -> None:
    """The table of `slipway jobs list`."""
    if not document["jobs"]:
        _out.print("none")
        return
    names = ("job", "state", "step", "loss", "tokens/s", "goodput", "cost", "who", "submitted (UTC)")
    rows = [_cells(row) for row in document["jobs"]]
    told = [i for i in range(len(names)) if any(row[i] for row in rows)]  # room for the others
    table = Table(*(names[i] for i in told))
    for row in rows:
        table.add_row(*(Text(row[i], overflow="fold") for i in told))
    _out.print(table)


def _cells(row: dict[str, Any]) -> list[str]:
    place = f" ({row['place']}.)" if row["place"] else ""
    return [
        row["job"],
        row["state"] + place,
        "" if row["step"] is None else f"{row['step']:,}/{row['steps']:,}",
        *_figures(row),
        row["user"] or "",
        (row["submitted_at"] or "")[:19].replace("T", " "),
    ]


def print_job(document: dict[str, Any]) -> None:
    """The document of `slipway jobs show` and `stop`."""
    table = Table(show_header=False)
    for name, value in document.items():
        if value not in (None, []) and name not in ("death", "said", "outcome"):
            table.add_row(name.replace("_", " "), Text(f"{value:,.4f}" if isinstance(value, float) else str(value)))
    _out.print(table)
    death = document["death"]
    if death:
        where = f" on {death['where']}" if death["where"] else ""
        _out.print(f"{death['who']}{where} {death['why']}", markup=False)
    for line in death["last_words"] if death else document["said"]:
        _out.print(f"  {line}", markup=False, soft_wrap=True)


def print_log(document: dict[str, Any]) -> None:
    """What a job has written."""
    sys.stdout.write(document["log"])


def _figures(row: dict[str, Any]) -> list[str]:
    formats = {"loss": "{:.4f}", "tokens_per_s": "{:,.0f}", "goodput": "{:.1%}", "cost": "{:,.2f}"}
    return ["" if row[name] is None else form.format(row[name]) for name, form in formats.items()]
