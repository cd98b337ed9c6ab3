"""Conversations: the model learns the assistant's turns."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.labelled.fields import Fields
from orchestrator.data.labelled.messages import messages_of, special_before_reading, template_of, turns
from orchestrator.data.labelled.protocol import Columns, total_lengths
from orchestrator.data.tokens.chat import ChatTemplate, Message, refuse_special
from orchestrator.data.tokens.tokenizer import Encoder, TokenizerFacts
from orchestrator.data.values import Record, RowError
from orchestrator.errors import DataError
from orchestrator.job_data import Source, Tokenizer

_ROLES = {
    "messages": ("messages", "conversations", "conversation"),
    "instruction": ("instruction",),
    "input": ("input",),
    "output": ("output",),
    "prompt": ("prompt",),
    "response": ("response", "completion"),
    "system": ("system",),
}


class Chat:
    """Rows of `messages`, or of a question and its answer.

    Args:
        settings: `data.tokenizer`.
        known: the tokenizer, where it is known before rows are read.
    """

    def __init__(self, settings: Tokenizer, known: TokenizerFacts | None) -> None:
        self._special = special_before_reading(settings, known)
        self._template = template_of(known) if known else None

    def record(self, fields: dict[str, Any], source: Source) -> Record:
        """As LabelledKind."""
        messages = _messages(Fields(fields, source.fields, _ROLES))
        require_answer(messages)
        refuse_special(messages, self._special)
        if self._template:
            self._template.render(messages)
        return Record(tuple(m["content"] for m in messages), {"roles": [m["role"] for m in messages]})

    def labels_of(self, record: Record) -> Iterable[str]:
        """None."""
        return ()

    def schema(self) -> list[tuple[str, str]]:
        """As LabelledKind; `loss_mask` is 1 for the tokens of the assistant's turns and their end markers."""
        return [("input_ids", "list<ids>"), ("loss_mask", "list<uint8>")]

    def encode(self, records: Sequence[Record], encoder: Encoder, labels: Sequence[str]) -> Columns:
        """As LabelledKind. The parts between the borders of turns are encoded alone, as a server does with a prompt.

        So no token crosses a border, and the mask covers exactly the assistant's turns.
        """
        template = template_of(encoder.facts)
        rows = [_parts(messages_of_record(record), template) for record in records]
        encoded = iter(encoder.ids_with_special([text for row in rows for text, _ in row]))
        ids, masks = [], []
        for row in rows:
            own = list(itertools.islice(encoded, len(row)))
            ids.append(np.concatenate(own))
            masks.append(np.repeat(np.array([learn for _, learn in row], np.uint8), [len(part) for part in own]))
        return {"input_ids": ids, "loss_mask": masks}

    def lengths(self, columns: Columns) -> npt.NDArray[np.int64]:
        """As LabelledKind."""
        return total_lengths(columns, "input_ids")


def _messages(parts: Fields) -> list[Message]:
    if not parts.has("messages") and parts.has("instruction"):
        return turns(parts, "instruction", "output", more="input")
    if not parts.has("messages") and parts.has("prompt"):
        return turns(parts, "prompt", "response")
    return messages_of(parts.get("messages"), "messages")


def require_answer(messages: list[Message]) -> None:
    """Refuse a chat that teaches nothing, or that stops before the answer."""
    if all(message["role"] != "assistant" for message in messages):
        raise RowError("the chat has no turn of the assistant: there is nothing to learn")
    if messages[-1]["role"] != "assistant":
        raise RowError(f"the chat ends on a turn of the {messages[-1]['role']}, with no answer to learn after it")


def messages_of_record(record: Record) -> list[Message]:
    """The chat of a record, with its contents as they are now."""
    pairs = zip(record.labels["roles"], record.texts, strict=True)
    return [{"role": role, "content": content} for role, content in pairs]


def assistant_spans(messages: list[Message], template: ChatTemplate) -> tuple[str, list[tuple[int, int]]]:
    """As the template's; at this point a chat that cannot be rendered stops the stage.

    Raises:
        DataError: it cannot.
    """
    try:
        return template.assistant_spans(messages)
    except RowError as error:
        raise DataError(
            f"a chat that begins {messages[0]['content'][:60]!r} cannot be rendered: {error}",
            fix="take the row out, or give another data.tokenizer.chat_template",
        ) from None


def _parts(messages: list[Message], template: ChatTemplate) -> list[tuple[str, bool]]:
    """(text, whether it is learned), in order."""
    text, spans = assistant_spans(messages, template)
    cuts = [0, *itertools.chain.from_iterable(spans), len(text)]
    pieces = [(text[a:b], i % 2 == 1) for i, (a, b) in enumerate(itertools.pairwise(cuts))]
    return [(piece, learn) for piece, learn in pieces if piece]
