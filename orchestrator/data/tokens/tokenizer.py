"""Byte-level BPE: trained on the job's text, or read from a `tokenizer.json`. The home of the tokenizers library."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from orchestrator.errors import DataError

END_OF_TEXT = "<|endoftext|>"
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
_BATCH_DOCUMENTS = 256


@dataclass(frozen=True)
class TokenizerFacts:
    """What the rest of Slipway needs to know of a tokenizer; stands in the dataset's manifest."""

    sha256: str
    vocab_size: int
    """One more than the largest token id."""
    eos_token: str
    eos_token_id: int

    @property
    def dtype(self) -> npt.DTypeLike:
        """The smallest unsigned type that holds every id."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32


def train_bpe(texts: Iterable[str], vocab_size: int) -> str:
    """Train a byte-level BPE (Radford et al. 2019); returns the text of its `tokenizer.json`.

    The same texts in the same order give the same bytes.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str(pretty=True))


def read_tokenizer(path: Path) -> str:
    """The text of a given `tokenizer.json`.

    Raises:
        DataError: it is absent or not one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the tokenizer {path} cannot be read: {error}", fix="check data.tokenizer.path") from None
    load(text, str(path))
    return text


def load(text: str, where: str = "tokenizer.json") -> Tokenizer:
    """Parse a `tokenizer.json`.

    Raises:
        DataError: the text is not one.
    """
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception for whatever is wrong in the file
        raise DataError(
            f"{where} is not a tokenizer.json: {error}", fix="give a file of the tokenizers library"
        ) from None


def facts(text: str) -> TokenizerFacts:
    """Fingerprint, size and end-of-text token of a `tokenizer.json`.

    Raises:
        DataError: it has no token that ends a text.
    """
    tokenizer = load(text)
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    eos = next((token for token in _KNOWN_END_TOKENS if token in vocabulary), None)
    if eos is None:
        raise DataError(
            f"the tokenizer has no end-of-text token; looked for {', '.join(_KNOWN_END_TOKENS)}",
            fix="add one of these as a special token",
        )
    return TokenizerFacts(
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        vocab_size=max(vocabulary.values()) + 1,
        eos_token=eos,
        eos_token_id=vocabulary[eos],
    )


class Encoder:
    """Text to token ids, each document closed by the end-of-text token."""

    def __init__(self, text: str) -> None:
        self._tokenizer: Any = load(text)
        # A document that spells a special token gets its letters, never the token: text cannot end a document.
        self._tokenizer.encode_special_tokens = True
        self.facts = facts(text)

    def encode(self, documents: list[str]) -> list[npt.NDArray[Any]]:
        """Token ids of each document."""
        arrays = []
        for first in range(0, len(documents), _BATCH_DOCUMENTS):
            batch = self._tokenizer.encode_batch_fast(
                documents[first : first + _BATCH_DOCUMENTS], add_special_tokens=False
            )
            arrays += [np.array([*e.ids, self.facts.eos_token_id], dtype=self.facts.dtype) for e in batch]
        return arrays
