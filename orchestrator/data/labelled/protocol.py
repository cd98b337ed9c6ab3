"""What each kind of labelled data does: rows to records, records to columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from orchestrator.data.tokens.tokenizer import Encoder
from orchestrator.data.values import Record
from orchestrator.job_data import Source

Columns = dict[str, Any]
"""Name -> one value a row: an array of numbers (1 or 2 dimensions), or a list of arrays, texts, or lists of texts."""


class LabelledKind(Protocol):
    """One kind of labelled data."""

    def record(self, fields: dict[str, Any], source: Source) -> Record:
        """A row as it was read, checked.

        Raises:
            RowError: it cannot be used, with the reason.
            DataError: the source's `fields` name a part that the kind does not have.
        """
        ...

    def labels_of(self, record: Record) -> Iterable[str]:
        """The labels in a record; empty for kinds without a list of labels."""
        ...

    def schema(self) -> list[tuple[str, str]]:
        """Names and types of the columns; `ids` stands for uint16 or uint32, as the vocabulary needs."""
        ...

    def encode(self, records: Sequence[Record], encoder: Encoder, labels: Sequence[str]) -> Columns:
        """Records as columns; `labels` numbers the labels from 0.

        Raises:
            DataError: a record does not fit the tokenizer or the labels.
        """
        ...

    def lengths(self, columns: Columns) -> npt.NDArray[np.int64]:
        """Tokens in each row."""
        ...


def total_lengths(columns: Columns, *names: str) -> npt.NDArray[np.int64]:
    """Lengths of list columns, summed by row."""
    lengths = zip(*([len(row) for row in columns[name]] for name in names), strict=True)
    return np.array([sum(row) for row in lengths], dtype=np.int64)
