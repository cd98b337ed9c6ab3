"""A mixture of prepared datasets as a dataset: a manifest that names theirs. No shard is written again."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.data.dataset import FORMAT, open_dataset
from orchestrator.data.sources.file import is_remote
from orchestrator.errors import DataError
from orchestrator.job import JobSpec
from orchestrator.job_data import Data
from orchestrator.job_file import environment, resolve_env
from orchestrator.store import MANIFEST, MARKER, Store, commit, write_json, writing


@dataclass(frozen=True)
class Found:
    """One part of a mixture."""

    place: str
    """A folder, or a URI."""
    manifest: dict[str, Any]
    tokenizer: str


def find_components(data: Data, store: Store) -> list[Found]:
    """The datasets that a job mixes.

    Raises:
        StoreError, DataError: one is not there, not complete, or not of this version.
    """
    asked = [resolve_env(component.dataset, environment()) for component in data.datasets]
    return [_remote(place) if is_remote(place) else _local(place, store) for place in asked]


def _local(asked: str, store: Store) -> Found:
    folder = store.find_dataset(asked)
    dataset = open_dataset(folder, verify=False)
    if "components" in dataset.manifest:
        raise DataError(f"{asked} is a mixture itself", fix="name the datasets that it mixes")
    return Found(str(folder), dataset.manifest, dataset.tokenizer_path.read_text(encoding="utf-8"))


def _remote(uri: str) -> Found:
    from orchestrator.data.sources.remote import read_bytes

    place = uri.rstrip("/")
    try:
        read_bytes(f"{place}/{MARKER}")
        manifest = json.loads(read_bytes(f"{place}/{MANIFEST}"))
    except ValueError:
        raise DataError(f"{uri} holds no manifest of a dataset", fix="copy the whole folder of the dataset") from None
    if manifest.get("format") != FORMAT:
        raise DataError(f"{uri} is not a dataset of this version", fix="prepare and copy it again")
    return Found(place, manifest, read_bytes(f"{place}/tokenizer.json").decode("utf-8"))


def mix_datasets(job: JobSpec, store: Store, final: Path, identity: str) -> None:
    """Write the manifest of a mixture as a dataset of its own.

    Raises:
        DataError: the datasets are not of one tokenizer and one kind.
    """
    found = find_components(job.data, store)
    _require_alike(found, "kind", [one.manifest["kind"] for one in found])
    _require_alike(found, "tokenizer", [one.manifest["tokenizer"]["sha256"] for one in found])
    _require_alike(found, "chat template", [str(one.manifest["tokenizer"]["chat_template"]) for one in found])
    _require_alike(found, "list of labels", [", ".join(one.manifest["labels"]) for one in found])
    _require_alike(found, "columns", [str(one.manifest["settings"]["columns"]) for one in found])
    if job.data.kind != found[0].manifest["kind"]:
        raise DataError(
            f"data.kind is {job.data.kind}, but the datasets are of kind {found[0].manifest['kind']}",
            fix=f"set data.kind: {found[0].manifest['kind']}",
        )
    names = job.data.part_names
    first = found[0].manifest
    shared = {key: first[key] for key in ("kind", "tokenizer", "vocab_size", "eos_token", "eos_token_id", "labels")}
    with writing(final) as folder:
        (folder / "tokenizer.json").write_text(found[0].tokenizer, encoding="utf-8")
        facts = {
            **shared,
            "splits": _splits(found, final),
            "components": [
                {"name": name, "hash": one.manifest["hash"], "place": _seen_from(final, one.place, "")}
                for name, one in zip(names, found, strict=True)
            ],
            "sources": {"names": names, "files": 0, "bytes": 0},
            "counts": _counts(found),
            "settings": job.data.model_dump(mode="json"),
        }
        write_json(folder / "report.json", {"mixture": facts["components"], **facts["counts"]})
        commit(folder, final, {"format": FORMAT, "name": job.name, "hash": identity, **facts})


def _require_alike(found: list[Found], what: str, values: list[str]) -> None:
    for one, value in zip(found, values, strict=True):
        if value != values[0]:
            raise DataError(
                f"{one.place} has another {what} than {found[0].place}: {value[:60]!r} and {values[0][:60]!r}",
                fix=f"prepare both with one {what}" + (", through data.tokenizer.path" if what == "tokenizer" else ""),
            )


def _splits(found: list[Found], final: Path) -> dict[str, Any]:
    splits: dict[str, Any] = {}
    for number, one in enumerate(found):
        files = {row["path"]: row for row in one.manifest["files"]}
        for name, split in one.manifest["splits"].items():
            own = splits.setdefault(name, {"tokens": 0, "documents": 0, "shards": []})
            own["tokens"] += split["tokens"]
            own["documents"] += split["documents"]
            for row in split["shards"]:
                place = _seen_from(final, one.place, row["path"])
                checks = {key: files[row["path"]][key] for key in ("bytes", "sha256")}
                own["shards"].append({**row, **checks, "path": place, "source": number})
    return splits


def _seen_from(final: Path, place: str, path: str) -> str:
    """A place as the mixture's manifest writes it: relative within one store, so that the store may move."""
    whole = f"{place}/{path}".rstrip("/")
    if is_remote(place) or Path(place).parent.resolve() != final.parent.resolve():
        return whole
    return os.path.join("..", os.path.relpath(whole, Path(place).parent))


def _counts(found: list[Found]) -> dict[str, Any]:
    """Sums over the parts."""
    parts = [one.manifest["counts"] for one in found]

    def total(key: str) -> dict[str, int]:
        sums: dict[str, int] = {}
        for part in parts:
            for name, count in part[key].items():
                sums[name] = sums.get(name, 0) + count
        return sums

    single = {key: sum(part[key] for part in parts) for key in ("read", "documents", "rejected")}
    return {**single, "removed": total("removed"), "personal_data": total("personal_data")}
