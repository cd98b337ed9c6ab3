"""The first pass: files to clean documents, with what later passes compare documents by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.data.documents import SIGNATURE_DTYPE, Document, DocumentWriter, Removed
from orchestrator.data.refine.clean import Cleaner
from orchestrator.data.refine.exact import content_digest
from orchestrator.data.refine.minhash import signature
from orchestrator.data.refine.privacy import Scrubber
from orchestrator.data.sources.file import SourceFile, is_remote
from orchestrator.data.sources.rows import Part, RowCount, read_rows
from orchestrator.data.tokens.facts import TokenizerFacts
from orchestrator.data.values import Record, Rejected, Row, RowError
from orchestrator.job_data import Data, Near, Privacy, Source

if TYPE_CHECKING:
    from orchestrator.data.labelled.protocol import LabelledKind

SAMPLES = 3
"""Documents that are shown for each rule."""
SAMPLE_CHARACTERS = 200
_HASH_BLOCK_BYTES = 1 << 20
_SPANS = ("token-classification", "question-answering", "columns")


@dataclass
class _Tally:
    """What one unit's report will say."""

    documents: int = 0
    text_bytes: int = 0
    removed: dict[str, list[int]] = field(default_factory=dict)
    """rule -> [documents, bytes]"""
    mended: dict[str, list[int]] = field(default_factory=dict)
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    rejected_count: int = 0
    part_rows: list[int] = field(default_factory=list)
    file_sha256: list[str | None] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def add(self, table: dict[str, list[int]], rule: str, size_bytes: int) -> None:
        counts = table.setdefault(rule, [0, 0])
        counts[0] += 1
        counts[1] += size_bytes

    def sample(self, rule: str, found: dict[str, Any], scrubber: Scrubber) -> None:
        """Show a document. A report is read by many: what is personal is searched for in the whole text, then cut."""
        own = self.samples.setdefault(rule, [])
        if len(own) < SAMPLES:
            own.append({**found, "text": scrubber.scrub(found["text"]).text[:SAMPLE_CHARACTERS]})

    def reject(self, number: int, rejected: Rejected, limit: int) -> None:
        self.rejected_count += 1
        if len(self.rejected) <= limit:
            self.rejected.append({"part": number, "row": rejected.row, "reason": rejected.reason})


def read_unit(folder: Path, unit: list[Part], data: Data, known: TokenizerFacts | None) -> dict[str, Any]:
    """Read, clean and note one unit; what cannot be read is counted and named. `known`: a tokenizer that was given.

    Raises:
        DataError: a file changed or vanished while it was read.
    """
    reader = _Reader(data, known)
    with ExitStack() as stack:
        writer = stack.enter_context(DocumentWriter(folder))
        signatures = stack.enter_context((folder / "signatures").open("wb")) if reader.near else None
        for number, part in enumerate(unit):
            source = data.sources[part.file.source]
            rows = RowCount()
            for found in reader.rows(part, source, rows):
                document = reader.document(found, part, number, source)
                if isinstance(document, Rejected):
                    reader.tally.reject(number, document, data.max_rejected)
                elif isinstance(document, Removed):
                    writer.remove(document)
                else:
                    writer.append(document, digest=reader.digest(document))
                    if signatures is not None and reader.near is not None:
                        values = signature(document.text, shingle_words=reader.near.shingle_words)
                        signatures.write(values.astype(SIGNATURE_DTYPE, copy=False).tobytes())
            reader.tally.part_rows.append(rows.last)
            reader.tally.file_sha256.append(_sha256(part.file) if part.start == 0 else None)
        return {"count": writer.count, **vars(reader.tally)}


