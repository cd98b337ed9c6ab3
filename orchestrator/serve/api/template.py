"""A chat as the token ids that the model learned to answer, by the template of its export. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from orchestrator.data.tokens.chat import ChatTemplate
from orchestrator.data.values import RowError
from orchestrator.errors import DataError, StoreError
from orchestrator.serve.api.chat import Message
from orchestrator.serve.api.errors import ApiError


class ChatFormat:
    """How one model reads chats, and which tokens end its turn."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, *, ends: Sequence[int]) -> None:
        """The tokenizer is copied: in a chat, and there alone, special tokens of the template are read as such."""
        self.ends = tuple(ends)
        self._template = template
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.encode_special_tokens = False

    def text(self, messages: Sequence[Message]) -> str:
        """The chat with the assistant's next turn opened.

        Raises:
            ApiError: 400, a message spells a special token, or the template refuses the chat.
        """
        try:
            return self._template.render([message.plain for message in messages], add_generation_prompt=True)
        except RowError as error:
            raise ApiError(f"messages: {error}", param="messages") from None

    def ids(self, text: str) -> list[int]:
        """Token ids of a rendered chat."""
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found


def read_chat_format(export: Path, tokenizer: Tokenizer) -> ChatFormat | None:
    """The chat format of an export; None: its model was given no template.

    Raises:
        StoreError: a file of the export cannot be read, or its template is no Jinja.
    """
    config = _read_json(export / "tokenizer_config.json")
    file = export / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.exists() else _named(config.get("chat_template"))
    if template is None:
        return None
    ends = _read_json(export / "generation_config.json").get("eos_token_id", [])
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    try:
        read = ChatTemplate(
            template,
            special_tokens=special,
            bos_token=_token_text(config.get("bos_token")),
            eos_token=_token_text(config.get("eos_token")),
        )
    except DataError as error:
        raise StoreError(f"the chat template of {export} cannot be used: {error.message}", fix=error.fix) from None
    return ChatFormat(read, tokenizer, ends=[ends] if isinstance(ends, int) else ends)


def _named(template: Any) -> str | None:
    """One text, or the one named `default` of a list, as some exports have several."""
    if isinstance(template, list):
        return next((str(each["template"]) for each in template if each.get("name") == "default"), None)
    return template or None


def _token_text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is not readable: {error}", fix="export the run again") from None
    return found
