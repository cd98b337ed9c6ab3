"""Where a run's first weights come from (`train.from`): which folder, and what identifies it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.checkpoint.layout import MODEL_CONFIG, WEIGHTS
from orchestrator.checkpoint.reader import committed_steps, read_checkpoint
from orchestrator.errors import JobError, StoreError
from orchestrator.identity import content_hash
from orchestrator.job_file import environment, resolve_env
from orchestrator.runfolder import dataset_of
from orchestrator.store import MANIFEST, Store, read_manifest, sha256_file

HF_CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
_RUN = "job.yaml"
_JOB_KEY = "train.from"


@dataclass(frozen=True)
class Origin:
    """A folder of weights: a checkpoint, an export, or a Hugging Face folder."""

    folder: Path
    identity: str
    """Hash of the weights and of what says which network they are: part of the identity of the runs that begin so."""

    @property
    def is_checkpoint(self) -> bool:
        """Whether it has our own layout."""
        return (self.folder / MODEL_CONFIG).is_file()

    @property
    def is_ours(self) -> bool:
        """Whether a manifest says what its files must be."""
        return (self.folder / MANIFEST).is_file()

    @property
    def tokenizer(self) -> Path:
        """The `tokenizer.json` that the weights were trained with; whether it is there is not said.

        Raises:
            StoreError: the run of a checkpoint names no dataset.
        """
        return (dataset_of(self.folder.parent.parent) if self.is_checkpoint else self.folder) / TOKENIZER


def find_origin(asked: str, store: Store) -> Origin:
    """What `train.from` asks for: a folder of weights, a run's folder, or a run in the store by its name.

    Of a run it is the newest checkpoint. Sizes are checked here, and bytes by whoever reads them.

    Raises:
        JobError: there is no such thing.
        StoreError: it is not complete, or a file is not readable.
    """
    folder = _folder(asked, store)
    return Origin(folder, identity_of_source(folder))


def identity_of_source(folder: Path) -> str:
    """Hash of the weights in a checkpoint, an export or a Hugging Face folder, and of its network's description.

    Where there is a manifest it is quick; else all weights are read (a second for a gigabyte or two).

    Raises:
        StoreError: it is not complete, or a file is not readable.
    """
    if (folder / MANIFEST).is_file():
        used = (WEIGHTS, MODEL_CONFIG, HF_CONFIG)
        rows = read_manifest(folder)["files"]
        return content_hash([[row["path"], row["sha256"]] for row in rows if row["path"] in used])
    files = [folder / HF_CONFIG, *sorted(folder.glob("*.safetensors"))]
    try:
        return content_hash([[file.name, sha256_file(file)] for file in files])
    except OSError as error:
        raise StoreError(
            f"{error.filename or folder} cannot be read: {error.strerror}", fix=f"check {_JOB_KEY}"
        ) from None


def require_unchanged(origin: Origin) -> None:
    """Refuse weights other than those that a run began with: frozen ones are read again whenever it goes on.

    Raises:
        StoreError: they are gone, or others stand in their place.
    """
    fix = f"put it back, or run the job again with another {_JOB_KEY}: it will be another run"
    if not origin.folder.is_dir():
        raise StoreError(f"the run began with the weights in {origin.folder}, which is gone", fix=fix)
    if (found := identity_of_source(origin.folder)) != origin.identity:
        raise StoreError(
            f"the run began with the weights {origin.identity} in {origin.folder}; they are {found} now", fix=fix
        )


def _folder(asked: str, store: Store) -> Path:
    text = resolve_env(asked, environment())
    for candidate in (Path(text).expanduser(), store.root / text):
        if (candidate / MODEL_CONFIG).is_file() or (candidate / HF_CONFIG).is_file():
            return candidate.resolve()
        if candidate.is_dir() and not (candidate / _RUN).is_file():
            raise JobError(
                f"{_JOB_KEY} {asked!r}: {candidate} is no run, checkpoint, export or Hugging Face folder: "
                f"it has no {_RUN}, {MODEL_CONFIG} or {HF_CONFIG}",
                fix="name the folder that holds the weights",
            )
    try:
        return _newest(store.find_run(text))
    except StoreError as error:
        raise JobError(f"{_JOB_KEY} {asked!r}: {error.message}", fix=error.fix) from None


def _newest(run: Path) -> Path:
    """The newest checkpoint of a run whose files have their sizes."""
    problem = StoreError(f"{run.name} has no checkpoint yet", fix="train it first, or name another run")
    for folder in reversed(committed_steps(run)):
        try:
            return read_checkpoint(folder, deep=False).path
        except StoreError as error:
            problem = error
    raise problem
