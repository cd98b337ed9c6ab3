"""Shards back to documents: for people who look at a dataset, and for who searches it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.dataset import Dataset
from orchestrator.data.shards import open_shard
from orchestrator.data.shelf import shard_at_hand
from orchestrator.data.tokens.tokenizer import load
from orchestrator.errors import DataError


@dataclass(frozen=True)
class Stored:
    """A document as it stands in a shard."""

    position: int
    ids: npt.NDArray[Any]
    """Token ids; of a labelled row, those of its first column of ids."""
    columns: dict[str, Any]
    """Of a labelled row: all columns."""
    tokenizer: Any

    @property
    def text(self) -> str:
        """As the tokenizer gives it back, special tokens left out."""
        return str(self.tokenizer.decode(self.ids.tolist()))

    def shown(self) -> dict[str, Any]:
        """For people."""
        if not self.columns:
            return {"tokens": len(self.ids), "text": self.text}
        shown: dict[str, Any] = {}
        for name, value in self.columns.items():
            if name.endswith("ids") and value is not None:
                shown[name.removesuffix("ids") + "text"] = self.tokenizer.decode(np.asarray(value).tolist())
            else:
                shown[name] = value.tolist() if isinstance(value, np.ndarray) else value
        return shown


def read_back(dataset: Dataset, row: dict[str, Any]) -> Iterator[Stored]:
    """The documents of a shard, in order.

    Raises:
        DataError: the shard cannot be read, or holds something else than the manifest says.
    """
    tokenizer = _tokenizer(dataset.tokenizer_path)
    with shard_at_hand(dataset, row, dataset.manifest["settings"]["cache_bytes"]) as path:
        yield from (_read_text if dataset.kind == "text" else _read_rows)(path, row, tokenizer)


def _read_text(path: Path, row: dict[str, Any], tokenizer: Any) -> Iterator[Stored]:
    shard = open_shard(path)
    if len(shard.document_ends) != row["documents"] or len(shard.tokens) != row["tokens"]:
        raise DataError(
            f"{path} holds {len(shard.document_ends)} documents and {len(shard.tokens)} tokens, the manifest says "
            f"{row['documents']} and {row['tokens']}",
            fix="delete the dataset and prepare it again",
        )
    start = 0
    for position, end in enumerate(shard.document_ends.tolist()):
        yield Stored(position, shard.tokens[start:end], {}, tokenizer)
        start = end


def _read_rows(path: Path, row: dict[str, Any], tokenizer: Any) -> Iterator[Stored]:
    from orchestrator.data.labelled.shards import open_rows

    shard = open_rows(path)
    if len(shard) != row["documents"]:
        raise DataError(
            f"{path} holds {len(shard)} rows, the manifest says {row['documents']}",
            fix="delete the dataset and prepare it again",
        )
    ids = [name for name in shard.columns if name.endswith("ids")]
    for position in range(len(shard)):
        columns = {name: shard.row(name, position) for name in shard.columns}
        own = np.concatenate([np.asarray(columns[n]) for n in ids]) if ids else np.empty(0, np.int64)
        yield Stored(position, own, columns, tokenizer)


@functools.lru_cache(maxsize=4)
def _tokenizer(path: Path) -> Any:
    return load(path.read_text(encoding="utf-8"), str(path))
