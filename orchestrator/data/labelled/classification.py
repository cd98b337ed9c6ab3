"""A text or a pair of texts, and its label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.labelled.fields import Fields, one_of
from orchestrator.data.labelled.protocol import Columns, total_lengths
from orchestrator.data.tokens.tokenizer import Encoder
from orchestrator.data.values import Record
from orchestrator.errors import DataError
from orchestrator.job_data import Source

_ROLES = {
    "text": ("text", "sentence", "sentence1", "premise", "question1"),
    "text_pair": ("text_pair", "sentence2", "hypothesis", "question2"),
    "label": ("label", "labels"),
}


class Classification:
    """Rows of `text`, `text_pair` (may be absent) and `label`."""

    def __init__(self, labels: list[str] | None) -> None:
        self._labels = labels

    def record(self, fields: dict[str, Any], source: Source) -> Record:
        """As LabelledKind."""
        parts = Fields(fields, source.fields, _ROLES)
        texts = [parts.text("text")]
        if parts.has("text_pair"):
            texts.append(parts.text("text_pair"))
        return Record(tuple(texts), {"label": one_of(parts.get("label"), self._labels, "the label")})

    def labels_of(self, record: Record) -> Iterable[str]:
        """Its one label."""
        return [record.labels["label"]]

    def schema(self) -> list[tuple[str, str]]:
        """As LabelledKind; `pair_ids` is empty where there is no second text."""
        return [("input_ids", "list<ids>"), ("pair_ids", "list<ids>"), ("label", "int32")]

    def encode(self, records: Sequence[Record], encoder: Encoder, labels: Sequence[str]) -> Columns:
        """As LabelledKind."""
        pairs = encoder.ids([record.texts[1] if len(record.texts) > 1 else "" for record in records])
        return {
            "input_ids": encoder.ids([record.texts[0] for record in records]),
            "pair_ids": pairs,
            "label": numbers([record.labels["label"] for record in records], labels),
        }

    def lengths(self, columns: Columns) -> npt.NDArray[np.int64]:
        """Of both texts."""
        return total_lengths(columns, "input_ids", "pair_ids")


def numbers(names: Sequence[str], labels: Sequence[str]) -> npt.NDArray[np.int32]:
    """The place of each label in the list of labels.

    Raises:
        DataError: one is not in it.
    """
    places = {label: i for i, label in enumerate(labels)}
    if unknown := sorted({name for name in names if name not in places}):
        raise DataError(
            f"the rows hold the label(s) {', '.join(unknown)}, which are not among {', '.join(labels)}",
            fix="add them to data.labels, or mend the rows",
        )
    return np.array([places[name] for name in names], dtype=np.int32)
