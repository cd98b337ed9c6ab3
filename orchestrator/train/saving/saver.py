"""What goes into a checkpoint besides the ZeRO state: weights, probe, random state, progress, the job."""

from __future__ import annotations

import contextlib
import json
import platform
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import HeadKind
from orchestrator.checkpoint import layout
from orchestrator.checkpoint.layout import Progress
from orchestrator.checkpoint.reader import Checkpoint
from orchestrator.checkpoint.writer import CheckpointWriter, Content
from orchestrator.errors import StoreError
from orchestrator.export.compare import comparable, exact_difference, rounded_difference
from orchestrator.job import JobSpec
from orchestrator.job_file import job_to_yaml
from orchestrator.objectives.protocol import Tensors
from orchestrator.store import write_json
from orchestrator.train.engine.host_copies import HostCopies
from orchestrator.train.engine.pieces import PieceReader, RankState, write_state
from orchestrator.train.engine.protocol import TrainEngine
from orchestrator.train.engine.state import weights_of
from orchestrator.train.group import TorchGroup
from orchestrator.train.saving.background import Background

_PACKAGES = ("slipway", "torch", "deepspeed", "ray", "tokenizers", "safetensors")


@dataclass
class Saved:
    """A checkpoint that is being written, or stands."""

    progress: Progress
    began_at: float = field(default_factory=time.perf_counter)
    copied: threading.Event = field(default_factory=threading.Event)
    """Set once the training may change what is written."""
    _stalls_s: float = 0.0
    _waiting_since: float | None = None

    @property
    def stalled_s(self) -> float:
        """How long it has held up the training so far, a wait that is under way included. In any thread."""
        since = self._waiting_since
        return self._stalls_s + (0.0 if since is None else time.perf_counter() - since)

    @contextlib.contextmanager
    def stalling(self) -> Iterator[None]:
        """The training waits for as long as the block lasts."""
        self._waiting_since = began_at = time.perf_counter()
        try:
            yield
        finally:
            self._waiting_since = None
            self._stalls_s += time.perf_counter() - began_at


@dataclass
class _Taken:
    """What a rank keeps of a step."""

    progress: Progress
    state: RankState | None
    """Views of what the training changes, until it is copied."""
    random_state: dict[str, Tensor]
    logits: Tensor | None
    """Of the probe; None: they are computed with the copy, or are another rank's to keep."""
    beside: Callable[[Tensors], Tensors] | None
    problem: Exception | None = None
    """What the copy has failed with: raised where the other ranks' threads hear of it."""

    def copy(self, copies: HostCopies, probe: Tensors | None, *, then: threading.Event) -> None:
        """In the thread that writes, while the training computes gradients; `then` lets it change its weights."""
        try:
            self.state = copies.copy(self.state) if self.state is not None else None
            if self.beside is not None and probe is not None:
                self.logits = self.beside(probe)["logits"]
        except Exception as error:  # noqa: BLE001 - see `problem`
            self.problem = error
        finally:
            then.set()


