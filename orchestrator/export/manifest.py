"""`manifest.json` of an export: what it is, where it comes from, what its files must be. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from model.config import FamilyName, HeadConfig, HeadKind
from orchestrator.errors import ServeError, StoreError
from orchestrator.store import read_manifest

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
"""Which file has which weight."""
FORMAT = 2
_Manifest = TypeVar("_Manifest", bound="_Entry")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class FileEntry(_Entry):
    """One file."""

    path: str
    bytes: int
    sha256: str


class HeadEntry(_Entry):
    """What the model says."""

    kind: HeadKind
    labels: list[str]

    @property
    def config(self) -> HeadConfig:
        """The same, as the model has it."""
        return HeadConfig(self.kind, tuple(self.labels))


class ImportSource(_Entry):
    """The folder that an import was made of."""

    name: str
    """Its own name, without the way to it."""
    files: list[FileEntry]
    """Those that were read."""


class ExportManifest(_Entry):
    """The whole manifest."""

    format: int
    name: str
    family: FamilyName
    head: HeadEntry
    origin: Literal["trained", "imported"]
    """imported: nobody here trained it, and `trainer_logits` of its probe is what our network makes of its source."""
    run: str | None
    """The run's name; null for an import."""
    dataset: str | None
    source: ImportSource | None
    """Of an import."""
    step: int
    """Steps it was trained here."""
    attempt: int | None = None
    """Of the run, which trained that step; null for an import."""
    precision: str
    """The type it was trained in: says how near `trainer_logits` must be."""
    eos_token: str
    eos_token_id: int
    tokenizer_size: int
    """Ids from here on are padding of the vocabulary: no prompt holds them, and none is ever sampled."""
    tensors: dict[str, str]
    """SHA-256 of each tensor's bytes, by its name in model.safetensors."""
    files: list[FileEntry]

    @property
    def is_decoder(self) -> bool:
        """Whether it continues texts."""
        return self.head.kind == "lm"


class CustomManifest(_Entry):
    """The whole manifest of a network of the user's own."""

    format: int
    name: str
    family: Literal["custom"]
    origin: Literal["trained"]
    run: str
    dataset: str
    step: int
    attempt: int | None = None
    """Of the run, which trained that step."""
    precision: str
    """The type it was trained in: says how near `trainer_predictions` must be."""
    tensors: dict[str, str]
    """SHA-256 of each tensor's bytes, by its name in model.safetensors."""
    files: list[FileEntry]


def is_custom(export: Path) -> bool:
    """Whether a committed export is a network of the user's own, which `read_custom_manifest` reads.

    Raises:
        StoreError: not committed, or not readable.
    """
    return read_manifest(export).get("family") == "custom"


def read_export_manifest(export: Path) -> ExportManifest:
    """The manifest of a committed export of our families.

    Raises:
        StoreError: not committed, not readable, of another version, not an export's, or of a network of the user's own.
    """
    if is_custom(export):
        raise StoreError(
            f"{export} is a network of your own, and this needs a gpt or bert",
            fix="serve it with `slipway serve`, or score it with `slipway evaluate`",
        )
    return _read(export, ExportManifest)


def read_custom_manifest(export: Path) -> CustomManifest:
    """The manifest of a committed export of a network of the user's own.

    Raises:
        StoreError: not committed, not readable, of another version, or of something else.
    """
    return _read(export, CustomManifest)


def _read(export: Path, kind: type[_Manifest]) -> _Manifest:
    data = read_manifest(export)
    if isinstance(found := data.get("format"), int) and found != FORMAT:
        raise StoreError(
            f"{export} is an export of format {found}, this version reads format {FORMAT}",
            fix=f"delete {export} and export the run again, or import its source again",
        )
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise broken(export, f"manifest.json is not an export's: {where}: {first['msg']}") from None


def require_decoder(export: Path, manifest: ExportManifest) -> None:
    """Raise a ServeError for an export that continues no texts."""
    if not manifest.is_decoder:
        raise ServeError(
            f"{export} is a {manifest.family} with the head {manifest.head.kind}; only decoders continue texts",
            fix="open the folder with transformers (its README.md says how), or score it with `slipway evaluate`",
        )


def is_current(export: Path, *, attempt: int | None = None) -> bool:
    """Whether a committed export is of this version, and of an attempt's weights: if not it is written again.

    An attempt may end after its weights were exported and before their checkpoint stood. The next one trains that step
    anew, and on other machines not to the same bit.
    """
    manifest = read_manifest(export)
    is_whole = manifest.get("family") == "custom" or (export / INDEX).is_file()  # without it vLLM reads the probe too
    return is_whole and manifest.get("format") == FORMAT and manifest.get("attempt") in (None, attempt)


def broken(export: Path, what: str) -> StoreError:
    """An export that is not to be trusted."""
    fix = f"delete {export} and export the run again; an altered export is never repaired"
    return StoreError(f"{export} does not verify: {what}", fix=fix)
