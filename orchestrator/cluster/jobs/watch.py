"""Follow a job's log as a local run shows itself: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from orchestrator.cluster.jobs.client import JobsClient
from orchestrator.cluster.jobs.rows import state_of
from orchestrator.cluster.jobs.values import Submission
from orchestrator.errors import CapacityError
from orchestrator.track.progress import bar, console, say
from orchestrator.track.state_lines import state_of_line

_AGAIN_LIMIT_S = 60.0
_AGAIN_S = 1.0
_END_LIMIT_S = 30.0
STATE_LINES = 400
"""How much of the end of a log is read for the newest state in it."""
_NOT_FOR_PEOPLE = re.compile(r'^(Running entrypoint for job |[\d-]+ [\d:,]+\tINFO job_manager\.py|\{"(run|error)": )')
"""Ray's own words at the beginning, and the run's document at its end, which `jobs show` has."""
_STEP_LINE = re.compile(r"^\[ *[\d.]+ s\] step \d+/\d+  ")


def follow(client: JobsClient, id: str) -> Submission:
    """Show a job's log from its beginning until it has ended; what Ray tells of it then.

    Raises:
        CapacityError: the dashboard is gone, and does not come back for a minute.
    """
    shown, lost_at, seen = Shown(), 0.0, -1
    with contextlib.closing(shown):
        while True:
            try:
                asyncio.run(_show(client, id, shown))
                if (job := wait_until_over(client, id, limit_s=_END_LIMIT_S)).is_over:
                    return job
            except (RuntimeError, OSError, CapacityError) as error:  # the connection broke; the job knows nothing of it
                if shown.characters > seen:
                    lost_at, seen = time.monotonic(), shown.characters
                if time.monotonic() - lost_at > _AGAIN_LIMIT_S:
                    raise CapacityError(
                        f"the cluster no longer tells of {id}: {str(error).splitlines()[0]}",
                        fix=f"the job may go on: slipway jobs show {id} --address {client.address}",
                    ) from error
                time.sleep(_AGAIN_S)


def wait_until_over(client: JobsClient, id: str, *, limit_s: float) -> Submission:
    """What Ray tells of a job once it has ended, or after so long."""
    deadline = time.monotonic() + limit_s
    while not (job := client.submission(id)).is_over and time.monotonic() < deadline:
        time.sleep(0.2)
    return job


def wait_until_begun(client: JobsClient, id: str, *, limit_s: float) -> Submission:
    """What Ray tells of a job once its run was not refused, or it has ended, or after so long."""
    deadline = time.monotonic() + limit_s
    while not (job := client.submission(id)).is_over and time.monotonic() < deadline:
        if state_of(job, client.log(job, lines=STATE_LINES)) not in ("pending", "starting"):
            break
        time.sleep(0.2)
    return job


async def _show(client: JobsClient, id: str, shown: Shown) -> None:
    position = 0  # of what this connection has brought: a new one begins with the first character
    async for piece in client.follow(id):
        new = piece[max(0, shown.characters - position) :]
        position += len(piece)
        shown.take(new)


class Shown:
    """A log on its way to people. States move the bar of a terminal, and are left out of the lines."""

    def __init__(self) -> None:
        self.characters = 0
        """How much of the log has been taken."""
        self._rest = ""
        self._stack = contextlib.ExitStack()
        self._update: Callable[[int, str], None] | None = None

    def take(self, piece: str) -> None:
        """The next characters of the log."""
        self.characters += len(piece)
        *lines, self._rest = (self._rest + piece).split("\n")
        for line in lines:
            self._line(line)

    def close(self) -> None:
        """The end: what is left is a line too."""
        if self._rest:
            self._line(self._rest)
        self._rest = ""
        self._stack.close()

    def _line(self, line: str) -> None:
        state = state_of_line(line)
        if state is not None:
            if console.is_terminal:
                self._move(state)
        elif _NOT_FOR_PEOPLE.match(line):
            return
        elif not console.is_terminal:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        elif not _STEP_LINE.match(line):  # the bar says it
            console.print(line, markup=False)

    def _move(self, state: dict[str, Any]) -> None:
        trains = state.get("state") == "training"
        if trains and "step" in state and self._update is None:
            self._update = self._stack.enter_context(_bar(int(state["steps"])))
        if self._update is not None:
            loss, rate = state.get("loss"), state.get("tokens_per_s", 0.0)
            self._update(int(state["step"]), f"loss {'none' if loss is None else f'{loss:.4f}'}  {rate:,.0f} tokens/s")
        if not trains:  # the last steps are told with what follows them
            self._stack.close()
            self._update = None
        if state.get("state") == "waiting":
            say(f"waiting: {state.get('why', '')}")


@contextlib.contextmanager
def _bar(steps: int) -> Iterator[Callable[[int, str], None]]:
    with bar("train", steps, unit="steps") as update:
        yield update
