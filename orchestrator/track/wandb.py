"""Weights & Biases, on rank 0, from a thread of its own: the training never waits for it. The one home of wandb."""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.job import WandB
from orchestrator.track.metrics import STEP
from orchestrator.track.tracker import NoTracker, Tracker

_QUEUE_LENGTH = 10_000
_CLOSE_LIMIT_S = 30.0
_INIT_LIMIT_S = 20.0
_MOST_CLASSES = 100
"""Of a confusion matrix that is drawn: W&B's own plots hold 10,000 cells."""
_LONGEST_TITLE = 63
"""Of an alert: W&B's own limit."""
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
    """Hands everything to a thread; whatever W&B raises is logged once and ends the tracking, nothing else."""

    def __init__(self, asked: WandB, identity: RunIdentity, *, config: dict[str, Any], mode: str) -> None:
        self._asked = asked
        self._identity = identity
        self._config = config
        self._mode = mode
        self._too_slow = False
        self._work: queue.Queue[Callable[[Any], None] | None] = queue.Queue(_QUEUE_LENGTH)
        self._thread = threading.Thread(target=self._serve, name="wandb", daemon=True)
        self._thread.start()

    def log(self, line: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._put(lambda run: run.log(dict(line)))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, step: int) -> None:
        """See `Tracker`: `tables/NAME`, and of a confusion matrix W&B's own plot, `charts/confusion`."""

        def put(run: Any) -> None:
            import wandb

            with _staging_in(self._identity.folder / "wandb"):
                made = wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
                run.log({STEP: step, f"tables/{name}": made})
                if name == "confusion" and len(rows) <= _MOST_CLASSES:
                    run.log({STEP: step, "charts/confusion": _confusion_chart(columns[1:], rows)})

        self._put(put)

    def used_dataset(self, path: Path, facts: Mapping[str, Any]) -> None:
        """See `Tracker`."""

        def use(run: Any) -> None:
            artifact = _artifact(path, "dataset", facts)
            if self._mode == "online":
                run.use_artifact(artifact)
            else:
                # The public call refuses to work offline; this is what it does first, and `wandb sync` does the rest.
                run._log_artifact(artifact, is_user_created=True, use_after_commit=True)

        self._put(use)

    def made_export(self, path: Path, facts: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._put(lambda run: run.log_artifact(_artifact(path, "model", facts), aliases=["latest", path.name]))

    def summarize(self, facts: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._put(lambda run: run.summary.update(dict(facts)))

    def alert(self, title: str, text: str) -> None:
        """See `Tracker`."""
        self._put(lambda run: run.alert(title=title[:_LONGEST_TITLE], text=text, level="ERROR"))

    def close(self) -> None:
        """See `Tracker`."""
        self._put(None)
        self._thread.join(_CLOSE_LIMIT_S)
        if self._thread.is_alive():
            _log.warning("W&B did not finish within %s s; `wandb sync` sends the rest", _CLOSE_LIMIT_S)

    def _put(self, work: Callable[[Any], None] | None) -> None:
        if not self._thread.is_alive():  # W&B failed, and that was said
            return
        try:
            self._work.put_nowait(work)
        except queue.Full:
            if not self._too_slow:
                _log.warning("W&B is too slow: lines are left out of it; metrics.jsonl has all")
            self._too_slow = True

    def _serve(self) -> None:
        try:
            run = self._init()
            while (work := self._work.get()) is not None:
                work(run)
            run.finish()
        except Exception:  # noqa: BLE001 - a tracker may fail in any way, and training goes on in every case
            _log.warning("W&B failed; training goes on without it", exc_info=True)

    def _init(self) -> Any:
        import wandb

        run = wandb.init(
            project=self._asked.project,
            entity=self._asked.entity,
            id=self._identity.id,
            name=self._identity.name,
            dir=str(self._identity.folder),
            config=self._config,
            tags=self._asked.tags or None,
            mode=self._mode,  # type: ignore[arg-type]
            resume="allow",
            settings=wandb.Settings(console="off", silent=True, init_timeout=_INIT_LIMIT_S, disable_git=True),
        )
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)
        return run


def _artifact(path: Path, kind: str, facts: Mapping[str, Any]) -> Any:
    """A folder of the store as its manifest: names, sizes and checksums; the files themselves stay where they are."""
    import wandb

    name = path.name if kind == "dataset" else f"{path.parent.parent.name}-export"
    artifact = wandb.Artifact(name, type=kind, metadata={**facts, "path": f"{path.parent.name}/{path.name}"})
    # Immutable: else W&B copies it to a place of its own below the user's home, and leaves it there.
    artifact.add_file(str(path / "manifest.json"), policy="immutable")
    return artifact


def _confusion_chart(predicted: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """W&B's plot of a confusion matrix; its own function would want a pair of classes for every sample."""
    import wandb

    cells = [[row[0], label, count] for row in rows for label, count in zip(predicted, row[1:], strict=True)]
    columns: list[str | int] = ["Actual", "Predicted", "nPredictions"]
    return wandb.plot_table(
        vega_spec_name="wandb/confusion_matrix/v1",
        data_table=wandb.Table(columns=columns, data=cells),
        fields={str(column): column for column in columns},
        string_fields={"title": "confusion"},
    )


@contextlib.contextmanager
def _staging_in(folder: Path) -> Iterator[None]:
    """W&B copies tables to a place below the user's home and leaves them there: it is told another, if it has none."""
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def _key_in_netrc(environ: Mapping[str, str]) -> bool:
    path = Path(environ.get("NETRC") or Path(environ.get("HOME", "/")) / ".netrc")
    try:
        return netrc.netrc(str(path)).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
