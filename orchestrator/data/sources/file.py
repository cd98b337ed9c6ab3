"""One file of a source: where it lies, how it is packed and read."""

from __future__ import annotations

import os
from dataclasses import dataclass

from orchestrator.job_data import Format, SplitName

PACKED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
"""Endings of compressed files, and how pyarrow calls what unpacks them."""
REMOTE = ("s3", "gs")
"""Object stores, by their scheme."""


def is_remote(path: str) -> bool:
    """Whether a resolved path lies on an object store."""
    return path.startswith(tuple(f"{scheme}://" for scheme in REMOTE))


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    source: int
    """Number of its source; of an evaluation set, for the files of `Listing.against`."""
    relative: str
    path: str
    """Where it lies: a path, or `s3://` or `gs://`."""
    size_bytes: int
    mtime_ns: int
    format: Format = "text"
    """Never `auto`."""
    split: SplitName | None = None

    @property
    def packing(self) -> str | None:
        """How it is compressed, by its ending."""
        return PACKED.get(os.path.splitext(self.path)[1].lower())
