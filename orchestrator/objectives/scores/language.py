"""How well text is predicted: loss, perplexity, bits per byte, masked tokens, next sentences. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from orchestrator.objectives.scores.arithmetic import Series
from orchestrator.objectives.scores.result import Scores, State, require_scored

_LARGEST_EXPONENT = 700.0
"""exp() of more than 709 overflows; no model that learns comes near."""


def perplexity(loss: float) -> float:
    """exp(loss) of a loss in nats per token; about 1e304 for all losses of 700 and more, NaN for NaN."""
    return math.exp(min(loss, _LARGEST_EXPONENT))


def language_scores(nats: float, tokens: int, *, text_bytes: float | None = None) -> Scores:
    """`loss` in nats per token, `perplexity`, and `bits_per_byte` where the bytes of the text are known.

    Bits per byte compares models of different tokenizers: nats of all tokens / ln 2 / bytes of the UTF-8 text.

    Args:
        nats: cross entropy, summed over all tokens.
        text_bytes: bytes of the text that these tokens stand for.

    Raises:
        ValueError: there are no tokens.
    """
    require_scored(tokens, "tokens")
    metrics = {"loss": nats / tokens, "perplexity": perplexity(nats / tokens)}
    if text_bytes:
        metrics["bits_per_byte"] = nats / math.log(2) / text_bytes
    return Scores(metrics)


class LanguageScores:
    """Sums for `language_scores`."""

    def __init__(self) -> None:
        self._nats = Series()
        self._tokens = 0
        self._bytes: float | None = 0.0

    def add(self, nats: npt.ArrayLike, tokens: npt.ArrayLike, text_bytes: npt.ArrayLike | None = None) -> None:
        """One number each, or arrays with an entry for each row or batch.

        Args:
            nats: cross entropy, summed over the tokens.
            tokens: tokens that were predicted.
            text_bytes: bytes of the text that these tokens stand for. Missing once, bits per byte is absent.
        """
        self._nats.add(nats)
        self._tokens += int(np.sum(tokens))
        self._add_bytes(None if text_bytes is None else float(np.sum(text_bytes)))

    def state(self) -> State:
        """As Accumulator."""
        return {"nats": self._nats.values(), "tokens": self._tokens, "bytes": self._bytes}

    def merge(self, states: Iterable[State]) -> None:
        """As Accumulator."""
        for state in states:
            self._nats.add(state["nats"])
            self._tokens += state["tokens"]
            self._add_bytes(state["bytes"])

    def result(self) -> Scores:
        """As `language_scores`."""
        return language_scores(self._nats.sum(), self._tokens, text_bytes=self._bytes)

    def _add_bytes(self, more: float | None) -> None:
        self._bytes = None if self._bytes is None or more is None else self._bytes + more


class MaskedLanguageScores:
    """Loss and accuracy of masked tokens and of next sentences (Devlin et al. 2018, 3.1 and A.2)."""

    def __init__(self) -> None:
        self._masked, self._pairs = _Guesses(), _Guesses()

    def add(self, nats: npt.ArrayLike, tokens: npt.ArrayLike, correct: npt.ArrayLike) -> None:
        """One number each, or arrays with an entry for each row or batch.

        Args:
            nats: cross entropy, summed over the masked tokens.
            tokens: masked tokens.
            correct: how many of them the highest logit names.
        """
        self._masked.add(nats, tokens, correct)

    def add_pairs(self, nats: npt.ArrayLike, pairs: npt.ArrayLike, correct: npt.ArrayLike) -> None:
        """As `add`, for pairs of sentences: whether the second follows the first."""
        self._pairs.add(nats, pairs, correct)

    def state(self) -> State:
        """As Accumulator."""
        return {"masked": self._masked.state(), "pairs": self._pairs.state()}

    def merge(self, states: Iterable[State]) -> None:
        """As Accumulator."""
        for state in states:
            self._masked.merge(state["masked"])
            self._pairs.merge(state["pairs"])

    def result(self) -> Scores:
        """`loss`, `perplexity` of masked tokens, `masked_loss`, `masked_accuracy`; where there are pairs of sentences
        also `next_sentence_loss` and `next_sentence_accuracy`.

        As in the paper, `loss` is the sum of both means, in nats.
        """
        require_scored(self._masked.count, "masked tokens")
        loss, accuracy = self._masked.means()
        metrics = {"loss": loss, "perplexity": perplexity(loss), "masked_loss": loss, "masked_accuracy": accuracy}
        if self._pairs.count:
            pair_loss, pair_accuracy = self._pairs.means()
            metrics["loss"] = loss + pair_loss
            metrics |= {"next_sentence_loss": pair_loss, "next_sentence_accuracy": pair_accuracy}
        return Scores(metrics)


class _Guesses:
    """Cross entropy, number and hits of guesses of one sort."""

    def __init__(self) -> None:
        self._nats = Series()
        self.count = 0
        self._correct = 0

    def add(self, nats: npt.ArrayLike, count: npt.ArrayLike, correct: npt.ArrayLike) -> None:
        self._nats.add(nats)
        self.count += int(np.sum(count))
        self._correct += int(np.sum(correct))

    def state(self) -> State:
        return {"nats": self._nats.values(), "count": self.count, "correct": self._correct}

    def merge(self, state: State) -> None:
        self.add(state["nats"], state["count"], state["correct"])

    def means(self) -> tuple[float, float]:
        """Loss and accuracy."""
        return self._nats.sum() / self.count, self._correct / self.count
