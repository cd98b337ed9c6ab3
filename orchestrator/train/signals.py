"""A worker that is told to end: all ranks save after the step they are in, and end together."""

from __future__ import annotations

import signal
import sys

_came: list[int] = []


def listen(*signums: signal.Signals) -> None:
    """Have these signals ask for the end; a second one ends at once. In the main thread of a worker."""
    for signum in signums:
        signal.signal(signum, _on_signal)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signums)  # a Ray of our own starts its workers deaf to SIGTERM


def told_to_end() -> bool:
    """Whether a signal came."""
    return bool(_came)


def exit_code() -> int:
    """Of a process that has ended before its work was done: 128 and the signal's number; 0 where none came."""
    return 128 + _came[0] if _came else 0


def _on_signal(signum: int, _frame: object) -> None:
    if _came:
        sys.exit(128 + signum)
    _came.append(signum)
