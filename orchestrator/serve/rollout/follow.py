"""Serve a run that is still training: its checkpoints, exported and rolled out as they come."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from orchestrator.checkpoint.layout import step_of
from orchestrator.checkpoint.reader import committed_steps
from orchestrator.errors import ServeError, SlipwayError

_LOOK_EVERY_S = 0.2
"""One folder is listed: that costs nothing, and what is waited here is waited by every checkpoint."""
_log = logging.getLogger(__name__)


def export_newest(run: Path) -> Path:
    """Export what of a run is served, in a process of its own: it reads checkpoint and dataset, and lets go of them.

    Raises:
        ServeError: it failed, and how.
    """
    command = [
        sys.executable,
        "-m",
        "orchestrator.cli",
        "export",
        str(run),
        "--store",
        str(run.parent.parent),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        document = json.loads(done.stdout)
        if done.returncode == 0:
            return Path(run.parent.parent, document["export"])
        raise ServeError(f"{run.name} could not be exported: {document['error']['message']}")
    except (ValueError, KeyError):
        raise ServeError(f"the export of {run.name} ended with code {done.returncode}: {done.stderr[-500:]}") from None


def newest_step(run: Path) -> int | None:
    """The step of a run's newest checkpoint; None: it has none yet."""
    steps = [step for folder in committed_steps(run) if (step := step_of(folder.name)) is not None]
    return max(steps, default=None)


class Follower:
    """Looks for new checkpoints of one run in a thread of its own."""

    def __init__(
        self,
        run: Path,
        bring: Callable[[Path], object],
        *,
        served: Path,
        export: Callable[[Path], Path] = export_newest,
        every_s: float = _LOOK_EVERY_S,
    ) -> None:
        """Starts it. `served` is the export that the service began with; a checkpoint may have come since."""
        self._run = run
        self._bring = bring
        self._export = export
        self._seen = step_of(served.name)
        self._served = served.resolve()
        self._stopped = threading.Event()
        self._every_s = every_s
        threading.Thread(target=self._follow, name=f"follow {run.name}", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def _follow(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                self._look()
            except SlipwayError as error:  # refused, or rolled back: what is served goes on, and so does the run
                _log.warning("%s is not served: %s", self._run.name, error)

    def _look(self) -> None:
        newest = newest_step(self._run)
        if newest is None or newest == self._seen:
            return
        self._seen = newest
        export = self._export(self._run).resolve()
        if export != self._served:  # the best one may be an older one, which is served already
            self._bring(export)
            self._served = export
