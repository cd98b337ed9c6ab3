"""Follow a run's metrics from another process: a live bar on a terminal, a line every so many steps in a log."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.track import metrics
from orchestrator.track.metric_log import FILE, parse_line
from orchestrator.track.progress import bar, console, say
from orchestrator.track.state_lines import say_state

_POLL_S = 0.25
_NAMED_EXCESS, _NAMED_SHARE = 0.2, 0.05
"""The slowest rank is named from this excess on, if what it costs is this share of a step: less comes and goes."""


@contextlib.contextmanager
def following(
    run: Path, *, first_step: int, steps: int, every: int, cost: Callable[[], float | None] = lambda: None
) -> Iterator[None]:
    """Show the steps that are finished while the block runs, those before `first_step` left out.

    `cost` is what the run has cost up to now, told to those who follow it from elsewhere.
    """
    ended = threading.Event()
    # What stands there now is of earlier attempts, steps beyond the checkpoint among it that will be done again.
    lines = _lines(run / FILE, ended, position=_size_bytes(run / FILE))
    thread = threading.Thread(target=_follow, args=(lines, first_step, steps, every, cost), name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(2 * _POLL_S + 1)


def describe(line: dict[str, Any], steps: int) -> str:
    """A step as people read it."""
    return f"step {line[metrics.STEP]}/{steps}  {_numbers(line)}{_slow_rank(line)}"


def _numbers(line: dict[str, Any]) -> str:
    loss = line[metrics.LOSS]  # null where it was no number and the update was left out
    text = f"loss {'none' if loss is None else f'{loss:.4f}'}  {line[metrics.TOKENS_PER_S]:,.0f} tokens/s"
    return text + (f"  validation {line[metrics.EVAL_LOSS]:.4f}" if metrics.EVAL_LOSS in line else "")


def _figures(line: dict[str, Any]) -> dict[str, Any]:
    """Of a state line; goodput comes with some steps, and stands until the next."""
    figures = {"loss": line[metrics.LOSS], "tokens_per_s": line[metrics.TOKENS_PER_S]}
    return figures | ({"goodput": line[metrics.GOODPUT]} if metrics.GOODPUT in line else {})


def _slow_rank(line: dict[str, Any]) -> str:
    """Names the slowest rank where it holds up the others."""
    excess = line.get(metrics.SLOWEST_EXCESS, 0.0)
    if excess <= _NAMED_EXCESS:
        return ""
    rank = line[metrics.SLOWEST_RANK]
    own_s = line[metrics.of_part(metrics.RANK_TIME, str(rank))]
    costs = own_s - own_s / (1.0 + excess) >= _NAMED_SHARE * line[metrics.STEP_TIME]
    return f"  rank {rank} {excess:.0%} slower" if costs else ""


def _follow(
    lines: Iterator[dict[str, Any]], first_step: int, steps: int, every: int, cost: Callable[[], float | None]
) -> None:
    seen = first_step
    slow_rank = ""  # by the newest line that has the ranks' times: a bar would show it for one step
    with contextlib.ExitStack() as stack:
        update = stack.enter_context(bar("train", steps, unit="steps")) if console.is_terminal else None
        for line in lines:
            step = int(line[metrics.STEP])
            if step <= seen:
                continue
            seen = step
            say_state(step=step, steps=steps, cost=cost(), **_figures(line))
            slow_rank = _slow_rank(line) if metrics.SLOWEST_RANK in line else slow_rank
            if update is not None:
                update(step, _numbers(line) + slow_rank)
            elif step == steps or step % every == 0:
                say(describe(line, steps))


def _lines(path: Path, ended: threading.Event, *, position: int) -> Iterator[dict[str, Any]]:
    """Lines as they are appended after `position`, until `ended` and no more come; a truncated file is read anew."""
    while True:
        last_round = ended.is_set()
        size = _size_bytes(path)
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


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
