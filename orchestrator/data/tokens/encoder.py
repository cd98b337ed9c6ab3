"""Text to token ids: documents, rows, words, and what must be known of their places in the text."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.tokens.facts import TokenizerFacts, facts, load
from orchestrator.data.tokens.sentences import sentence_ends, tokens_at
from orchestrator.data.tokens.words import WordTable, words_of

Ids = npt.NDArray[Any]
"""[T] token ids, of the smallest unsigned type that holds them."""
Positions = npt.NDArray[np.int32]
_BATCH_DOCUMENTS = 256


class Encoder:
    """Text to token ids. A text that spells a special token gets its letters, never the token.

    Args:
        text: of a `tokenizer.json`.
        known: its facts, where they hold more than the file (the end token that a folder names, a chat template).
    """

    def __init__(self, text: str, known: TokenizerFacts | None = None) -> None:
        self._text = text
        self._tokenizer: Any = load(text)
        self._tokenizer.encode_special_tokens = True
        self._with_special: Any = None
        self.facts = known or facts(text)
        self._dtype = np.dtype(self.facts.dtype)
        self._end = np.array([self.facts.eos_token_id], dtype=self._dtype).tobytes()
        words = words_of(json.loads(text), self._tokenizer)
        self._table = WordTable(self._library_ids, words, self._dtype.itemsize) if words else None

    @property
    def has_word_table(self) -> bool:
        """Whether words are looked up; else all text goes through the library, which is slower."""
        return self._table is not None

    def encode(self, documents: list[str]) -> list[Ids]:
        """Token ids of each document, closed by the end-of-text token."""
        if self._table:
            return [np.frombuffer(ids + self._end, self._dtype) for ids in self._table.encode(documents)]
        return [np.append(ids, self._dtype.type(self.facts.eos_token_id)) for ids in self.ids(documents)]

    def ids(self, texts: list[str]) -> list[Ids]:
        """Token ids of each text, and no more."""
        if self._table:
            return [np.frombuffer(ids, self._dtype) for ids in self._table.encode(texts)]
        return [
            np.array(ids, dtype=self._dtype)
            for first in range(0, len(texts), _BATCH_DOCUMENTS)
            for ids in self._library_ids(texts[first : first + _BATCH_DOCUMENTS])
        ]

    def encode_with_sentences(self, documents: list[str]) -> list[tuple[Ids, Positions]]:
        """As `encode`, and the token positions at which sentences end (`sentence_ends`), rising, without repeats.

        An end inside a word lies after that word. A sentence of which the tokenizer keeps nothing has no position.
        """
        return [self._with_sentences(document) for document in documents]

    def ids_with_offsets(self, texts: list[str]) -> list[tuple[Ids, npt.NDArray[np.int32]]]:
        """Token ids of each text, and [T, 2] the characters each covers: the first, and the one after the last."""
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [
            (np.array(e.ids, dtype=self._dtype), np.array(e.offsets, dtype=np.int32).reshape(-1, 2)) for e in encodings
        ]

    def word_ids(self, rows: list[list[str]]) -> list[tuple[Ids, Positions]]:
        """Token ids of rows that are cut into words already, and the first token of each word.

        The ids are those of the words with a space between. A word of which the tokenizer keeps nothing becomes the
        unknown token, or where there is none the end token: every word has a place for its label.
        """
        # A word has the same ids wherever it stands, so each is encoded once, with the space before it.
        spelled = [f" {word}" if i else word for row in rows for i, word in enumerate(row)]
        distinct = list(dict.fromkeys(spelled))
        unknown = self.facts.eos_token_id if self.facts.unk_token_id is None else self.facts.unk_token_id
        nothing = np.array([unknown], dtype=self._dtype)
        ids_of = {w: ids if len(ids) else nothing for w, ids in zip(distinct, self.ids(distinct), strict=True)}
        results, first = [], 0
        for row in rows:
            parts = [ids_of[word] for word in spelled[first : first + len(row)]]
            first += len(row)
            starts = np.cumsum([0, *map(len, parts)], dtype=np.int32)[:-1]
            results.append((np.concatenate(parts) if parts else nothing[:0], starts))
        return results

    def ids_with_special(self, texts: list[str]) -> list[Ids]:
        """Token ids of texts in which special tokens are meant: what a chat template wrote, never what a user did."""
        if self._with_special is None:
            self._with_special = load(self._text)
        encodings = self._with_special.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(e.ids, dtype=self._dtype) for e in encodings]

    def decode(self, ids: Any) -> str:
        """The text of token ids, special tokens spelled out."""
        return str(self._tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=False))

    def _library_ids(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _with_sentences(self, text: str) -> tuple[Ids, Positions]:
        if self._table:
            raw, starts, tokens = self._table.encode_with_starts(text)
            ids = np.frombuffer(raw + self._end, self._dtype)
        else:
            ((plain, offsets),) = self.ids_with_offsets([text])
            ids = np.append(plain, self._dtype.type(self.facts.eos_token_id))
            # Bytes of one character share its offset, and some tokenizers give none (0, 0) to white space.
            starts = np.maximum.accumulate(offsets[:, 0])
            tokens = np.arange(len(plain))
        ends = tokens_at(sentence_ends(text), starts, tokens, len(ids) - 1)
        return ids, ends[ends > 0]


def continuations(text: str) -> npt.NDArray[np.bool_]:
    """[V] whether a token goes on with the word of the token before it, for whole-word masking.

    WordPiece: it begins with the prefix of continuations (`##`). Else: it begins with a letter, a digit or a byte
    beyond ASCII, with no mark of a space before it. Punctuation, white space and special tokens begin words.
    """
    tokenizer = load(text)
    model = json.loads(text)["model"]
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    prefix = model.get("continuing_subword_prefix") if model.get("type") == "WordPiece" else None
    result = np.zeros(max(vocabulary.values()) + 1, dtype=np.bool_)
    for token, index in vocabulary.items():
        goes_on = token.startswith(prefix) if prefix else _goes_on(token)
        result[index] = goes_on and index not in special
    return result


def _goes_on(token: str) -> bool:
    # Byte-level vocabularies write byte b of 33-126 and 161-255 as itself, and white space and controls as
    # characters from U+0100 (a space as U+0120); 128-160 and 173 come after those, from U+0122. SentencePiece: U+2581.
    first = token[:1]
    if first.isascii():
        return first.isalnum()
    return first != "▁" and not 0x100 <= ord(first) <= 0x121
