"""A question, a context, and where in the context its answers stand (SQuAD: Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.labelled.fields import Fields, integer, list_of, require_encodable, shown, text_of, type_name
from orchestrator.data.labelled.protocol import Columns, total_lengths
from orchestrator.data.tokens.tokenizer import Encoder
from orchestrator.data.values import Record, RowError
from orchestrator.job_data import Source

_ROLES = {
    "question": ("question",),
    "context": ("context",),
    "answers": ("answers", "answer"),
    "answer_start": ("answer_start",),
    "id": ("id",),
}
Answer = tuple[int, str]
"""The character of the context at which it starts, and its text."""


class QuestionAnswering:
    """Rows of `question`, `context` and `answers`; without an answer the question cannot be answered (SQuAD 2)."""

    def record(self, fields: dict[str, Any], source: Source) -> Record:
        """As LabelledKind."""
        parts = Fields(fields, source.fields, _ROLES)
        context = parts.text("context")
        answers = [_in_context(text, start, context) for text, start in _answers(parts)]
        name = str(parts.get("id")) if parts.has("id") else ""
        require_encodable(name, "id")
        return Record((parts.text("question"), context), {"answers": [list(a) for a in answers], "id": name})

    def labels_of(self, record: Record) -> Iterable[str]:
        """None."""
        return ()

    def schema(self) -> list[tuple[str, str]]:
        """As LabelledKind.

        `offsets` are the characters of the context that each of its tokens covers, first and one after the last in
        turn; `answer_spans` the first and the last token of each answer in turn; `answers` their texts.
        """
        return [
            ("question_ids", "list<ids>"),
            ("context_ids", "list<ids>"),
            ("offsets", "list<int32>"),
            ("answer_spans", "list<int32>"),
            ("context", "string"),
            ("answers", "list<string>"),
            ("id", "string"),
        ]

    def encode(self, records: Sequence[Record], encoder: Encoder, labels: Sequence[str]) -> Columns:
        """As LabelledKind."""
        encoded = encoder.ids_with_offsets([record.texts[1] for record in records])
        return {
            "question_ids": encoder.ids([record.texts[0] for record in records]),
            "context_ids": [ids for ids, _ in encoded],
            "offsets": [offsets.reshape(-1) for _, offsets in encoded],
            "answer_spans": [
                _token_spans(record.labels["answers"], offsets)
                for record, (_, offsets) in zip(records, encoded, strict=True)
            ],
            "context": [record.texts[1] for record in records],
            "answers": [[text for _, text in record.labels["answers"]] for record in records],
            "id": [record.labels["id"] for record in records],
        }

    def lengths(self, columns: Columns) -> npt.NDArray[np.int64]:
        """Of question and context."""
        return total_lengths(columns, "question_ids", "context_ids")


def _answers(parts: Fields) -> list[tuple[Any, Any]]:
    """(text, start) in any of the layouts: lists in an object, a list of objects, or two fields of the row."""
    value = parts.get("answers") if parts.has("answers") else None
    if value is None or value == "":
        return []
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        if isinstance(texts, str):
            return [(texts, starts)]
        texts = list_of(texts, "answers.text")
        starts = [None] * len(texts) if starts is None else list_of(starts, "answers.answer_start")
        if len(texts) != len(starts):
            raise RowError(f"{len(texts)} texts of answers but {len(starts)} starts")
        return list(zip(texts, starts, strict=True))
    if isinstance(value, str):
        return [(value, parts.get("answer_start") if parts.has("answer_start") else None)]
    found = []
    for entry in list_of(value, "answers"):
        if not isinstance(entry, dict):
            raise RowError(f"an answer is {type_name(entry)}, not an object with text and answer_start")
        found.append((entry.get("text"), entry.get("answer_start")))
    return found


def _in_context(text: Any, start: Any, context: str) -> Answer:
    """The answer, checked against the context; without a start it is where it first occurs."""
    text = text_of(text, "an answer")
    if start is None:
        if (place := context.find(text)) < 0:
            raise RowError(f"the answer {shown(text)} is not in its context")
        return place, text
    place = integer(start)  # type: ignore[assignment]
    if place is None:
        raise RowError(f"answer_start is {shown(start)}, not a whole number")
    if place < 0 or context[place : place + len(text)] != text:
        stands = context[place : place + len(text)] if place >= 0 else ""
        there = f"there stands {shown(stands)}" if stands else f"the context has {len(context)} characters"
        elsewhere = "" if text in context else "; it is nowhere in the context"
        raise RowError(f"the answer {shown(text)} is not at character {place} of its context: {there}{elsewhere}")
    return place, text


def _token_spans(answers: list[list[Any]], offsets: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """First and last token of each answer: those that share a character with it. One without a token is left out."""
    spans: list[int] = []
    for start, text in answers:
        touching = np.flatnonzero((offsets[:, 0] < start + len(text)) & (offsets[:, 1] > start))
        if len(touching):
            spans += [int(touching[0]), int(touching[-1])]
    return np.array(spans, dtype=np.int32)
