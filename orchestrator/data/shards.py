"""Arrow IPC files, memory-mapped: one flat stream of token ids, and the positions where documents end.

A shard is one record batch of one row with list columns; reading it copies nothing.
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
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shard:
    """An open shard: views into the mapped file."""

    tokens: Tokens
    """[N] unsigned token ids."""
    document_ends: Positions
    """[documents] position after the last token of each document."""
    sentence_ends: Positions | None = None
    """[sentences] position after the last token of each sentence, document ends among them; None: not noted."""


def write_shard(path: Path, documents: list[Tokens], sentence_ends: list[Positions] | None = None) -> tuple[int, int]:
    """Write documents as one shard; returns how many tokens and documents it holds.

    `sentence_ends` are positions in each document, the end of the document last.
    """
    tokens = np.concatenate(documents)
    ends = np.cumsum([len(d) for d in documents], dtype=np.int64)
    columns = {"tokens": tokens, "document_ends": ends}
    if sentence_ends is not None:
        starts = [0, *ends[:-1].tolist()]
        columns["sentence_ends"] = np.concatenate(
            [np.asarray(own, dtype=np.int64) + start for own, start in zip(sentence_ends, starts, strict=True)]
        )
    arrays = [
        pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), pa.array(values))
        for values in columns.values()
    ]
    batch = pa.record_batch(arrays, names=list(columns))
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
        noted = "sentence_ends" in batch.schema.names
        sentences = batch.column("sentence_ends").values.to_numpy() if noted else None
    except (OSError, pa.ArrowException, KeyError, IndexError, AttributeError) as error:
        raise DataError(
            f"{path} is not a readable shard: {error}", fix="delete the dataset and prepare it again"
        ) from None
    return Shard(tokens, ends, sentences)
