"""Runs beside each other, and the words by which people find them again. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import JobError, StoreError
from orchestrator.job_file import load_job
from orchestrator.status import account_for_run
from orchestrator.store import Store, write_json

_TAGS = "tags.json"
_SHOWN = ("state", "step", "steps", "train_loss", "validation_loss", "tokens_per_s", "wall_s", "cost")
_LONGEST_TAG = 64


def compare_runs(runs: Sequence[Path], store: Store) -> dict[str, Any]:
    """What runs came to, and where their jobs differ.

    Returns:
        `{"runs": [{"run", "tags", "state", "step", ..., "goodput"}], "differences": [{"key", "values"}]}`; the values
        stand in the order of the runs, null where a job has no such key.

    Raises:
        JobError: a run's job file is not of this version.
        StoreError: its tags cannot be read.
    """
    rows = []
    for run in runs:
        told = account_for_run(run, store)
        numbers = {name: told[name] for name in _SHOWN}
        row = {"run": told["run"], "tags": read_tags(run), **numbers, "goodput": told["goodput"]["fraction"]}
        rows.append(row)
    jobs = [load_job(run / "job.yaml").model_dump(mode="json", by_alias=True) for run in runs]
    return {"runs": rows, "differences": differences(jobs)}


def differences(documents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The keys, dotted, whose values are not the same in all documents; lists are values. Pure."""
    flat = [dict(_flattened(document)) for document in documents]
    keys = dict.fromkeys(key for one in flat for key in one)
    found = []
    for key in keys:
        values = [one.get(key) for one in flat]
        if any(value != values[0] for value in values):
            found.append({"key": key, "values": values})
    return found


def _flattened(document: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def read_tags(run: Path) -> list[str]:
    """The tags of a run, sorted.

    Raises:
        StoreError: the file is garbled.
    """
    path = run / _TAGS
    try:
        return [str(tag) for tag in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(f"{path} cannot be read: {error}", fix=f"delete it, and tag {run.name} again") from None


def tag_run(run: Path, *, add: Sequence[str], remove: Sequence[str]) -> list[str]:
    """Change a run's tags; returns those that it has then.

    Raises:
        JobError: what is to be added is no word, or it has none of those to be removed.
        StoreError: the file is garbled.
    """
    for tag in add:
        if not tag or len(tag) > _LONGEST_TAG or not tag.isprintable() or any(c.isspace() or c == "," for c in tag):
            raise JobError(
                f"{tag!r} is no tag", fix=f"a word of up to {_LONGEST_TAG} characters, without spaces and commas"
            )
    before = read_tags(run)
    if absent := sorted(set(remove) - set(before)):
        have = ", ".join(before) or "none"
        raise JobError(f"{run.name} has no tag {', '.join(absent)}; it has {have}", fix="name one of these")
    after = sorted((set(before) | set(add)) - set(remove))
    if after != before:
        write_json(run / _TAGS, after)
    return after
