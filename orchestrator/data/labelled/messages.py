"""Chats in the layouts in which people keep them, as messages of a role and a content."""

from __future__ import annotations

import datetime
from typing import Any

from orchestrator.data.labelled.fields import Fields, list_of, shown, text_of, type_name
from orchestrator.data.tokens.chat import CHATML, ChatTemplate, Message
from orchestrator.data.tokens.facts import TokenizerFacts
from orchestrator.data.tokens.train import CHAT_TOKENS, special_tokens
from orchestrator.data.values import RowError
from orchestrator.errors import DataError
from orchestrator.job_data import Tokenizer

ROLES = ("system", "user", "assistant")
_SAME = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_TEMPLATE_DATE = datetime.datetime(2024, 7, 26)
"""What `strftime_now` says in shards, so that the same rows give the same bytes: Llama 3's own date without a clock."""


def messages_of(value: Any, name: str) -> list[Message]:
    """A list of `{"role", "content"}` or `{"from", "value"}`.

    Raises:
        RowError: it is none, a role is unknown, or a content is empty or no text.
    """
    messages = []
    for number, entry in enumerate(list_of(value, name), 1):
        what = f"message {number} of {name}"
        if not isinstance(entry, dict):
            raise RowError(f"{what} is {type_name(entry)}, not an object")
        role, content = entry.get("role", entry.get("from")), entry.get("content", entry.get("value"))
        known = _SAME.get(role, role) if isinstance(role, str) else role
        if known not in ROLES:
            raise RowError(f"{what} has the role {shown(role)}; known are {', '.join(ROLES)}")
        messages.append({"role": str(known), "content": text_of(content, f"{what} ({known})")})
    if not messages:
        raise RowError(f"{name} is empty")
    return messages


def turns(parts: Fields, user: str, assistant: str, *, more: str | None = None) -> list[Message]:
    """A question and its answer from two fields, with a system message if the row has one."""
    question = parts.text(user)
    if more and parts.has(more) and str(parts.get(more)).strip():
        question = f"{question}\n\n{parts.text(more)}"
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": parts.text(assistant)}]
    if parts.has("system") and str(parts.get("system")).strip():
        messages.insert(0, {"role": "system", "content": parts.text("system")})
    return messages


def special_before_reading(settings: Tokenizer, known: TokenizerFacts | None) -> tuple[str, ...]:
    """The special tokens that are known before rows are read: of a tokenizer that is trained, all."""
    if known is not None:
        return tuple(known.special_tokens)
    return tuple(special_tokens(settings, chat=True)) if settings.path is None else CHAT_TOKENS


def template_of(known: TokenizerFacts) -> ChatTemplate:
    """The chat template that goes with a tokenizer.

    Raises:
        DataError: it is the built-in one, and the tokenizer lacks its tokens.
    """
    template = known.chat_template or CHATML
    if template == CHATML and (missing := [token for token in CHAT_TOKENS if token not in known.special_tokens]):
        raise DataError(
            f"the chat template chatml needs the special token(s) {', '.join(missing)}, which the tokenizer lacks",
            fix="give the template of this tokenizer in data.tokenizer.chat_template",
        )
    return ChatTemplate(
        template,
        special_tokens=known.special_tokens,
        bos_token=known.bos_token,
        eos_token=known.eos_token,
        now=_TEMPLATE_DATE,
    )
