"""Content hashes: the same inputs give the same name, on any machine and Python. Pure.

A value without a stable form (a set, an object, a NaN) is refused rather than hashed by accident.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from orchestrator.job import JobSpec

DATASET_FORMAT = 2
"""Raised when the same sources and settings would give other shards."""
RUN_FORMAT = 2
"""Raised when the same data, model and settings would give other weights."""
HASH_LENGTH = 12
_NOT_OF_A_RUN = {"workers", "checkpoint", "retries", "watchdog", "guard", "log_every_steps"}
"""Keys of `train` that may change while a run goes on."""


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


def dataset_hash(
    job: JobSpec,
    listing: list[list[Any]],
    tokenizer_sha256: str | None,
    *,
    against: list[list[Any]] | None = None,
    template_sha256: str | None = None,
) -> str:
    """Identity of a prepared dataset.

    `listing` and `against` have a row for each file of the sources and of the evaluation sets: number of the source,
    relative path, bytes, modification time (ns). `template_sha256` is of a chat template in a file. The sequence length
    is no part of it: shards are one flat stream. Nor are the place of the sources, their weights, and what is only a
    limit.
    """
    data = job.data.model_dump(mode="json", exclude={"curriculum", "max_rejected", "cache_bytes", "datasets"})
    places = {"path", "include", "exclude", "weight", "name"}
    data["sources"] = [{k: v for k, v in source.items() if k not in places} for source in data["sources"]]
    for evaluation in data["deduplicate"]["against"]:
        del evaluation["path"]
    if job.data.tokenizer.path:
        data["tokenizer"] = {"sha256": tokenizer_sha256, "chat_template": job.data.tokenizer.chat_template}
    if template_sha256:
        data["tokenizer"]["chat_template"] = template_sha256
    names = job.data.part_names
    content = {"format": DATASET_FORMAT, "listing": listing, "against": against or [], "names": names, "data": data}
    return content_hash(content)


def mixture_hash(job: JobSpec, datasets: list[str]) -> str:
    """Identity of a mixture of prepared datasets, given their hashes."""
    return content_hash({"format": DATASET_FORMAT, "datasets": datasets, "names": job.data.part_names})


def run_hash(job: JobSpec, dataset: str, *, origin: str | None = None) -> str:
    """Identity of a run: data, model and train, without what may change while it goes on.

    `origin` is the identity of the weights that `train.from` names; where these lie is no part of it.
    """
    train = job.training.model_dump(mode="json", exclude=_NOT_OF_A_RUN)
    train["from"] = origin
    content = {"format": RUN_FORMAT, "dataset": dataset, "model": job.model.model_dump(mode="json"), "train": train}
    weights = [s.weight for s in job.data.sources] + [d.weight for d in job.data.datasets]
    if any(weights) or job.data.curriculum:  # the order of the samples
        content["mixture"] = weights
        content["curriculum"] = [phase.model_dump(mode="json") for phase in job.data.curriculum]
    return content_hash(content)


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
