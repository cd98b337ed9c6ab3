"""Log-probabilities as OpenAI's completions show them: every token as text, and where it begins."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from model.logprob import TokenLogprob
from orchestrator.serve.api.completions import Logprobs
from orchestrator.serve.engine.protocol import Piece
from orchestrator.serve.engine.text import Detokenizer

_BROKEN = "\ufffd"
_PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_UNPRINTED = sorted(set(range(0x100)) - set(_PRINTED))
_BYTES = {chr(byte): byte for byte in _PRINTED} | {chr(0x100 + i): byte for i, byte in enumerate(_UNPRINTED)}
"""The byte that each character of a byte-level vocabulary stands for (Radford et al. 2019)."""
_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
"""A byte in a vocabulary of characters, as SentencePiece spells it."""


class TokenTexts:
    """The text of single tokens, each looked up once.

    A token that is no whole number of characters is "bytes:" and its bytes, printable ASCII as it is and others as
    `\\xe2`, as OpenAI has it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._found: dict[int, str] = {}

    def __getitem__(self, token: int) -> str:
        if token not in self._found:
            self._found[token] = self._text(token)
        return self._found[token]

    def bytes_of(self, token: int) -> bytes:
        """The bytes that the token stands for, UTF-8 that may be cut anywhere."""
        spelled = self._spelled_bytes(token)
        return self[token].encode() if spelled is None else spelled

    def _text(self, token: int) -> str:
        found = self._spelled_bytes(token)
        if found is None:
            # Some decoders drop the space before the first word of a text, so the token is decoded after another one.
            return self._decoded(token, 2)[len(self._decoded(token, 1)) :]
        try:
            return found.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(map(_shown, found))

    def _spelled_bytes(self, token: int) -> bytes | None:
        """Of a token that decodes to no whole characters, and spells bytes."""
        spelling = self._tokenizer.id_to_token(token) or ""
        fallback = _FALLBACK.fullmatch(spelling)
        if _BROKEN not in self._decoded(token, 1) or not (fallback or _BYTES.keys() >= set(spelling)):
            return None
        return bytes.fromhex(fallback[1]) if fallback else bytes(_BYTES[letter] for letter in spelling)

    def _decoded(self, token: int, times: int) -> str:
        return str(self._tokenizer.decode([token] * times, skip_special_tokens=False))


def _shown(byte: int) -> str:
    return chr(byte) if 0x20 <= byte < 0x7F and byte != ord("\\") else f"\\x{byte:02x}"


class LogprobShaper:
    """Shapes the log-probabilities of one choice, piece after piece."""

    def __init__(self, texts: TokenTexts, tokenizer: Tokenizer, *, prompt_characters: int) -> None:
        """Offsets of the completion's tokens count from the beginning of the prompt, echoed or not."""
        self._texts = texts
        self._tokenizer = tokenizer
        self._prompt_characters = prompt_characters
        self._completion = Detokenizer(tokenizer)

    def shape(self, piece: Piece) -> Logprobs:
        """Of the prompt, where the piece has it, and of the piece's tokens."""
        prompt = Detokenizer(self._tokenizer, shown=True)
        shaped = self._shape(piece.prompt_logprobs, _offsets(prompt, piece.prompt_logprobs, 0))
        offsets = _offsets(self._completion, piece.logprobs, self._prompt_characters)
        shaped.extend(self._shape(piece.logprobs, offsets))
        return shaped

    def _shape(self, logprobs: Sequence[TokenLogprob], offsets: list[int]) -> Logprobs:
        return Logprobs(
            tokens=[self._texts[each.token] for each in logprobs],
            token_logprobs=[each.logprob for each in logprobs],
            top_logprobs=[self._top(each) for each in logprobs],
            text_offset=offsets,
        )

    def _top(self, logprob: TokenLogprob) -> dict[str, float] | None:
        """The likeliest tokens, and the one that stands there."""
        if logprob.logprob is None:
            return None
        return {self._texts[token]: value for token, value in (*logprob.top, (logprob.token, logprob.logprob))}


def _offsets(detokenizer: Detokenizer, logprobs: Iterable[TokenLogprob], start: int) -> list[int]:
    offsets = []
    for each in logprobs:
        offsets.append(start + detokenizer.characters)
        detokenizer.push(each.token)
    return offsets
