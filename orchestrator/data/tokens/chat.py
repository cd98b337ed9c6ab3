"""Chats as text: Jinja templates rendered as the transformers library does, in Jinja's sandbox. The home of Jinja2."""

from __future__ import annotations

import datetime
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from orchestrator.data.sources.listing import resolve_path
from orchestrator.data.values import RowError
from orchestrator.errors import DataError

Message = dict[str, str]
"""`role` and `content`."""
Span = tuple[int, int]
"""Characters: the first, and the one after the last."""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The built-in template, `chatml`."""


def template_source(setting: str | None, environment: Mapping[str, str]) -> str | None:
    """The template that `data.tokenizer.chat_template` asks for; None where it asks for none.

    Args:
        setting: `chatml`, a file, or Jinja itself (anything with `{{` or `{%` in it).
        environment: what `${env:NAME}` in the file's name stands for.

    Raises:
        DataError: the file cannot be read.
    """
    if setting is None or setting == "chatml":
        return CHATML if setting else None
    if "{{" in setting or "{%" in setting:
        return setting
    path = Path(resolve_path(setting, environment))
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the chat template {path} cannot be read: {error}",
            fix="data.tokenizer.chat_template is chatml, a Jinja file, or Jinja itself",
        ) from None


class ChatTemplate:
    """A chat template.

    Args:
        template: Jinja, as in a model's `chat_template.jinja`.
        special_tokens: what no message may spell: it could forge a turn.
        bos_token, eos_token: what templates know by these names.
        now: what `strftime_now` answers with; null: the clock, so that the same chat may give another text tomorrow.

    Raises:
        DataError: the template is not Jinja.
    """

    def __init__(
        self,
        template: str,
        *,
        special_tokens: Iterable[str] = (),
        bos_token: str | None = None,
        eos_token: str | None = None,
        now: datetime.datetime | None = None,
    ) -> None:
        self.text = template
        self._special = tuple(special_tokens)
        self._names = {"bos_token": bos_token or "", "eos_token": eos_token or ""}
        self._now = now
        _ = self._compiled

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The chat as text; `add_generation_prompt` opens the assistant's next turn.

        Raises:
            RowError: a message spells a special token, or the template refuses the chat.
        """
        refuse_special(messages, self._special)
        try:
            return self._compiled.render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._names,
            )
        except jinja2.TemplateError as error:
            raise RowError(f"the chat template refuses the chat: {error}") from None
        except (TypeError, ValueError, KeyError) as error:
            raise RowError(f"the chat template fails on the chat: {error}") from None

    def assistant_spans(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The chat as text, and where the assistant's turns stand in it, each with the marker that ends it.

        Found by rendering the chat up to each turn. White space after a turn's end marker is not part of the turn.

        Raises:
            DataError: what a turn looks like depends on later turns, so that this cannot be told.
            RowError: as `render`.
        """
        text = self.render(messages)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self.render(messages[:i], add_generation_prompt=True)
                through = text if i + 1 == len(messages) else self.render(messages[: i + 1])
                if not (text.startswith(through) and through.startswith(before)):
                    raise _not_consistent(i)
                spans.append((len(before), self._end_of_turn(through)))
        return text, spans

    def _end_of_turn(self, through: str) -> int:
        visible = through.rstrip()
        return len(visible) if self._special and visible.endswith(self._special) else len(through)

    @cached_property
    def _compiled(self) -> jinja2.Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = self._strftime_now
        try:
            return environment.from_string(self.text)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(
                f"the chat template is not Jinja: {error.message}, line {error.lineno}",
                fix="check data.tokenizer.chat_template",
            ) from None

    def _strftime_now(self, form: str) -> str:
        return (self._now or datetime.datetime.now()).strftime(form)


class _Generation(Extension):
    """`{% generation %}`, with which some templates mark the assistant's words: written as if it were not there."""

    tags = {"generation"}  # noqa: RUF012 - Jinja reads it off the class

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def refuse_special(messages: Sequence[Message], special_tokens: Iterable[str]) -> None:
    """Raise RowError for a message that spells a special token, also where only cleaning would let it appear."""
    tokens = tuple(special_tokens)
    for number, message in enumerate(messages, 1):
        content = message["content"]
        spelled = content if content.isascii() and content.isprintable() else content + "\n" + _plain(content)
        for token in tokens:
            if token in spelled:
                raise RowError(f"message {number} ({message['role']}) spells the special token {token}")


def _plain(content: str) -> str:
    """Without the characters that cleaning takes out, and with wide forms as plain letters."""
    folded = unicodedata.normalize("NFKC", content)
    return "".join(c for c in folded if not unicodedata.category(c).startswith("C"))


def _not_consistent(index: int) -> DataError:
    return DataError(
        f"the chat template writes message {index + 1} in another way once more messages follow, or does not open an "
        "assistant's turn as add_generation_prompt does: which tokens to learn cannot be told",
        fix="give a template that writes each message alone in data.tokenizer.chat_template, such as chatml",
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
