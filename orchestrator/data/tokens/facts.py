"""What the rest of Slipway needs to know of a tokenizer, and how one that is given is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from orchestrator.data.tokens.train import END_OF_TEXT
from orchestrator.errors import DataError

_KNOWN_END_TOKENS = (
    END_OF_TEXT,
    "</s>",
    "<|end_of_text|>",
    "<eos>",
    "<|eos|>",
    "<|im_end|>",
    "[SEP]",
    "[EOS]",
)
_KNOWN_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eot|>")
_KNOWN = {
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>"),
    "unk": ("[UNK]", "<unk>", "<|unk|>"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "[BOS]"),
}
_CONFIG_FILES = ("special_tokens_map.json", "tokenizer_config.json")


@dataclass(frozen=True)
class TokenizerFacts:
    """What the rest of Slipway needs to know of a tokenizer; stands in the dataset's manifest."""

    sha256: str
    vocab_size: int
    """One more than the largest token id."""
    eos_token: str
    """Closes a document."""
    eos_token_id: int
    pad_token_id: int | None = None
    unk_token_id: int | None = None
    cls_token_id: int | None = None
    sep_token_id: int | None = None
    mask_token_id: int | None = None
    bos_token: str | None = None
    turn_end_token: str | None = None
    """Closes a turn of a chat, where the tokenizer has a token for it."""
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    """Every special token and its id, in the order of ids."""
    chat_template: str | None = None
    """Jinja; null: none came with the tokenizer and none was asked for."""

    @property
    def dtype(self) -> npt.DTypeLike:
        """The smallest unsigned type that holds every id."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32


@dataclass(frozen=True)
class GivenTokenizer:
    """A tokenizer that was not trained here."""

    text: str
    """Of its `tokenizer.json`."""
    chat_template: str | None = None
    eos_token: str | None = None
    """The end token that its folder names; null: a lone file names none."""

    def facts(self, *, chat_template: str | None = None) -> TokenizerFacts:
        """As `facts()`, with the folder's end token and the folder's template, where no other is asked for.

        Raises:
            DataError: it has no special token that ends a text.
        """
        return facts(self.text, eos_token=self.eos_token, chat_template=chat_template or self.chat_template)


def load(text: str, where: str = "tokenizer.json") -> Tokenizer:
    """Parse a `tokenizer.json`; what it says of truncation and padding is left out.

    Raises:
        DataError: the text is not one.
    """
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception for whatever is wrong in the file
        raise DataError(
            f"{where} is not a tokenizer.json: {error}", fix="give a file of the tokenizers library"
        ) from None
    # A file saved after a training of 128 tokens a row would cut every document to that.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_tokenizer(path: Path) -> str:
    """The text of a given `tokenizer.json`, or of the one in a Hugging Face folder.

    Raises:
        DataError: it is absent or not one.
    """
    return read_given(path).text


def read_given(path: Path) -> GivenTokenizer:
    """A given tokenizer: a `tokenizer.json`, or a Hugging Face folder with one and what else it says.

    Raises:
        DataError: it is absent, or a file of it cannot be parsed.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    text = _read(file)
    load(text, str(file))
    if not path.is_dir():
        return GivenTokenizer(text)
    config: dict[str, Any] = {}
    for name in _CONFIG_FILES:
        if (path / name).exists():
            config |= _read_json(path / name)
    template = path / "chat_template.jinja"
    return GivenTokenizer(
        text,
        chat_template=_read(template) if template.exists() else _template_of(config.get("chat_template")),
        eos_token=_token_text(config.get("eos_token")) or _token_text(config.get("sep_token")),
    )


def facts(text: str, *, eos_token: str | None = None, chat_template: str | None = None) -> TokenizerFacts:
    """Fingerprint, size and special tokens of a `tokenizer.json`.

    Args:
        eos_token: the token that ends a document; null: the first of those commonly used that is there.

    Raises:
        DataError: it has no such token, or one that is not special, so that a text could spell it.
    """
    tokenizer = load(text)
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    special = {t.content: i for i, t in sorted(tokenizer.get_added_tokens_decoder().items()) if t.special}
    eos = _end_token(vocabulary, special, (eos_token,) if eos_token else _KNOWN_END_TOKENS)

    def find(names: tuple[str, ...]) -> str | None:
        return next((name for name in names if name in special), None)

    found = {f"{role}_token_id": special[name] for role, names in _KNOWN.items() if (name := find(names))}
    found.pop("bos_token_id", None)
    return TokenizerFacts(
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        vocab_size=max(vocabulary.values()) + 1,
        eos_token=eos,
        eos_token_id=special[eos],
        **found,
        bos_token=find(_KNOWN["bos"]),
        turn_end_token=find(_KNOWN_TURN_ENDS),
        special_tokens=special,
        chat_template=chat_template,
    )


def _end_token(vocabulary: Mapping[str, int], special: Mapping[str, int], wanted: tuple[str, ...]) -> str:
    if eos := next((token for token in wanted if token in special), None):
        return eos
    if plain := next((token for token in wanted if token in vocabulary), None):
        raise DataError(
            f"the tokenizer's end-of-text token {plain} is an ordinary entry of its vocabulary: a text that spells "
            "it would end its document",
            fix='list it in added_tokens of the tokenizer.json with "special": true',
        )
    raise DataError(
        f"the tokenizer has no end-of-text token; looked for {', '.join(wanted)}",
        fix="add one of these as a special token",
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the tokenizer {path} cannot be read: {error}", fix="check data.tokenizer.path") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(path))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}", fix="mend it, or give the tokenizer.json alone") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object", fix="mend it, or give the tokenizer.json alone")
    return value


def _token_text(value: Any) -> str | None:
    """A token as these files write it: its text, or an object with the text in `content`."""
    return (value.get("content") if isinstance(value, dict) else value) or None


def _template_of(value: Any) -> str | None:
    """A template, or the one named `default` of a list of templates with names."""
    if isinstance(value, list):
        value = next((entry.get("template") for entry in value if entry.get("name") == "default"), None)
    return value or None
