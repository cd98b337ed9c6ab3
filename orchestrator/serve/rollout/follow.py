"""Serve a run that is still training: its checkpoints, exported and rolled out as they come."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from orchestrator.checkpoint.layout import step_of
from orchestrator.checkpoint.reader import newest_weights
from orchestrator.errors import SlipwayError, StoreError
from orchestrator.serve.rollout.exporter import Exporter
from orchestrator.store import read_manifest

_LOOK_EVERY_S = 0.05
"""Two folders are listed: that costs nothing, and what is waited here is waited by every checkpoint."""
_AFTER_FAILURE_S = 1.0
"""Pause after what was not foreseen: it may come again at each look."""
_EXPORT_AGAIN_S = 5.0
"""After an export that failed: another process exports, a disk is full."""
_log = logging.getLogger(__name__)


class Weights(NamedTuple):
    """Which weights of a run: another attempt may train a step again, and not to the same bit."""

    step: int
    attempt: int | None
    """None: it is not told; then a step alone says which."""

    def are(self, others: Weights | None) -> bool:
        """Whether these are the same."""
        if others is None or self.step != others.step:
            return False
        return None in (self.attempt, others.attempt) or self.attempt == others.attempt


def newest_of(run: Path) -> Weights | None:
    """A run's newest weights, whose checkpoint may still be written; None: it has none yet."""
    newest = newest_weights(run)
    return None if newest is None else _weights_in(newest)


def _weights_in(folder: Path) -> Weights | None:
    step = step_of(folder.name)
    if step is None:
        return None
    try:
        attempt = read_manifest(folder).get("attempt")
    except StoreError:  # it has just gone
        attempt = None
    return Weights(step, attempt if isinstance(attempt, int) else None)


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
        self._seen = self._served = _weights_in(served)
        self._not_before = 0.0
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
            except Exception:  # noqa: BLE001 - a gateway that dies meanwhile, a disk: the next checkpoint gets its chance
                _log.exception("%s is not served", self._run.name)
                self._stopped.wait(_AFTER_FAILURE_S)

    def _look(self, export: Callable[[Path], Path]) -> None:
        newest = newest_of(self._run)
        if newest is None or newest.are(self._seen) or time.monotonic() < self._not_before:
            return
        if self._seen is not None and newest.step < self._seen.step:
            return  # what is served was of an attempt that has died since: another one trains up to there again
        self._not_before = time.monotonic() + _EXPORT_AGAIN_S
        made = export(self._run).resolve()
        self._seen, self._not_before = newest, 0.0
        weights = _weights_in(made)
        if weights is None or not weights.are(self._served):  # the best one may be an older one, which is served
            self._bring(made)
            self._served = weights
