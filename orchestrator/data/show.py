"""What `slipway prepare` and `slipway data` say of a dataset."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.data.load.order import permute
from orchestrator.data.reading import read_back
from orchestrator.data.splits import TRAIN
from orchestrator.errors import DataError, JobError
from orchestrator.store import Store, is_committed, verify_folder


def summary(dataset: Dataset) -> dict[str, Any]:
    """The counts of a dataset: what `prepare --json` prints beside its name."""
    found = dataset.manifest["counts"]
    return {
        "documents": found["documents"],
        "tokens": sum(split["tokens"] for split in dataset.manifest["splits"].values()),
        "train_tokens": dataset.tokens(TRAIN),
        "removed": found["removed"],
        "personal_data": found["personal_data"],
        "rejected": found["rejected"],
        "report": str(dataset.path / "report.json"),
        **_timing(dataset.path),
    }


def _timing(path: Path) -> dict[str, Any]:
    """How long it took to make, where that was noted."""
    try:
        timing = json.loads((path.parent / f".{path.name}.timing.json").read_text(encoding="utf-8"))
        return {key: timing[key] for key in ("seconds", "tokens_per_s")}
    except (OSError, ValueError, KeyError):
        return {}


def list_datasets(store: Store) -> list[dict[str, Any]]:
    """A row for each dataset of a store."""
    rows = []
    for path in sorted(store.datasets.glob("*")):
        if not is_committed(path):
            continue
        try:
            dataset = open_dataset(path, verify=False)
        except DataError as error:
            rows.append({"dataset": store.relative(path), "kind": None, "error": error.message})
            continue
        counts = summary(dataset)
        rows.append(
            {
                "dataset": store.relative(path),
                "kind": dataset.kind,
                **{key: counts[key] for key in ("documents", "tokens", "train_tokens", "rejected")},
            }
        )
    return rows


def show(dataset: Dataset, store: Store) -> dict[str, Any]:
    """All of `report.json`, and what the dataset is."""
    report = json.loads((dataset.path / "report.json").read_text(encoding="utf-8"))
    timing = {}
    path = dataset.path.parent / f".{dataset.path.name}.timing.json"
    if path.is_file():
        timing = json.loads(path.read_text(encoding="utf-8"))
    return {
        "dataset": store.relative(dataset.path),
        "kind": dataset.kind,
        "hash": dataset.hash,
        "vocab_size": dataset.vocab_size,
        **summary(dataset),
        "details": report,
        "timing": timing,
    }


def verify(path: Path) -> dict[str, Any]:
    """Check every byte of a dataset, and that its shards can be read and add up.

    Raises:
        DataError: names the first file that is absent, altered or unreadable.
    """
    verify_folder(path, DataError)
    dataset = open_dataset(path)
    checked = 0
    for split in dataset.manifest["splits"]:
        for row in dataset.shard_rows(split):
            for document in read_back(dataset, row):
                checked += len(document.ids)
    expected = sum(split["tokens"] for split in dataset.manifest["splits"].values())
    if checked != expected:
        raise DataError(
            f"{path} holds {checked} tokens, its manifest says {expected}", fix=f"delete {path} and prepare it again"
        )
    return {"files": len(dataset.manifest["files"]), "tokens": checked}


def sample(dataset: Dataset, *, split: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Some documents of a split as text, chosen by a seed.

    Raises:
        JobError: there is no such split.
    """
    rows = dataset.shard_rows(split)
    total = sum(row["documents"] for row in rows)
    if not total:
        there = ", ".join(name for name, s in dataset.manifest["splits"].items() if s["documents"])
        raise JobError(
            f"the dataset has no documents in the split {split!r}; there are {there}", fix="name one of these"
        )
    wanted = np.sort(permute(np.arange(min(count, total)), total, seed, 0))
    starts = [0, *itertools.accumulate(row["documents"] for row in rows)]
    found = []
    for number in wanted.tolist():
        shard = next(i for i in range(len(rows)) if starts[i + 1] > number)
        document = next(itertools.islice(read_back(dataset, rows[shard]), number - starts[shard], None))
        found.append({"shard": rows[shard]["path"], "position": number - starts[shard], **document.shown()})
    return found
