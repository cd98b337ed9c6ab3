"""From token ids to text that may be sent: whole characters only, and nothing of a stop text."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from model.logprob import TokenLogprob


class Detokenizer:
    """Text of token ids as they come. A character whose bytes are not all there yet is held back.

    All pieces together with `flush()` are `tokenizer.decode(ids)`, whatever the ids. Special tokens have no text,
    unless they are `shown`.
    """

    def __init__(self, tokenizer: Tokenizer, *, shown: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip = not shown
        self._stream = DecodeStream(skip_special_tokens=self._skip)
        self._ids: list[int] = []
        self.characters = 0
        """Of all the pieces so far: where the text of the next token begins, or the character that it goes on with."""

    def push(self, token: int) -> str:
        """The text that this token completes; often empty."""
        self._ids.append(token)
        text = self._stream.step(self._tokenizer, token) or ""
        self.characters += len(text)
        return text

    def flush(self) -> str:
        """What was held back: bytes that no token can complete any more, as replacement characters."""
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=self._skip)
        return text[self.characters :]


class StopHolder:
    """Text up to the first stop text. What may be the beginning of one is held back until that is known.

    The stop text that is complete first counts (of two at once, the longer), so that the result does not
    depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that is now certain to stand before any stop text."""
        if self.stopped:
            return ""
        self._held += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._take(min(found)[1])
        return self._take(len(self._held) - self._pending())

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        return self._take(len(self._held))

    def _take(self, count: int) -> str:
        text, self._held = self._held[:count], "" if self.stopped else self._held[count:]
        return text

    def _pending(self) -> int:
        """Length of the longest end of the held text that begins a stop text."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0


class LogprobHolder:
    """Log-probabilities of tokens, each held back until the text that its token begins is sent.

    So they come with their text, however it is cut into pieces, and tokens whose text a stop text has cut off whole
    are never told.
    """

    def __init__(self) -> None:
        self._held: deque[tuple[int, TokenLogprob]] = deque()
        self._sent_characters = 0

    def push(self, logprob: TokenLogprob, *, at: int) -> None:
        """A token whose text begins after `at` characters."""
        self._held.append((at, logprob))

    def take(self, text: str, *, whole: bool = False) -> tuple[TokenLogprob, ...]:
        """Those that belong to `text`, which is sent next; all, if with it the whole text is sent."""
        self._sent_characters += len(text)
        taken = []
        while self._held and (whole or self._held[0][0] < self._sent_characters):
            taken.append(self._held.popleft()[1])
        return tuple(taken)
