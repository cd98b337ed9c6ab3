"""`slipway chaos`: faults on a live run, and whether it kept its promises."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli_common import DEFAULT_STORE, AsJson, RunName, StoreDir, print_document, store_at
from orchestrator.errors import JobError, TrainError

FaultName = Annotated[str | None, typer.Argument(metavar="FAULT", help="One fault, at once; or --schedule.")]
Schedule = Annotated[
    str | None,
    typer.Option("--schedule", metavar="FAULT,...", help="Faults in turn, in an order that the seed gives."),
]
Every = Annotated[str, typer.Option("--every", metavar="TIME", help="One fault in each such interval.")]
Lasting = Annotated[str, typer.Option("--for", metavar="TIME", help="How long the schedule is: 10m, 1h30m.")]
Patience = Annotated[str, typer.Option(metavar="TIME", help="How long the recovery from a fault may take.")]
FillAtMost = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Of fill-disk: how much may be free. [default: 2GB, and not the system's disk]"),
]


def chaos(
    run: RunName,
    fault: FaultName = None,
    scheduled: Schedule = None,
    every: Every = "60s",
    lasting: Lasting = "10m",
    seed: Annotated[int, typer.Option(help="Another seed: other times, order and targets.")] = 0,
    patience: Patience = "5m",
    fill_at_most: FillAtMost = None,
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Disturb a run that is being trained, and say whether it kept its promises: exit 0 if it did, 5 if not.

    Faults: kill-worker, kill-node, stop-worker (SIGSTOP), slow-worker, kill-driver (its command is given again),
    fill-disk, tear-checkpoint, flip-bit, cut-network (as root), preempt (SIGTERM).

    Example:  slipway chaos quickstart-0123456789ab kill-worker

    In turn:  slipway chaos quickstart-0123456789ab --schedule kill-worker,kill-driver --for 5m
    """
    from orchestrator.chaos.drill import Drill, run_drill
    from orchestrator.chaos.schedule import parse_duration, parse_kinds
    from orchestrator.plan import parse_bytes
    from orchestrator.track.progress import say

    if (fault is None) == (scheduled is None):
        raise JobError("chaos takes one FAULT, or --schedule", fix="slipway chaos --help names the faults")
    every_s = parse_duration(every, option="--every")
    drill = Drill(
        kinds=parse_kinds(fault or scheduled or ""),
        every_s=every_s,
        for_s=parse_duration(lasting, option="--for") if scheduled else every_s,
        seed=seed,
        patience_s=parse_duration(patience, option="--patience"),
        fill_at_most_bytes=parse_bytes(fill_at_most, option="--fill-at-most") if fill_at_most else None,
    )
    if fault and len(drill.kinds) > 1:
        raise JobError(f"FAULT is one fault, not {fault!r}", fix=f"--schedule {fault}")
    report = run_drill(store_at(store).find_run(run), drill, say=say)
    if as_json:
        print_document(report.to_json(), as_json)
    else:
        from orchestrator.cli_print_chaos import print_report

        print_report(report)
    if not report.passed:
        raise typer.Exit(TrainError.exit_code)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("chaos")(chaos)
