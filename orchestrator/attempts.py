"""One attempt writes a run at a time. The driver's lock dies with it; its workers may outlive it by seconds, so they
hold a shared lock of their own, and every append and commit checks that no newer attempt has begun.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import StoreError
from orchestrator.store import lock, write_json

WAIT_FOR_WORKERS_S = 20.0
"""How long the workers of a killed driver are waited for before the next attempt takes over."""


class FencedError(StoreError):
    """A newer attempt has taken over this run: this process must write no more."""

    kind = "fenced"


@dataclass(frozen=True)
class Attempt:
    """The right to write a run, until a newer attempt begins."""

    run: Path
    number: int

    def check(self) -> None:
        """Called before every append and commit.

        Raises:
            FencedError: a newer attempt has begun.
        """
        current = _read(self.run)
        if current != self.number:
            raise FencedError(
                f"attempt {self.number} of {self.run.name} was overtaken by attempt {current}",
                fix="nothing: the newer attempt goes on",
            )

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Held by every worker while it lives: the next attempt waits for it."""
        with lock(self.run / "workers.lock", holds=f"the run {self.run.name}", wait_s=1.0, shared=True):
            self.check()
            yield


@contextlib.contextmanager
def writing_run(run: Path) -> Iterator[Attempt]:
    """Take a run for writing: one process at a time, after the workers of a killed one are gone.

    Raises:
        StoreError: another process is writing the run.
    """
    # A moment: `slipway runs show` looks who holds it.
    with lock(run / "run.lock", holds=f"the run {run.name}", wait_s=0.5):
        # First the number, which stops what is left of the last attempt at its next write, then the wait for its end.
        attempt = Attempt(run, _read(run) + 1)
        write_json(run / "attempt.json", {"attempt": attempt.number})
        # After the wait it is taken over: the number keeps a worker that hangs from ever committing.
        with (
            contextlib.suppress(StoreError),
            lock(run / "workers.lock", holds=run.name, wait_s=WAIT_FOR_WORKERS_S),
        ):
            pass
        yield attempt


def is_written(run: Path) -> bool:
    """Whether a driver, or a worker without one, has the run: its lock is looked at and left alone."""
    try:
        with (run / "run.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _read(run: Path) -> int:
    try:
        return int(json.loads((run / "attempt.json").read_text(encoding="utf-8"))["attempt"])
    except FileNotFoundError:
        return 0
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{run / 'attempt.json'} is not readable: {error}", fix="delete that file") from None
