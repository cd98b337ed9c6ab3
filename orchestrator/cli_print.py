"""How the command line shows things to people: tables, notes, the service's address."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from orchestrator.job import JobSpec
from orchestrator.plan import human_bytes
from orchestrator.track.progress import console as notes

if TYPE_CHECKING:
    from orchestrator.run import Outcome
    from orchestrator.serve.deployment.deploy import Service

_out = Console(highlight=False)


def print_plan(document: dict[str, Any]) -> None:
    """The plan and the stages of `slipway plan`."""
    if document["plan"] is not None:
        _print_numbers(document["plan"])
    stages = Table("stage", "status", "in the store", "", title_justify="left")
    for name, stage in document["stages"].items():
        stages.add_row(name, stage["status"], stage["path"] or "", stage["detail"] or "")
    _out.print(stages)
    for warning in document["warnings"]:
        _out.print(f"warning: {warning}", markup=False)


def _print_numbers(plan: dict[str, Any]) -> None:
    numbers = Table(title=f"plan of {plan['job']}", show_header=False, title_justify="left")
    parameters = f"{plan['parameters']:,} parameters" if plan["parameters"] else "size not known"
    rows = {
        "model": parameters,
        "workers": f"{plan['workers']} on {plan['cluster']}",
        "a step": f"{plan['samples_per_step']} samples; each worker: {plan['accumulation']} x {plan['micro_batch']}"
        f"; ZeRO {plan['zero_stage']}",
        "training": f"{plan['steps']:,} steps, {plan['total_tokens']:,} tokens ({plan['warmup_tokens']:,} warm-up)",
        "compute": f"{plan['training_flops']:.2e} FLOPs" if plan["training_flops"] else "unknown",
        "memory": _memory(plan),
        "time": _time(plan["hours"]),
        "cost": f"{plan['cost']:,.2f}" if plan["cost"] is not None else "unknown",
        "rests on": plan["speed"],
    }
    for name, value in rows.items():
        numbers.add_row(name, value)
    _out.print(numbers)
    for why in plan["why"]:
        _out.print(f"- {why}", markup=False)


def _time(hours: float | None) -> str:
    if hours is None:
        return "unknown"
    return f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:,.1f} minutes"


def _memory(plan: dict[str, Any]) -> str:
    memory = plan["memory_per_worker"]
    if memory is None:
        return "unknown"
    parts = ", ".join(f"{name} {human_bytes(size)}" for name, size in memory.items() if name != "peak")
    usable = plan["usable_bytes_per_worker"]
    of = f" of {human_bytes(usable)}" if usable is not None else ""
    return f"{human_bytes(memory['peak'])}{of} a worker: {parts}"


def announce_service(
    service: Service, outcome: Outcome, job: JobSpec, *, store: Path, stays: bool, lives_on: bool
) -> None:
    """What the service answered, where it is, and what ends it or serves it again; on a cluster it `lives_on`."""
    for sample in outcome.samples or []:
        notes.print(f"\n> {sample['prompt']}", style="bold", markup=False)
        notes.print(sample["completion"], markup=False)
    if lives_on:
        notes.print(f"\nserved on the cluster's head at  {service.url}  as  {service.model}", markup=False)
        return
    run = Path(outcome.run or "").name
    again = shlex.join(["slipway", "serve", run, "--store", str(store), "--port", str(service.port)])
    notes.print(f"\n{'served' if stays else 'was served'} at  {service.url}  as  {service.model}", markup=False)
    notes.print(f"{'Ctrl-C ends it; ' if stays else ''}serve it again:  {again}", markup=False, soft_wrap=True)


def say_url(answer: dict[str, Any]) -> None:
    """Where a service answers, and how to ask it."""
    _out.print(f"{answer['model']} is served at {answer['url']}", markup=False)
    body = f'{{"model": "{answer["model"]}", "prompt": "The ", "max_tokens": 32}}'
    _out.print(
        f"try:  curl {answer['url']}/completions -H 'Content-Type: application/json' -d '{body}'",
        markup=False,
        soft_wrap=True,
    )


def say_rollout(done: dict[str, Any]) -> None:
    """The end of a rollout or a rollback."""
    before = f", after {done['before']}" if done["before"] else ""
    _out.print(f"{done['model']} {done['version']} is served at {done['url']}{before}: {done['reason']}", markup=False)


def print_outcome(document: dict[str, Any]) -> None:
    """The end of `slipway run`."""
    table = Table(show_header=False)
    for name, value in document.items():
        if value is not None and name not in ("samples", "stages"):
            table.add_row(name, _number(value))
    table.add_row("stages", ", ".join(f"{stage} {how}" for stage, how in document["stages"].items() if how))
    _out.print(table)


def print_checkpoints(document: dict[str, Any]) -> None:
    """The table of `slipway checkpoints`."""
    if not document["checkpoints"]:
        _out.print("none")
        return
    table = Table("step", Column("made (UTC)", no_wrap=True), "MB", "workers", "ZeRO", "loss", "validation", "")
    for row in document["checkpoints"]:
        made = (row["made"] or "")[:19].replace("T", " ")
        sizes = (str(row["step"]), made, f"{row['bytes'] / 1e6:,.1f}")
        if row["problem"]:
            table.add_row(*sizes, "", "", "", "", escape(row["problem"]))
            continue
        losses = ("" if row[key] is None else f"{row[key]:.4f}" for key in ("train_loss", "validation_loss"))
        best = "the best" if row["best"] else ""
        table.add_row(*sizes, str(row["workers"]), str(row["zero_stage"]), *losses, best)
    _out.print(table)


def print_row(document: dict[str, Any]) -> None:
    """One record."""
    print_rows([document])


def print_services(document: dict[str, Any]) -> None:
    """The table of `slipway serve --status`."""
    shown = ("port", "url", "pid", "state", "answers")
    print_rows(
        [
            {**{name: str(service.get(name, "")) for name in shown}, "models": _versions(service)}
            for service in document["services"]
        ]
    )


def _versions(service: dict[str, Any]) -> str:
    found = service.get("versions") or []
    if not found:
        return str(service["model"])
    return ", ".join(f"{e['model']} {e['version']}{_share(e)}" for e in found)


def _share(entry: dict[str, Any]) -> str:
    if entry.get("shadow"):
        return f" {entry['shadow']:.0%} in shadow"
    return "" if entry["share"] in (1, None) else f" {entry['share']:.0%}"


def print_rows(rows: list[dict[str, Any]], leave_out: tuple[str, ...] = ()) -> None:
    """Any list of records as a table."""
    if not rows:
        _out.print("none")
        return
    names = [name for name in rows[0] if name not in leave_out]
    table = Table()
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(_number(row.get(name)) for name in names))
    _out.print(table)


def print_checks(document: dict[str, Any]) -> None:
    """The lines of `slipway doctor`."""
    for check in document["checks"]:
        _out.print(f"{'ok  ' if check['ok'] else 'FAIL'}  {check['name']:<14} {check['found']}", markup=False)
        if check["fix"] and not check["ok"]:
            _out.print(f"      fix: {check['fix']}", markup=False)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 1000 else f"{value:,.1f}"
    return (
        "" if value is None else f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    )
