"""Content hashes: the same inputs give the same name, on any machine and Python. Pure.

A value without a stable form (a set, an object, a NaN) is refused rather than hashed by accident.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from orchestrator.job import JobSpec

DATASET_FORMAT = 1
"""Raised when the same sources and settings would give other shards."""
RUN_FORMAT = 1
"""Raised when the same data, model and settings would give other weights."""
HASH_LENGTH = 12


def canonical(value: Any, *, at: str = "value") -> str:
    """Canonical JSON of plain data: sorted keys, no spaces, shortest floats.

    Raises:
        TypeError: names the place of a value that has no stable form, and the remedy.
    """
    _check(value, at)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_hash(value: Any) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of the canonical form."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:HASH_LENGTH]


def dataset_hash(job: JobSpec, listing: list[list[Any]], tokenizer_sha256: str | None) -> str:
    """Identity of a prepared dataset.

    `listing` has a row for each source file: source number, relative path, bytes, modification time (ns).
    The sequence length is no part of it: shards are one flat stream. Nor is the place of the sources.
    """
    data = job.data.model_dump(mode="json")
    return content_hash(
        {
            "format": DATASET_FORMAT,
            "listing": listing,
            "reading": [{"format": s["format"], "text": s["text"]} for s in data["sources"]],
            "tokenizer": tokenizer_sha256 if job.data.tokenizer.path else data["tokenizer"],
            "split": data["split"],
        }
    )


def run_hash(job: JobSpec, dataset: str) -> str:
    """Identity of a run: data, model and train, without what may change while it goes on."""
    train = job.training.model_dump(mode="json", exclude={"workers", "checkpoint", "log_every_steps"})
    return content_hash(
        {"format": RUN_FORMAT, "dataset": dataset, "model": job.model.model_dump(mode="json"), "train": train}
    )


def wandb_run_id(run_name: str) -> str:
    """A stable id, so that a resumed run is one run in W&B."""
    return f"{run_name}-{content_hash(run_name)[:6]}"[-64:]


def _check(value: Any, at: str) -> None:
    if value is None or isinstance(value, (str, bool, int)):
        return
    if isinstance(value, float):
        if math.isfinite(value):
            return
        raise TypeError(f"{at} is {value}, which has no stable form; leave it out or give a number")
    if isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check(item, f"{at}[{i}]")
        return
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{at} has the key {key!r}, which is no text; convert it with str() first")
            _check(item, f"{at}.{key}")
        return
    raise TypeError(f"{at} is a {type(value).__name__}, which has no stable form; convert it to plain data first")
