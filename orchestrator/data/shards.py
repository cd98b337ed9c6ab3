"""Arrow IPC files, memory-mapped: one flat stream of token ids, and the positions where documents end.

A shard is one record batch of one row with two list columns; reading it copies nothing. The home of pyarrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from orchestrator.errors import DataError

Tokens = npt.NDArray[Any]


@dataclass(frozen=True)
class Shard:
    """An open shard: views into the mapped file."""

    tokens: Tokens
    """[N] unsigned token ids."""
    document_ends: npt.NDArray[np.int64]
    """[documents] position after the last token of each document."""


def write_shard(path: Path, documents: list[Tokens]) -> tuple[int, int]:
    """Write documents as one shard; returns how many tokens and documents it holds."""
    tokens = np.concatenate(documents)
    ends = np.cumsum([len(d) for d in documents], dtype=np.int64)
    columns = [
        pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), pa.array(values))
        for values in (tokens, ends)
    ]
    batch = pa.record_batch(columns, names=["tokens", "document_ends"])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return len(tokens), len(documents)


def open_shard(path: Path) -> Shard:
    """Map a shard into memory; nothing is read until it is used.

    Raises:
        DataError: it is absent or not a shard.
    """
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path), "r")).get_batch(0)
        tokens, ends = (batch.column(name).values.to_numpy() for name in ("tokens", "document_ends"))
    except (OSError, pa.ArrowException, KeyError, IndexError) as error:
        raise DataError(
            f"{path} is not a readable shard: {error}", fix="delete the dataset and prepare it again"
        ) from None
    return Shard(tokens, ends)