class _Reader:
    """Rows to documents, by the settings of one job."""

    def __init__(self, data: Data, known: TokenizerFacts | None) -> None:
        self._data = data
        self._cleaner = Cleaner(data.clean)
        self._kind: LabelledKind | None = None
        if data.kind != "text":
            from orchestrator.data.labelled.kinds import labelled_kind

            self._kind = labelled_kind(data, known)
        near = data.deduplicate.near
        self.near: Near | None = None if near == "off" else near
        self._scrubber = sample_scrubber(data.privacy)
        self.tally = _Tally()

    def rows(self, part: Part, source: Source, count: RowCount) -> Iterator[Row | Rejected]:
        """The rows of a part; of tables only the columns that are needed."""
        columns = [source.text] if self._data.kind == "text" else None
        return read_rows(part, source, limit_bytes=self._data.max_document_bytes, columns=columns, count=count)

    def document(self, found: Row | Rejected, part: Part, number: int, source: Source) -> Document | Removed | Rejected:
        """What becomes of a row."""
        if isinstance(found, Rejected):
            return found
        try:
            record = self._record(found.fields, source)
            size_bytes = len(record.text.encode())
            # Text files are cut into documents of that size, at the next line's end.
            if part.file.format != "text" and size_bytes > self._data.max_document_bytes:
                raise RowError(f"a text over {self._data.max_document_bytes} bytes")
            mended = self._mend(record, number, found.number)
        except RowError as error:
            return Rejected(part.file.relative, found.number, str(error))
        self.tally.documents += 1
        self.tally.text_bytes += size_bytes
        if isinstance(mended, str):
            return Removed(content_digest(self._cleaner.normalise(record.text)), number, found.number, mended)
        labels = json_of(mended.labels)
        own = content_digest(mended.text or labels)
        return Document(list(mended.texts), labels, own, number, found.number, part.file.split or "")

    def digest(self, document: Document) -> bytes:
        """What exact duplicates share: the text, and of a labelled row its labels."""
        return content_digest(f"{document.text}\n{document.labels}") if document.labels else document.id

    def _record(self, fields: dict[str, Any], source: Source) -> Record:
        if self._kind is not None:
            return self._kind.record(fields, source)
        value = fields.get(source.text)
        if not isinstance(value, str):
            raise RowError(f"no text in the field {source.text!r}")
        require_encodable(value)
        if not value.strip():
            raise RowError("empty")
        return Record((value,), {})

    def _mend(self, record: Record, part: int, row: int) -> Record | str:
        """The record with its texts mended, or the rule that removes it."""
        if self._data.kind in _SPANS:
            return record
        if self._data.kind != "text":
            texts = tuple(self._cleaner.normalise(text) for text in record.texts)
            if any(before.strip() and not after.strip() for before, after in zip(record.texts, texts, strict=True)):
                raise RowError("empty without its control characters")
            return Record(texts, record.labels)
        cleaned = self._cleaner.clean(record.texts[0])
        for rule, size_bytes in cleaned.taken:
            self.tally.add(self.tally.mended, rule, size_bytes)
        if cleaned.rule is None:
            return Record((cleaned.text,), {})
        self.tally.add(self.tally.removed, cleaned.rule, len(record.texts[0].encode()))
        shown = {"part": part, "row": row, "text": record.texts[0]}
        self.tally.sample(cleaned.rule, shown, self._scrubber)
        return f"quality:{cleaned.rule}"


def sample_scrubber(privacy: Privacy) -> Scrubber:
    """Redacts what a report shows, unless the job wants no search for personal data at all."""
    return Scrubber(privacy if privacy.action == "off" else privacy.model_copy(update={"action": "redact"}))


def require_encodable(text: str) -> None:
    """Refuse half of a surrogate pair, which JSON may spell and no UTF-8 text can hold.

    Raises:
        RowError: it has one.
    """
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise RowError("a lone surrogate in the text") from None


def json_of(labels: dict[str, Any]) -> str:
    """Labels as text, the same for the same labels; empty for none."""
    return json.dumps(labels, sort_keys=True, ensure_ascii=False) if labels else ""


def _sha256(file: SourceFile) -> str | None:
    """Of the file as it lies there; an object store's are not read twice for it."""
    if is_remote(file.path):
        return None
    digest = hashlib.sha256()
    try:
        with open(file.path, "rb") as raw:
            while block := raw.read(_HASH_BLOCK_BYTES):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()
