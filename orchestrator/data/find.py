"""Where a document is: `slipway data find`. By its id or its whole text through the ledger, else by a piece of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.data.documents import ID_BYTES
from orchestrator.data.ledger import KEPT, entry_at, find_ids
from orchestrator.data.reading import Stored, read_back
from orchestrator.data.refine.clean import Cleaner
from orchestrator.data.refine.exact import content_digest
from orchestrator.data.refine.privacy import Scrubber
from orchestrator.errors import DataError, JobError, SlipwayError, StoreError
from orchestrator.job_data import Data
from orchestrator.runfolder import dataset_of
from orchestrator.store import Store, is_committed
from orchestrator.track.progress import bar, say

_ID = re.compile(r"[0-9a-f]{8,32}")
_MIN_PIECE_CHARACTERS = 8
"""A shorter piece stands everywhere."""


def find(store: Store, asked: str) -> dict[str, Any]:
    """Every place of a document in the datasets of a store, and the runs that trained on it.

    Raises:
        StoreError: the store has no dataset.
        JobError: what is asked for is not UTF-8.
    """
    if any("\ud800" <= c <= "\udfff" for c in asked):
        raise JobError("the text that is asked for is not UTF-8", fix="convert it first, such as with iconv")
    folders = [path for path in sorted(store.datasets.glob("*")) if is_committed(path)]
    if not folders:
        raise StoreError(f"there is no dataset in {store.root}", fix="check --store")
    datasets, skipped = [], []
    for path in folders:
        try:
            datasets.append(open_dataset(path, verify=False))
        except DataError as error:
            skipped.append({"dataset": store.relative(path), "reason": error.message})
            say(f"not searched: {error.message}")
    runs = _runs(store)
    matches = []
    for dataset in datasets:
        for entry in _in_ledger(dataset, asked) or list(_by_piece(dataset, asked)):
            matches.append({"dataset": store.relative(dataset.path), **entry, "runs": _trained(dataset, entry, runs)})
    return {"asked": asked, "found": len(matches), "matches": matches, "skipped": skipped}


def _in_ledger(dataset: Dataset, asked: str) -> list[dict[str, Any]]:
    """By id, or by the whole text: as it was in the source, or as it is in the dataset."""
    if "components" in dataset.manifest:
        return []  # its documents stand in the ledgers of the datasets that it mixes
    if _ID.fullmatch(asked):
        whole = bytes.fromhex(asked[: len(asked) // 2 * 2])
        entries = find_ids(dataset.ledger_paths, [whole], prefix=len(whole) < ID_BYTES)
        if found := [_shown(e) for e in entries if e["id"].hex().startswith(asked)]:
            return found
    settings = Data.model_validate(dataset.manifest["settings"])
    cleaner = Cleaner(settings.clean)
    texts = {asked, cleaner.normalise(asked), cleaner.clean(asked).text}
    return [_shown(e) for e in find_ids(dataset.ledger_paths, sorted({content_digest(t) for t in texts}))]


def _shown(entry: dict[str, Any]) -> dict[str, Any]:
    kept_as = entry.pop("kept_as")
    shown = {**entry, "id": entry["id"].hex(), "match": "document"}
    return shown | ({"kept_as": kept_as.hex()} if kept_as else {})


def _by_piece(dataset: Dataset, asked: str) -> Iterator[dict[str, Any]]:
    """By a part of the text, through all shards: minutes for gigabytes."""
    if "components" in dataset.manifest:
        return
    settings = Data.model_validate(dataset.manifest["settings"])
    piece = Cleaner(settings.clean).normalise(asked)
    pieces = {p for p in (piece, Scrubber(settings.privacy).scrub(piece).text) if _tells(p)}
    if not pieces:
        return
    rows = [(split, row) for split in dataset.manifest["splits"] for row in dataset.shard_rows(split)]
    with bar(f"search {dataset.path.name}", len(rows), unit="shards") as update:
        for done, (split, row) in enumerate(rows, start=1):
            for document in read_back(dataset, row):
                text = "\n".join(v for v in document.shown().values() if isinstance(v, str))
                if any(p in text for p in pieces):
                    yield _entry(dataset, split, row, document)
            update(done, "")


def _tells(piece: str) -> bool:
    """Whether a piece can be searched for: not one that stands everywhere, such as a placeholder."""
    return len(re.sub("<[A-Z_]+>", "", piece).strip()) >= _MIN_PIECE_CHARACTERS


def _entry(dataset: Dataset, split: str, row: dict[str, Any], document: Stored) -> dict[str, Any]:
    """What the ledger says of a document that was found in its shard; its unit's number is in the shard's name."""
    shard = Path(row["path"]).name
    found = entry_at(dataset.path / "ledger" / f"{shard.split('-')[1]}.arrow", shard, document.position)
    own = _shown(found) if found else {"state": KEPT, "split": split, "shard": shard, "position": document.position}
    return {**own, "match": "piece"}


def _runs(store: Store) -> list[tuple[str, Path]]:
    """(run, folder of its dataset) of every run of the store that has begun to train."""
    found = []
    for folder in sorted(store.runs.glob("*")):
        if (folder / "job.yaml").is_file() and (folder / "metrics.jsonl").is_file():
            try:
                found.append((store.relative(folder), dataset_of(folder)))
            except SlipwayError:
                continue
    return found


def _trained(dataset: Dataset, entry: dict[str, Any], runs: list[tuple[str, Path]]) -> list[str]:
    """The runs that trained on a document: on its dataset, or on a mixture with it in."""
    if entry["state"] != KEPT or entry["split"] != "train":
        return []
    own = dataset.path.resolve()
    return [run for run, path in runs if path == own or own in _components(path)]


def _components(path: Path) -> list[Path]:
    try:
        manifest = open_dataset(path, verify=False).manifest
    except SlipwayError:
        return []
    return [(path / one["place"]).resolve() for one in manifest.get("components", [])]
