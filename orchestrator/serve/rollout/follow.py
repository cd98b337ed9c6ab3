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
from orchestrator.checkpoint.reader import newest_weights
from orchestrator.errors import ServeError, SlipwayError
from orchestrator.serve.rollout.exporter import Exporter

_LOOK_EVERY_S = 0.05
"""Two folders are listed: that costs nothing, and what is waited here is waited by every checkpoint."""
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
    """The step of a run's newest weights, whose checkpoint may still be written; None: it has none yet."""
    newest = newest_weights(run)
    return None if newest is None else step_of(newest.name)


class Follower:
    """Looks for new checkpoints of one run in a thread of its own."""

    def __init__(
        self,
        run: Path,
        bring: Callable[[Path], object],
        *,
        served: Path,
        export: Callable[[Path], Path] | None = None,
        every_s: float = _LOOK_EVERY_S,
    ) -> None:
        """Starts it.

        Args:
            run: what is followed.
            bring: serves an export.
            served: the export that the service began with; a checkpoint may have come since.
            export: makes one of what is newest; an `Exporter` by default.
            every_s: how often it looks.
        """
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
        if self._export is not None:
            self._look_until_stopped(self._export)
            return
        with Exporter() as export:
            self._look_until_stopped(export)

    def _look_until_stopped(self, export: Callable[[Path], Path]) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                self._look(export)
            except SlipwayError as error:  # refused, or rolled back: what is served goes on, and so does the run
                _log.warning("%s is not served: %s", self._run.name, error)

    def _look(self, export: Callable[[Path], Path]) -> None:
        newest = newest_step(self._run)
        if newest is None or newest == self._seen:
            return
        self._seen = newest
        made = export(self._run).resolve()
        if made != self._served:  # the best one may be an older one, which is served already
            self._bring(made)
            self._served = made
