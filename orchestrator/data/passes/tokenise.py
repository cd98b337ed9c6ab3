"""The last pass: documents to shards, and the ledger of where each one is."""

from __future__ import annotations

import abc
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.data.documents import SPLIT_CODES, Document, read_array, read_documents, read_removed
from orchestrator.data.ledger import KEPT, Entry, LedgerWriter, Origin, removed_entries
from orchestrator.data.passes.sift import split_digest
from orchestrator.data.shards import write_shard
from orchestrator.data.splits import TRAIN, SplitDecision
from orchestrator.data.tokens.facts import TokenizerFacts
from orchestrator.data.tokens.tokenizer import Encoder
from orchestrator.data.tokens.train import train_tokenizer
from orchestrator.job_data import Data

_BATCH_BYTES = 8 << 20
_SHARD_BYTES = 64 << 20
"""Text of one shard, about: what a task has to hold in memory as tokens."""
LENGTH_BINS = 32
"""Documents by the binary logarithm of their tokens."""
LEDGER = "ledger.arrow"


@dataclass(frozen=True)
class Tokenising:
    """What all units share."""

    data: Data
    decision: SplitDecision
    tokenizer: str
    known: TokenizerFacts
    labels: list[str]


@dataclass
class _Batch:
    """Documents of one split that wait to be encoded."""

    pieces: list[tuple[Document, str]] = field(default_factory=list)
    text_bytes: int = 0


@dataclass
class _Shards:
    """The shards of one split of one unit."""

    folder: Path
    split: str
    unit: int
    held: list[Any] = field(default_factory=list)
    sentence_ends: list[Any] = field(default_factory=list)
    held_bytes: int = 0
    personal: dict[str, int] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    tokens_in_shard: int = 0

    @property
    def name(self) -> str:
        """The file that is being filled."""
        return f"{self.split}-{self.unit:05d}-{len(self.rows):03d}.arrow"

    def add_personal(self, personal: str) -> None:
        for kind, count in json.loads(personal).items() if personal else ():
            self.personal[kind] = self.personal.get(kind, 0) + count

    def close(self, tokens: int, documents: int) -> None:
        """Note the shard that was written, and begin the next."""
        row = {"path": self.name, "tokens": tokens, "documents": documents}
        self.rows.append(row | ({"personal_data": self.personal} if self.personal else {}))
        self.held, self.sentence_ends, self.held_bytes, self.personal, self.tokens_in_shard = [], [], 0, {}, 0


def train_unit(folder: Path, folders: list[Path], data: Data, decision: SplitDecision) -> dict[str, Any]:
    """Train the tokenizer on a sample of the training split, chosen by content, of at most `sample_bytes`."""
    chosen = _chosen(folders, data.tokenizer.sample_bytes, decision)
    left = data.tokenizer.sample_bytes

    def texts() -> Iterator[str]:
        nonlocal left
        for unit in folders:
            for document in read_documents(unit):
                if chosen is not None and document.id not in chosen:
                    continue
                for name, text in _pieces(document, decision, data):
                    if name == TRAIN and left > 0:
                        yield text[:left]
                        left -= len(text.encode())

    chat = data.kind in ("chat", "preference")
    (folder / "tokenizer.json").write_text(train_tokenizer(texts(), data.tokenizer, chat=chat), encoding="utf-8")
    return {"sampled_bytes": data.tokenizer.sample_bytes - left}


def _chosen(folders: list[Path], budget_bytes: int, decision: SplitDecision) -> set[bytes] | None:
    """The ids of documents for training, in the order of their last 64 bits, until the budget is full; None: all."""
    ids = np.concatenate([read_array(unit, "ids") for unit in folders])
    sizes = np.concatenate([read_array(unit, "bytes") for unit in folders])
    splits = np.concatenate([read_array(unit, "splits") for unit in folders])
    if sizes.sum() <= budget_bytes:
        return None
    chosen: set[bytes] = set()
    held = 0
    for at in np.argsort(np.ascontiguousarray(ids[:, 8:]).view(">u8")[:, 0], kind="stable").tolist():
        own = ids[at].tobytes()
        given = splits[at] != SPLIT_CODES[""]
        if splits[at] == SPLIT_CODES[TRAIN] or (not given and decision.split_of(own) == TRAIN):
            chosen.add(own)
            held += int(sizes[at])
            if held >= budget_bytes:
                break
    return chosen


def _pieces(document: Document, decision: SplitDecision, data: Data) -> list[tuple[str, str]]:
    """(split, text) of a document: one, but for the one that is cut."""
    if document.split:
        return [(document.split, document.text)]
    if data.kind != "text":
        return [(decision.split_of(split_digest(document)), document.text)]
    return decision.pieces(split_digest(document), document.text)


