"""Weights & Biases, on rank 0, by a process of its own (`wandb_process`): the training never waits for it.

A run's lines do not travel: the process follows `metrics.jsonl`. So a step costs nothing here, nothing is lost where
W&B is slow, and a run that goes on sends no step twice.
"""

from __future__ import annotations

import contextlib
import json
import logging
import netrc
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orchestrator
from orchestrator.job import WandB
from orchestrator.track.tracker import NoTracker, Tracker

_QUEUE_LENGTH = 1000
_CLOSE_LIMIT_S = 35.0
"""After which the process is killed; it gives up by itself some seconds before."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunIdentity:
    """What makes a resumed run one run."""

    id: str
    name: str
    folder: Path


def wandb_mode(asked: WandB, environ: Mapping[str, str]) -> str:
    """`online`, `offline` or `disabled`: WANDB_MODE wins over the job; auto is online with a key, else offline."""
    from_environment = environ.get("WANDB_MODE", "").lower()
    if from_environment:
        return "offline" if from_environment == "dryrun" else from_environment
    if asked.mode != "auto":
        return asked.mode
    return "online" if environ.get("WANDB_API_KEY") or _key_in_netrc(environ) else "offline"


def open_tracker(asked: WandB, identity: RunIdentity, *, config: dict[str, Any], environ: Mapping[str, str]) -> Tracker:
    """The tracker of a run; one that tracks nothing where W&B is disabled."""
    mode = wandb_mode(asked, environ)
    return NoTracker() if mode == "disabled" else WandbTracker(asked, identity, config=config, mode=mode)


class WandbTracker:
    """Hands everything to a thread, which hands it to the process: whatever W&B does, it does there."""

    def __init__(self, asked: WandB, identity: RunIdentity, *, config: dict[str, Any], mode: str) -> None:
        self._begin = {
            "id": identity.id,
            "name": identity.name,
            "folder": str(identity.folder.resolve()),
            "project": asked.project,
            "entity": asked.entity,
            "tags": asked.tags,
            "mode": mode,
            "config": config,
        }
        self._work: queue.Queue[dict[str, Any] | None] = queue.Queue(_QUEUE_LENGTH)
        self._followed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._serve, name="wandb", daemon=True)
        self._thread.start()

    def log(self, line: Mapping[str, Any]) -> None:
        """See `Tracker`: the line is in the run's `metrics.jsonl`, which the process follows from the first one on."""
        self._follow()

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, step: int) -> None:
        """See `Tracker`: `tables/NAME`, and of a confusion matrix W&B's own plot, `charts/confusion`."""
        self._follow()
        self._put({"do": "table", "name": name, "columns": list(columns), "rows": list(map(list, rows)), "step": step})

    def used_dataset(self, path: Path, facts: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._put({"do": "used_dataset", "path": str(path), "facts": dict(facts)})

    def made_export(self, path: Path, facts: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._put({"do": "made_export", "path": str(path), "facts": dict(facts)})

    def summarize(self, facts: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._put({"do": "summarize", "facts": dict(facts)})

    def alert(self, title: str, text: str) -> None:
        """See `Tracker`."""
        self._put({"do": "alert", "title": title, "text": text})

    def close(self) -> None:
        """See `Tracker`."""
        self._put({"do": "close"})
        self._put(None)
        self._thread.join(_CLOSE_LIMIT_S)
        if self._thread.is_alive():
            _log.warning("the process that sends to W&B did not end within %.0f s, and is killed", _CLOSE_LIMIT_S)
            if self._process is not None:
                self._process.kill()

    def _follow(self) -> None:
        if not self._followed:
            self._followed = True
            self._put({"do": "follow"})

    def _put(self, work: dict[str, Any] | None) -> None:
        with contextlib.suppress(queue.Full):  # the process takes nothing in, and is about to be killed
            self._work.put_nowait(work)

    def _serve(self) -> None:
        try:
            self._process = _start()
            stdin = self._process.stdin
            assert stdin is not None
            work: dict[str, Any] | None = self._begin
            while work is not None:
                stdin.write(json.dumps(work, default=str).encode() + b"\n")
                stdin.flush()
                work = self._work.get()
            stdin.close()
            self._process.wait()
        except BrokenPipeError:  # it has ended before, and has said why
            pass
        except (OSError, ValueError) as error:
            _log.warning("W&B has no process; training goes on without it: %s", error)


def _start() -> subprocess.Popen[bytes]:
    """A session of its own: what a terminal sends to stop the training does not reach it."""
    root = str(Path(orchestrator.__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.track.wandb_process"],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def _key_in_netrc(environ: Mapping[str, str]) -> bool:
    path = Path(environ.get("NETRC") or Path(environ.get("HOME", "/")) / ".netrc")
    try:
        return netrc.netrc(str(path)).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
