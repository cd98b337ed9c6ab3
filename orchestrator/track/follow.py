"""Follow a run's metrics from another process: a live bar on a terminal, a line every so many steps in a log."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.track import metrics
from orchestrator.track.metric_log import FILE, parse_line
from orchestrator.track.progress import bar, console, say

_POLL_S = 0.25


@contextlib.contextmanager
def following(run: Path, *, first_step: int, steps: int, every: int) -> Iterator[None]:
    """Show the steps that are finished while the block runs, those before `first_step` left out."""
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(run, first_step, steps, every, ended), name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(2 * _POLL_S + 1)


def describe(line: dict[str, Any], steps: int) -> str:
    """A step as people read it."""
    return f"step {line[metrics.STEP]}/{steps}  {_numbers(line)}"


def _numbers(line: dict[str, Any]) -> str:
    text = f"loss {line[metrics.LOSS]:.4f}  {line[metrics.TOKENS_PER_S]:,.0f} tokens/s"
    return text + (f"  validation {line[metrics.EVAL_LOSS]:.4f}" if metrics.EVAL_LOSS in line else "")


def _follow(run: Path, first_step: int, steps: int, every: int, ended: threading.Event) -> None:
    seen = first_step
    with contextlib.ExitStack() as stack:
        update = stack.enter_context(bar("train", steps, unit="steps")) if console.is_terminal else None
        for line in _lines(run / FILE, ended):
            step = int(line[metrics.STEP])
            if step <= seen:
                continue
            seen = step
            if update is not None:
                update(step, _numbers(line))
            elif step == steps or step % every == 0:
                say(describe(line, steps))


def _lines(path: Path, ended: threading.Event) -> Iterator[dict[str, Any]]:
    """Lines as they are appended, until `ended` and no more come; a truncated file is read anew."""
    position, last_round = 0, False
    while True:
        last_round = ended.is_set()
        size = path.stat().st_size if path.is_file() else 0
        if size < position:
            position = 0
        if size > position:
            with path.open("rb") as file:
                file.seek(position)
                for raw in file:
                    if not raw.endswith(b"\n"):
                        break
                    position += len(raw)
                    if line := parse_line(raw):
                        yield line
        if last_round:
            return
        ended.wait(_POLL_S)
