"""Small corpora and datasets for tests of preparation."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.data.reading import read_back
from orchestrator.data.sources.listing import list_sources
from orchestrator.data.sources.rows import Part, read_rows
from orchestrator.data.values import Rejected, Row
from orchestrator.job import JobSpec
from orchestrator.job_data import Data, Source
from orchestrator.job_file import load_job
from orchestrator.store import Store

Prepare = Callable[..., dict[str, Any]]


def sentence(rng: random.Random, words: int = 40) -> str:
    return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(words))


def job_of(data: dict[str, Any], folder: Path, **rest: Any) -> JobSpec:
    document = {"name": "data", "data": {"tokenizer": {"vocab_size": 300}, **data}, **rest}
    path = folder / "job.yaml"
    path.write_text(json.dumps(document))
    return load_job(path)


def open_in(store: Store, document: dict[str, Any]) -> Dataset:
    return open_dataset(store.root / document["dataset"])


def texts(dataset: Dataset, split: str | None = None) -> list[str]:
    splits = [split] if split else list(dataset.manifest["splits"])
    return [d.text for s in splits for row in dataset.shard_rows(s) for d in read_back(dataset, row)]


def write_jsonl(path: Path, rows: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def digest_of(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def read_raw(raw: bytes, folder: Path, name: str, *, limit: int = 1 << 20, **source: Any) -> list[Row | Rejected]:
    (folder / name).write_bytes(raw)
    return read_path(folder / name, limit=limit, **source)


def read_path(path: Path, *, limit: int = 1 << 20, columns: list[str] | None = None, **source: Any) -> list[Any]:
    made = Source(path=str(path), **source)
    found: list[Any] = []
    for file in list_sources(Data(sources=[made]), {}).files:
        found += read_rows(Part(file), made, limit_bytes=limit, columns=columns)
    return found


def row_values(found: list[Any]) -> list[Any]:
    return [list(f.fields.values()) if isinstance(f, Row) else str(f) for f in found]