def tokenise_unit(
    folder: Path, number: int, documents: Path, origins: list[Origin], settings: Tokenising
) -> dict[str, Any]:
    """Write the shards of one unit and its part of the ledger."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a task has one core; waking other threads costs more than it gives
    began_at = time.process_time()
    with LedgerWriter(folder / LEDGER) as ledger:
        kind = _TextWriter if settings.data.kind == "text" else _RowWriter
        writer = kind(folder, number, origins, settings, ledger)
        _write_all(writer, documents, settings)
        for entry in removed_entries(read_removed(documents), origins):
            ledger.append(entry)
    return {
        "shards": {split: shards.rows for split, shards in sorted(writer.shards.items())},
        "text_bytes": dict(sorted(writer.text_bytes.items())),
        "lengths": {split: counts.tolist() for split, counts in sorted(writer.lengths.items())},
        "longest": dict(sorted(writer.longest.items())),
        "cpu_s": round(time.process_time() - began_at, 4),
    }


def _write_all(writer: _Writer, documents: Path, settings: Tokenising) -> None:
    batches: dict[str, _Batch] = {}
    for document in read_documents(documents):
        for split, text in _pieces(document, settings.decision, settings.data):
            batch = batches.setdefault(split, _Batch())
            batch.pieces.append((document, text))
            batch.text_bytes += len(text) + len(document.labels)
            if batch.text_bytes >= _BATCH_BYTES:
                writer.write(split, batches.pop(split).pieces)
    for split, batch in batches.items():
        writer.write(split, batch.pieces)
    writer.finish()


_encoders: dict[tuple[str, str | None], Encoder] = {}


def _encoder_for(settings: Tokenising) -> Encoder:
    """One for all units of a process: the words that it has met make it fast."""
    key = settings.known.sha256, settings.known.chat_template
    if key not in _encoders:
        _encoders.clear()
        _encoders[key] = Encoder(settings.tokenizer, settings.known)
    return _encoders[key]


class _Writer(abc.ABC):
    """What text and rows share: shards by split, counts, the ledger."""

    def __init__(
        self, folder: Path, number: int, origins: list[Origin], settings: Tokenising, ledger: LedgerWriter
    ) -> None:
        self._ledger = ledger
        self._folder, self._number, self._origins, self._settings = folder, number, origins, settings
        self._encoder = _encoder_for(settings)
        self.shards: dict[str, _Shards] = {}
        self.text_bytes: dict[str, int] = {}
        self.lengths: dict[str, Any] = {}
        self.longest: dict[str, int] = {}

    @abc.abstractmethod
    def write(self, split: str, pieces: list[tuple[Document, str]]) -> None:
        """Take a batch of documents of one split."""

    @abc.abstractmethod
    def _write_shard(self, shards: _Shards) -> None:
        """Write what is held of a split, and begin its next shard."""

    def finish(self) -> None:
        """Write what is held."""
        for shards in self.shards.values():
            if shards.held:
                self._write_shard(shards)

    def _open(self, split: str) -> _Shards:
        return self.shards.setdefault(split, _Shards(self._folder, split, self._number))

    def _note(self, shards: _Shards, document: Document, text: str, tokens: int) -> None:
        """One document has found its place."""
        split, origin = shards.split, self._origins[document.file]
        self.text_bytes[split] = self.text_bytes.get(split, 0) + len(text.encode())
        counts = self.lengths.setdefault(split, np.zeros(LENGTH_BINS, dtype=np.int64))
        counts[min(LENGTH_BINS - 1, max(1, tokens).bit_length() - 1)] += 1
        self.longest[split] = max(self.longest.get(split, 0), tokens)
        shards.add_personal(document.personal)
        entry = Entry(
            document.id,
            KEPT,
            origin.source,
            origin.file,
            document.row + origin.base_row,
            split,
            shards.name,
            len(shards.held),
            shards.tokens_in_shard,
            tokens,
        )
        self._ledger.append(entry)
        shards.tokens_in_shard += tokens


class _TextWriter(_Writer):
    """Flat streams of tokens."""

    def write(self, split: str, pieces: list[tuple[Document, str]]) -> None:
        """Encode a batch and add it to the split's shard."""
        shards = self._open(split)
        texts = [text for _, text in pieces]
        ends = None
        if self._settings.data.sentence_ends:
            both = self._encoder.encode_with_sentences(texts)
            encoded, ends = [ids for ids, _ in both], [own for _, own in both]
        else:
            encoded = self._encoder.encode(texts)
        for i, ((document, text), tokens) in enumerate(zip(pieces, encoded, strict=True)):
            self._note(shards, document, text, len(tokens))
            shards.held.append(tokens)
            shards.held_bytes += len(text)
            if ends is not None:
                shards.sentence_ends.append(ends[i])
            if shards.held_bytes >= _SHARD_BYTES:
                self._write_shard(shards)

    def _write_shard(self, shards: _Shards) -> None:
        ends = shards.sentence_ends if self._settings.data.sentence_ends else None
        shards.close(*write_shard(self._folder / shards.name, shards.held, ends))


class _RowWriter(_Writer):
    """Arrow rows: ids, labels, spans."""

    def __init__(
        self, folder: Path, number: int, origins: list[Origin], settings: Tokenising, ledger: LedgerWriter
    ) -> None:
        super().__init__(folder, number, origins, settings, ledger)
        from orchestrator.data.labelled.kinds import labelled_kind

        self._kind = labelled_kind(settings.data)

    def write(self, split: str, pieces: list[tuple[Document, str]]) -> None:
        """Note a batch; rows are encoded shard by shard."""
        shards = self._open(split)
        for document, text in pieces:
            shards.held.append((document, text))
            shards.held_bytes += len(text) + len(document.labels)
            if shards.held_bytes >= _SHARD_BYTES:
                self._write_shard(shards)

    def _write_shard(self, shards: _Shards) -> None:
        from orchestrator.data.labelled.shards import write_rows

        held, shards.held = shards.held, []
        columns = self._kind.encode([d.record for d, _ in held], self._encoder, self._settings.labels)
        lengths = self._kind.lengths(columns)
        for (document, text), tokens in zip(held, lengths, strict=True):
            self._note(shards, document, text, int(tokens))
            shards.held.append(None)
        write_rows(self._folder / shards.name, columns, {"kind": self._settings.data.kind})
        shards.close(int(sum(lengths)), len(held))
