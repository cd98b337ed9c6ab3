"""Progress for people: a live bar on a terminal, plain lines in a log; always on stderr, away from `--json`."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY_S = 10.0
_started_at = time.monotonic()
console = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """A line for people."""
    if console.is_terminal:
        console.print(message, markup=False)
    else:
        sys.stderr.write(f"[{time.monotonic() - _started_at:6.1f} s] {message}\n")
        sys.stderr.flush()


@contextlib.contextmanager
def bar(title: str, total: int, *, unit: str = "") -> Iterator[Callable[[int, str], None]]:
    """Progress of `total` units; yields `update(completed, note)`."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
        )
        tail = (
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, *tail, console=console, transient=False) as progress:
            task = progress.add_task(title, total=total, note="", unit=unit)

            def advance(completed: int, note: str = "") -> None:
                progress.update(task, completed=completed, note=note)

            yield advance
        return
    last_at = time.monotonic()

    def update(completed: int, note: str = "") -> None:
        nonlocal last_at
        if completed >= total or time.monotonic() - last_at >= _LINE_EVERY_S:
            last_at = time.monotonic()
            say(f"{title}: {completed}/{total} {unit} {note}".rstrip())

    yield update
