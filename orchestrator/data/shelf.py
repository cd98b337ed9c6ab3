"""Shards within reach: where they lie in the store, or, from an object store, in a local cache while they are used."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.data.dataset import Dataset
from orchestrator.data.load.cache import ShardCache
from orchestrator.data.load.mixture import Part
from orchestrator.data.sources.file import is_remote
from orchestrator.job_data import Data


@contextlib.contextmanager
def parts_at_hand(
    dataset: Dataset, split: str, data: Data, *, environ: Mapping[str, str] = os.environ
) -> Iterator[list[Part]]:
    """The shards of a split by source, or by dataset of a mixture, with the weights that a job gives them.

    Raises:
        DataError: a shard cannot be fetched, is not what the manifest says, or the cache has no room.
    """
    weights = [s.weight for s in data.sources] + [d.weight for d in data.datasets]
    rows = dataset.shard_rows(split)
    with contextlib.ExitStack() as leases:
        paths = [leases.enter_context(shard_at_hand(dataset, row, data.cache_bytes, environ=environ)) for row in rows]
        yield [
            Part(name, weight, [path for path, row in zip(paths, rows, strict=True) if row["source"] == number])
            for number, (name, weight) in enumerate(zip(data.part_names, weights, strict=True))
        ]


@contextlib.contextmanager
def shard_at_hand(
    dataset: Dataset, row: dict[str, Any], cache_bytes: int, *, environ: Mapping[str, str] = os.environ
) -> Iterator[Path]:
    """One shard, as the manifest's row names it.

    Raises:
        DataError: as `parts_at_hand`.
    """
    if not is_remote(row["path"]):
        yield dataset.path / row["path"]
        return
    from orchestrator.data.sources.remote import download

    base = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = ShardCache(base / "slipway" / "shards", cache_bytes, download)
    with cache.open(row["path"], row["bytes"], row["sha256"]) as path:
        yield path
