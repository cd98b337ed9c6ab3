"""A prepared dataset: a committed folder whose manifest names its shards, its counts and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.data.sources.file import is_remote
from orchestrator.errors import DataError
from orchestrator.store import verify_folder

_DEEP_LIMIT_BYTES = 2 << 30
"""Datasets up to this size are hashed again before they are reused; above it the sizes of the files must do."""
FORMAT = 2


@dataclass(frozen=True)
class Dataset:
    """What a loader, a worker and an export need to know."""

    path: Path
    manifest: dict[str, Any]

    @property
    def hash(self) -> str:
        """The identity in its name."""
        return str(self.manifest["hash"])

    @property
    def kind(self) -> str:
        """`text`, or what its rows are labelled for."""
        return str(self.manifest["kind"])

    @property
    def vocab_size(self) -> int:
        """Size of its tokenizer."""
        return int(self.manifest["vocab_size"])

    @property
    def tokenizer_path(self) -> Path:
        """Its `tokenizer.json`."""
        return self.path / "tokenizer.json"

    def tokens(self, split: str) -> int:
        """Tokens in a split; 0 for a split that was not asked for."""
        found = self.manifest["splits"].get(split)
        return int(found["tokens"]) if found else 0

    def shard_rows(self, split: str) -> list[dict[str, Any]]:
        """The manifest's rows of a split's shards, in stream order."""
        return list(self.manifest["splits"].get(split, {"shards": []})["shards"])

    def shard_paths(self, split: str) -> list[Path]:
        """The shards of a split, in stream order."""
        return [self.path / row["path"] for row in self.shard_rows(split)]

    @property
    def ledger_paths(self) -> list[Path]:
        """The ledger, in the order of units."""
        return sorted((self.path / "ledger").glob("*.arrow"))


def open_dataset(path: Path, *, verify: bool = True) -> Dataset:
    """Open a committed dataset.

    Raises:
        DataError: it is not complete, or (verify) a file differs from the manifest.
    """
    manifest = verify_folder(path, DataError, deep=False)
    if verify and sum(entry["bytes"] for entry in manifest["files"]) <= _DEEP_LIMIT_BYTES:
        verify_folder(path, DataError)
    if manifest.get("format") != FORMAT or not manifest.keys() >= {"splits", "vocab_size", "kind", "counts"}:
        raise DataError(
            f"{path} is not a dataset of this version", fix=f"delete {path} and run `slipway prepare` again"
        )
    for component in manifest.get("components", []):
        if not is_remote(component["place"]):  # what lies on an object store is checked as it is fetched
            _require_component(path, component, verify=verify)
    return Dataset(path, manifest)


def _require_component(path: Path, component: dict[str, str], *, verify: bool) -> None:
    found = open_dataset(path / component["place"], verify=verify)
    if found.hash != component["hash"]:
        raise DataError(
            f"{path} mixes the dataset {component['hash']}, and {found.path} is {found.hash} now",
            fix=f"delete {path} and run `slipway prepare` again",
        )
