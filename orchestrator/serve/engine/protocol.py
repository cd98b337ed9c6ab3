"""What an engine is: completions asked for, and what it gives of them. Imports no torch."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from typing import Literal, Protocol

from model.logprob import TokenLogprob

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one completion is drawn, and where it ends."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    """The same seed gives the same completion, whatever else the engine does meanwhile; None draws one."""
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    """Alternatives to each token that are told beside its log-probability; None: neither is."""
    of_prompt: bool = False
    """Whether the prompt's log-probabilities are told too; `logprobs` says how."""


@dataclass(frozen=True)
class Piece:
    """Text to send on, and the number of tokens it took; the last one says why it ended."""

    text: str
    tokens: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    """If asked for, of the tokens whose text begins in this piece; the end-of-text token is in the last one."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """If asked for, of all the prompt, in the first piece."""

    @classmethod
    def joined(cls, pieces: Ids[Piece]) -> Piece:
        """Pieces that follow each other, as one."""
        return cls(
            "".join(piece.text for piece in pieces),
            sum(piece.tokens for piece in pieces),
            pieces[-1].finish_reason,
            tuple(logprob for piece in pieces for logprob in piece.logprobs),
            pieces[0].prompt_logprobs,
        )


class EngineError(Exception):
    """A completion that the engine could not make; the client gets a 500."""


class InferenceEngine(Protocol):
    """What the routes need of an engine."""

    def generate(self, prompt_T: Ids[int], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """The completion, piece by piece; closing the iterator ends the work on it."""
        ...

    async def check(self, *, timeout_s: float) -> None:
        """Make one token.

        Raises:
            EngineError: there was none in this time.
        """
        ...
