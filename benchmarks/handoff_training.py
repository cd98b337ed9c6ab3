"""The training of the benchmark `handoff`: a process that goes on while its checkpoints are served."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handoff_clients import LIMIT_S

from orchestrator.checkpoint.reader import committed_steps

LOOK_EVERY_S = 0.005


@dataclass(frozen=True)
class Saved:
    """A checkpoint whose weights can be had."""

    weights_at: float
    committed_at: Callable[[], float]
    """Waits until all of it stands, and tells when that was."""


@contextlib.contextmanager
def training(command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that trains, until the block ends."""
    with (folder / "train.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait(look: Callable[[], Any], process: subprocess.Popen[bytes], log: Path) -> Any:
    """What `look` finds, as soon as it finds something.

    Raises:
        RuntimeError: the training ended, or the time is over.
    """
    deadline = time.monotonic() + LIMIT_S
    while (found := look()) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"no checkpoint came: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(LOOK_EVERY_S)
    return found


def committed(run: Path) -> Path | None:
    """The newest checkpoint of a run, all of which stands."""
    return next(reversed(committed_steps(run)), None)
