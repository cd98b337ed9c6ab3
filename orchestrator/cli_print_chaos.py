"""How `slipway chaos` tells people what it has found: its faults, the figures, the verdict."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from orchestrator.chaos.schedule import Report


def print_report(report: Report) -> None:
    """The end of a drill."""
    out = Console(highlight=False)
    for part in shown(report):
        out.print(part)


def shown(report: Report) -> Iterator[Table | Text]:
    """What is printed, in its order."""
    if report.faults:
        faults = Table("fault", "at (UTC)", Column("process", justify="right"), Column("recovered in", justify="right"))
        for fault in report.faults:
            recovered = "" if fault.recovered_in_s is None else f"{fault.recovered_in_s:.1f} s"
            faults.add_row(fault.kind, fault.at[11:19], "" if fault.pid is None else str(fault.pid), recovered)
        yield faults
    figures = Table(show_header=False)
    figures.add_row("samples", f"{report.samples_lost} lost, {report.samples_repeated} repeated{_skipped(report)}")
    figures.add_row("proved up to", f"step {report.steps}")
    figures.add_row("steps redone", str(report.steps_redone))
    figures.add_row("useful time", f"{report.goodput:.1%} of the run")
    yield figures
    for reason in report.put_off:
        yield Text(f"not given: {reason}")
    for broken in report.violations:
        yield Text(f"broken: {broken}", style="red")
    yield Text("pass", style="bold green") if report.passed else Text("fail", style="bold red")


def _skipped(report: Report) -> str:
    return f", {report.samples_skipped} left out on purpose" if report.samples_skipped else ""