class Saver:
    """Writes checkpoints of one rank beside its training, and restores them.

    A save returns at once. What is to be kept is copied, and the probe computed, while the next step computes its
    gradients; `let_change` waits for both before that step's update. Writing, hashing and publishing take as long as
    they take.
    """

    def __init__(
        self,
        writer: CheckpointWriter,
        *,
        engine: TrainEngine,
        group: TorchGroup,
        job: JobSpec,
        description: dict[str, Any],
        probe: Tensors,
        stage: int,
    ) -> None:
        self._writer = writer
        self._engine = engine
        self._group = group
        self._job = job
        self._description = description
        self._probe = probe
        self._stage = stage
        self._copies = HostCopies()
        self._background = Background("checkpoint")
        self._saving: Saved | None = None

    def save(
        self,
        progress: Progress,
        *,
        attempt: int,
        facts: dict[str, Any],
        before: Callable[[], None],
        after: Callable[[Saved, Path], None],
    ) -> None:
        """Begin a checkpoint; the one before is waited for. Collective.

        Args:
            before: called in the thread that writes, before the checkpoint can stand.
            after: called there once it stands.

        Raises:
            Exception: what the checkpoint before has failed with, on every rank.
        """
        saved = Saved(progress)
        with saved.stalling():
            self._background.wait()
            manifest = layout.manifest(
                step=progress.step,
                world_size=self._group.num_ranks,
                zero_stage=self._stage,
                precision=self._job.training.precision,
                attempt=attempt,
                versions=versions(),
                **facts,
            )
            taken = self._take(progress)

        def write() -> None:
            taken.copy(self._copies, self._probe if self._group.rank == 0 else None, then=saved.copied)

            def share(folder: Path) -> None:
                if taken.problem is not None:
                    raise taken.problem
                before()
                if taken.state is not None:
                    write_state(folder, weights_of(taken.state))

            content = Content(
                manifest,
                share,
                lambda shares, folder: self._weigh(shares, folder, taken),
                lambda folder: self._fill(folder, taken),
                best_step=progress.best_step,
            )
            after(saved, self._writer.write(progress.step, content))

        self._saving = saved
        self._background.start(write)

    def let_change(self) -> float:
        """Before an update: returns when it changes nothing that is still to be copied; the seconds that took."""
        saved = self._saving
        if saved is None or saved.copied.is_set():
            return 0.0
        before_s = saved.stalled_s
        with saved.stalling():
            saved.copied.wait()
        return saved.stalled_s - before_s

    @property
    def failed(self) -> bool:
        """Whether the last checkpoint could not be written; `finish` raises why. On all ranks, sooner or later."""
        return self._background.failed

    def finish(self) -> None:
        """Returns when the last checkpoint stands.

        Raises:
            Exception: it could not be written, on every rank.
        """
        with self._saving.stalling() if self._saving is not None else contextlib.nullcontext():
            self._background.wait()

    def abandon(self, limit_s: float) -> None:
        """After a failure: the last checkpoint has some time left to stand; whether it does is all the same."""
        with contextlib.suppress(Exception):
            self._background.wait(limit_s)

    def restore(self, checkpoint: Checkpoint) -> Progress:
        """Go on where a checkpoint stands, whatever number of workers wrote it at whatever stage. Collective.

        Raises:
            StoreError: the network does not compute what it did when the checkpoint was written.
        """
        self._engine.load(checkpoint.path / layout.STATE_FOLDER)
        self._require_same_outputs(checkpoint)
        random_state = checkpoint.path / layout.rng_file(self._group.rank)
        if not random_state.is_file():  # a rank that was not there goes on from its own seed
            return checkpoint.progress
        state = load_file(random_state)
        torch.set_rng_state(state["torch_cpu"])
        if "torch_cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["torch_cuda"])
        return checkpoint.progress

    def _require_same_outputs(self, checkpoint: Checkpoint) -> None:
        """Checksums say that the bytes are those that were written; this, that they were taken up where they belong."""
        written = load_file(checkpoint.path / layout.PROBE)
        want = written.pop("trainer_logits")
        got = self._engine.outputs(written)["logits"]
        exact, custom = self._job.training.precision == "fp32", self._job.model.kind == "custom"
        if custom and not exact:  # there are no rules for what is not logits
            return
        kind: HeadKind = "lm" if custom else self._description["head"]["kind"]
        rule = exact_difference if exact else rounded_difference
        found = rule(comparable(got, kind), comparable(want, kind)) if self._group.rank == 0 else None
        what = self._group.broadcast(found.told(str(found.prompt)) if found else None)
        if what is not None:
            raise StoreError(
                f"{checkpoint.path.name} gives other outputs than when it was saved: {what}",
                fix=f"delete {checkpoint.path}: the checkpoint before is taken then",
            )

    def _take(self, progress: Progress) -> _Taken:
        """In the training's thread, at the end of a step."""
        beside = self._engine.beside() if self._job.model.kind != "custom" else None
        logits = self._engine.outputs(self._probe)["logits"] if beside is None else None
        taken = _Taken(progress, self._engine.state(), _random_state(), logits, beside)
        self._copies.begin()
        return taken

    def _weigh(self, shares: Path, folder: Path, taken: _Taken) -> None:
        """From what all ranks have written: nobody has to gather it while it trains."""
        with PieceReader(shares) as reader:
            save_file(self._engine.whole(reader), folder / layout.WEIGHTS)
        if taken.logits is not None:
            save_file({**self._probe, "trainer_logits": taken.logits.contiguous()}, folder / layout.PROBE)
        write_json(folder / layout.MODEL_CONFIG, self._description)
        write_json(folder / layout.PROGRESS, json.loads(taken.progress.model_dump_json()))
        (folder / layout.JOB).write_text(job_to_yaml(self._job), encoding="utf-8")

    def _fill(self, folder: Path, taken: _Taken) -> None:
        if taken.state is not None:
            write_state(folder / layout.STATE_FOLDER, taken.state)
        save_file(taken.random_state, folder / layout.rng_file(self._group.rank))


def _random_state() -> dict[str, Tensor]:
    """What dropout draws from."""
    state = {"torch_cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["torch_cuda"] = torch.cuda.get_rng_state()
    return state


def versions() -> dict[str, str]:
    """What this was made with."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
