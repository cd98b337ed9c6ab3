"""From a completion's tokens to the pieces that may be sent."""

from __future__ import annotations

from tokenizers import Tokenizer

from model.logprob import TokenLogprob
from orchestrator.serve.engine.protocol import FinishReason, Piece, Sampling
from orchestrator.serve.engine.text import Detokenizer, LogprobHolder, StopHolder


class Ending:
    """Which token is the last of a completion, as far as tokens tell it."""

    def __init__(self, sampling: Sampling, *, eos_id: int) -> None:
        self.ids = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else {eos_id})
        """Those that end it."""
        self._sampling = sampling

    def reason(self, token: int, count: int) -> FinishReason | None:
        """Why the token, which is number `count`, is the last; None: it is not."""
        if token in self.ids:
            return "stop"
        return "length" if count >= self._sampling.max_tokens else None


class Writer:
    """What becomes of a completion's tokens: text that may be sent on, its log-probabilities, and an end."""

    def __init__(self, tokenizer: Tokenizer, sampling: Sampling, *, eos_id: int) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopHolder(sampling.stop)
        self._logprobs = LogprobHolder()
        self._ending = Ending(sampling, eos_id=eos_id)
        self._tokens = 0

    def push(self, token: int, logprob: TokenLogprob | None = None) -> Piece:
        """What this token adds. The piece of the last one, which has all that was held back, says why it is that."""
        self._tokens += 1
        if logprob is not None:
            self._logprobs.push(logprob, at=self._detokenizer.characters)
        text, reason = self._text_of(token)
        whole = reason is not None and not self._stops.stopped
        return Piece(text, 1, reason, self._logprobs.take(text, whole=whole))

    def _text_of(self, token: int) -> tuple[str, FinishReason | None]:
        reason = self._ending.reason(token, self._tokens)
        text = "" if reason == "stop" else self._stops.push(self._detokenizer.push(token))
        if not self._stops.stopped:
            if reason is None:
                return text, None
            text += self._stops.push(self._detokenizer.flush())
        if self._stops.stopped:
            return text, "stop"
        return text + self._stops.flush(), reason
