"""The pass behind deduplication: what is known from evaluation sets goes, personal data is replaced or goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.data import splits as split_rules
from orchestrator.data.documents import Document, DocumentWriter, Removed, read_array, read_documents, read_removed
from orchestrator.data.passes.duplicates import Removals
from orchestrator.data.passes.read import SAMPLE_CHARACTERS, SAMPLES, sample_scrubber
from orchestrator.data.refine.contamination import NgramIndex
from orchestrator.data.refine.exact import content_digest
from orchestrator.data.refine.privacy import Scrubber
from orchestrator.data.sources.listing import Listing
from orchestrator.data.sources.rows import Part, read_rows
from orchestrator.data.values import Record, Rejected
from orchestrator.errors import DataError
from orchestrator.job_data import Data, Evaluation, Source

NGRAMS = "ngrams.npy"
EXACT, NEAR, CONTAMINATED, PRIVATE = "exact_duplicate", "near_duplicate", "contaminated", "personal_data"


@dataclass(frozen=True)
class Sifting:
    """What a unit needs to know of all the others."""

    data: Data
    exact: Path
    near: Path
    """Files of `Removals`."""
    against: Path | None
    """The n-grams of the evaluation sets."""
    folders: list[Path]
    starts: list[int]
    """The number of each unit's first document."""

    def id_of(self, number: int) -> bytes:
        """The id of any document."""
        unit = int(np.searchsorted(self.starts, number, side="right")) - 1
        return bytes(read_array(self.folders[unit], "ids")[number - self.starts[unit]])


@dataclass
class _Tally:
    removed: dict[str, list[int]] = field(default_factory=dict)
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    personal: dict[str, int] = field(default_factory=dict)
    with_personal: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    text_bytes: int = 0

    def remove(self, state: str, document: Document, kept: str | None, scrubber: Scrubber) -> None:
        counts = self.removed.setdefault(state, [0, 0])
        counts[0] += 1
        counts[1] += len(document.text.encode())
        own = self.samples.setdefault(state, [])
        if len(own) < SAMPLES:
            text = scrubber.scrub(document.text).text[:SAMPLE_CHARACTERS]
            sample = {"part": document.file, "row": document.row, "text": text}
            own.append(sample | ({"kept_as": kept} if kept else {}))


def sift_unit(folder: Path, number: int, sifting: Sifting) -> dict[str, Any]:
    """Write the documents of one unit that stay, in the form in which they stay."""
    data = sifting.data
    first = sifting.starts[number]
    source = sifting.folders[number]
    duplicates = [(EXACT, _own(sifting.exact, first, source)), (NEAR, _own(sifting.near, first, source))]
    against = NgramIndex.load(sifting.against) if sifting.against else None
    scrubber, shown = Scrubber(data.privacy), sample_scrubber(data.privacy)
    labels_of = _labels_of(data)
    tally, labels = _Tally(), set[str]()
    with DocumentWriter(folder) as writer:
        for removed in read_removed(source):
            writer.remove(removed)
        for at, document in enumerate(read_documents(source), start=first):
            state = next((name for name, found in duplicates if at in found), None)
            kept = sifting.id_of(next(f[at] for _, f in duplicates if at in f)) if state else None
            if state is None and against is not None and against.contains(document.text):
                state = CONTAMINATED
            final, counts = document, dict[str, int]()
            if state is None:
                final, counts = _scrubbed(document, scrubber)
                for kind, count in counts.items():
                    tally.personal[kind] = tally.personal.get(kind, 0) + count
                tally.with_personal += bool(counts)
                if counts and data.privacy.action == "drop":
                    state = PRIVATE
            if state is not None:
                writer.remove(Removed(document.id, document.file, document.row, state, kept))
                tally.remove(state, document, kept.hex() if kept else None, shown)
                continue
            writer.append(final)
            tally.text_bytes += len(final.text.encode())
            split = final.split or split_rules.by_hash(split_digest(final), data.split)
            tally.splits[split] = tally.splits.get(split, 0) + 1
            if labels_of is not None:
                labels.update(labels_of(final.record))
        tally.labels = sorted(labels)
        return {"count": writer.count, **vars(tally)}


def _labels_of(data: Data) -> Callable[[Record], Iterable[str]] | None:
    if data.kind == "text":
        return None
    from orchestrator.data.labelled.kinds import labelled_kind

    return labelled_kind(data).labels_of


def _own(path: Path, first: int, source: Path) -> dict[int, int]:
    count = len(read_array(source, "bytes"))
    return Removals.load(path).between(first, first + count)


def _scrubbed(document: Document, scrubber: Scrubber) -> tuple[Document, dict[str, int]]:
    """The document without personal data, and how much of which kind there was."""
    counts: dict[str, int] = {}
    texts = []
    for text in document.texts:
        scrubbed = scrubber.scrub(text)
        texts.append(scrubbed.text)
        for kind, count in scrubbed.counts.items():
            counts[kind] = counts.get(kind, 0) + count
    if not counts:
        return document, counts
    return document._replace(texts=texts, personal=json.dumps(counts, sort_keys=True)), counts


def split_digest(document: Document) -> bytes:
    """What the hash split looks at: the text as it stays, so that texts which redaction made equal stay together."""
    return content_digest(document.text) if document.personal else document.id


def index_evaluations(folder: Path, listing: Listing, data: Data) -> dict[str, Any]:
    """The n-grams of the evaluation sets.

    Raises:
        DataError: a row of one cannot be read, or holds no text: what is not known cannot be kept out.
    """
    index = NgramIndex.build(_evaluation_texts(listing, data), data.deduplicate.ngram_words)
    index.save(folder / NGRAMS)
    return {"files": len(listing.against)}


def _evaluation_texts(listing: Listing, data: Data) -> Iterator[str]:
    for file in listing.against:
        asked = data.deduplicate.against[file.source]
        source = Source(path=asked.path, format=asked.format)
        for found in read_rows(Part(file), source, limit_bytes=data.max_document_bytes):
            if isinstance(found, Rejected):
                raise _unusable(asked, str(found))
            wanted = found.fields.values() if asked.text is None else [found.fields.get(asked.text)]
            texts = [text for value in wanted for text in _texts_in(value)]
            if not any(text.strip() for text in texts):
                where = f"{file.relative}:{found.number}"
                raise _unusable(asked, f"{where} (no text{f' in the field {asked.text!r}' if asked.text else ''})")
            yield from texts


def _unusable(asked: Evaluation, what: str) -> DataError:
    return DataError(
        f"the evaluation set {asked.path!r} cannot be kept out of the data: {what}",
        fix="check path, format and text under data.deduplicate.against, and mend the file",
    )


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts_in(inner)
    elif isinstance(value, list):
        if value and all(isinstance(item, str) for item in value):
            yield " ".join(value)  # tokens of one sentence
        for inner in value:
            yield from _texts_in(inner) if not isinstance(inner, str) else ()
