"""A prompt with an answer that was preferred and one that was not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.labelled.chat import assistant_spans
from orchestrator.data.labelled.fields import Fields, text_of, type_name
from orchestrator.data.labelled.messages import messages_of, special_before_reading, template_of
from orchestrator.data.labelled.protocol import Columns, total_lengths
from orchestrator.data.tokens.chat import ChatTemplate, Message, refuse_special
from orchestrator.data.tokens.tokenizer import Encoder, TokenizerFacts
from orchestrator.data.values import Record, RowError
from orchestrator.job_data import Source, Tokenizer

_ROLES = {"prompt": ("prompt", "question"), "chosen": ("chosen",), "rejected": ("rejected",)}


class Preference:
    """Rows of `prompt`, `chosen` and `rejected`: three texts, or messages.

    With messages the prompt may be left out: it is then what both answers begin with.

    Args:
        settings: `data.tokenizer`.
        known: the tokenizer, where it is known before rows are read.
    """

    def __init__(self, settings: Tokenizer, known: TokenizerFacts | None) -> None:
        self._special = special_before_reading(settings, known)
        self._template = template_of(known) if known else None

    def record(self, fields: dict[str, Any], source: Source) -> Record:
        """As LabelledKind."""
        parts = Fields(fields, source.fields, _ROLES)
        if isinstance(parts.get("chosen"), str) or isinstance(parts.get("rejected"), str):
            return _plain(parts)
        prompt, chosen, rejected = _chats(parts)
        for answer in (chosen, rejected):
            refuse_special([*prompt, answer], self._special)
            if self._template:
                self._template.render([*prompt, answer])
        _require_different(chosen["content"], rejected["content"])
        texts = [*(m["content"] for m in prompt), chosen["content"], rejected["content"]]
        return Record(tuple(texts), {"roles": [m["role"] for m in prompt]})

    def labels_of(self, record: Record) -> Iterable[str]:
        """None."""
        return ()

    def schema(self) -> list[tuple[str, str]]:
        """As LabelledKind; each answer ends with its end marker."""
        return [("prompt_ids", "list<ids>"), ("chosen_ids", "list<ids>"), ("rejected_ids", "list<ids>")]

    def encode(self, records: Sequence[Record], encoder: Encoder, labels: Sequence[str]) -> Columns:
        """As LabelledKind."""
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        chats = [i for i, record in enumerate(records) if record.labels["roles"]]
        plain = [i for i, record in enumerate(records) if not record.labels["roles"]]
        template = template_of(encoder.facts) if chats else None
        rows: list[Any] = [None] * len(records)
        texts = [part for i in chats if template for part in _rendered(records[i], template)]
        _deal(rows, chats, encoder.ids_with_special(texts))
        end = np.array([encoder.facts.eos_token_id], dtype=encoder.facts.dtype)
        ids = encoder.ids([text for i in plain for text in records[i].texts])
        _deal(rows, plain, [part if at % 3 == 0 else np.concatenate([part, end]) for at, part in enumerate(ids)])
        return {name: [row[at] for row in rows] for at, name in enumerate(names)}

    def lengths(self, columns: Columns) -> npt.NDArray[np.int64]:
        """Of the prompt and both answers."""
        return total_lengths(columns, "prompt_ids", "chosen_ids", "rejected_ids")


def _deal(rows: list[Any], places: list[int], parts: Sequence[Any]) -> None:
    """Three parts to each place."""
    for at, place in enumerate(places):
        rows[place] = parts[3 * at : 3 * at + 3]


def _plain(parts: Fields) -> Record:
    texts = (parts.text("prompt"), parts.text("chosen"), parts.text("rejected"))
    _require_different(texts[1], texts[2])
    return Record(texts, {"roles": []})


def _require_different(chosen: str, rejected: str) -> None:
    if chosen == rejected:
        raise RowError("chosen and rejected are the same")


def _chats(parts: Fields) -> tuple[list[Message], Message, Message]:
    """The messages before the answers, and the two answers: one message of the assistant each."""
    chosen, rejected = (messages_of(parts.get(name), name) for name in ("chosen", "rejected"))
    if len(chosen) > 1 or len(rejected) > 1 or not parts.has("prompt"):
        prompt = chosen[:-1]
        if rejected[:-1] != prompt:
            raise RowError("chosen and rejected answer different prompts")
    else:
        value = parts.get("prompt")
        if not isinstance(value, (str, list)):
            raise RowError(f"prompt is {type_name(value)}, not text or messages")
        user = isinstance(value, str)
        prompt = [{"role": "user", "content": text_of(value, "prompt")}] if user else messages_of(value, "prompt")
    for name, answer in (("chosen", chosen[-1]), ("rejected", rejected[-1])):
        if answer["role"] != "assistant":
            raise RowError(f"{name} ends on a turn of the {answer['role']}, not of the assistant")
    if not prompt:
        raise RowError("no prompt: chosen and rejected hold one message each")
    return prompt, chosen[-1], rejected[-1]


def _rendered(record: Record, template: ChatTemplate) -> list[str]:
    """The prompt as it is rendered before the answer, and both answers with their end markers."""
    *contents, chosen, rejected = record.texts
    prompt = [{"role": role, "content": c} for role, c in zip(record.labels["roles"], contents, strict=True)]
    parts: list[str] = []
    for answer in (chosen, rejected):
        text, spans = assistant_spans([*prompt, {"role": "assistant", "content": answer}], template)
        first, end = spans[-1]
        parts += [text[first:end]] if parts else [text[:first], text[first:end]]
    return parts
