"""Words, and a tag for each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.labelled.classification import numbers
from orchestrator.data.labelled.fields import Fields, list_of, one_of, shown, text_of
from orchestrator.data.labelled.protocol import Columns, total_lengths
from orchestrator.data.tokens.tokenizer import Encoder
from orchestrator.data.values import Record, RowError
from orchestrator.job_data import Source

_ROLES = {"tokens": ("tokens", "words"), "tags": ("tags", "ner_tags", "labels", "pos_tags", "chunk_tags")}
_CHUNK = re.compile(r"[BIESLU]-\S.*", re.DOTALL)
"""A tag of IOB2, IOBES or BILOU, which Ramshaw and Marcus (1995) began: begin, inside, end, single; last, unit."""


class TokenClassification:
    """Rows of `tokens` and `tags`, two lists of one length."""

    def __init__(self, labels: list[str] | None) -> None:
        self._labels = labels

    def record(self, fields: dict[str, Any], source: Source) -> Record:
        """As LabelledKind. An `I-` that follows no `B-` is accepted: scorers read it as a beginning."""
        parts = Fields(fields, source.fields, _ROLES)
        words = [text_of(word, f"token {i}") for i, word in enumerate(list_of(parts.get("tokens"), "tokens"), 1)]
        tags = list_of(parts.get("tags"), "tags")
        if len(words) != len(tags):
            raise RowError(f"{len(words)} tokens but {len(tags)} tags")
        if not words:
            raise RowError("no tokens")
        names = [one_of(tag, self._labels, f"tag {i}") for i, tag in enumerate(tags, 1)]
        _require_chunks(names)
        return Record((" ".join(words),), {"words": words, "tags": names})

    def labels_of(self, record: Record) -> Iterable[str]:
        """Its tags."""
        return set(record.labels["tags"])

    def schema(self) -> list[tuple[str, str]]:
        """As LabelledKind; `word_starts` is the first token of each word, `tags` one number a word."""
        return [
            ("input_ids", "list<ids>"),
            ("word_starts", "list<int32>"),
            ("tags", "list<int32>"),
            ("words", "list<string>"),
        ]

    def encode(self, records: Sequence[Record], encoder: Encoder, labels: Sequence[str]) -> Columns:
        """As LabelledKind."""
        words = [list(record.labels["words"]) for record in records]
        encoded = encoder.word_ids(words)
        return {
            "input_ids": [ids for ids, _ in encoded],
            "word_starts": [starts for _, starts in encoded],
            "tags": [numbers(record.labels["tags"], labels) for record in records],
            "words": words,
        }

    def lengths(self, columns: Columns) -> npt.NDArray[np.int64]:
        """As LabelledKind."""
        return total_lengths(columns, "input_ids")


def _require_chunks(tags: list[str]) -> None:
    """Where a row has chunks (a tag `O`, or one such as `B-person`), all of its tags must be of that form."""
    if not any(tag == "O" or _CHUNK.fullmatch(tag) for tag in tags):
        return
    for number, tag in enumerate(tags, 1):
        if tag != "O" and not _CHUNK.fullmatch(tag):
            raise RowError(f"tag {number} {shown(tag)} is not O, nor B- or I- with a name")
