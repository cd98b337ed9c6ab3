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
    top_k: int = 0
    """Only the likeliest this many tokens; 0: all."""
    min_p: float = 0.0
    """Only tokens at least this share as likely as the likeliest one."""
    presence_penalty: float = 0.0
    """Taken from the logit of each token that the completion has already."""
    frequency_penalty: float = 0.0
    """Taken from it once for each time that the completion has it."""
    repetition_penalty: float = 1.0
    """Divides logits above 0, multiplies others, of tokens in the prompt or the completion (Keskar et al. 2019)."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, and what is added to the logit of each."""
    seed: int | None = None
    """The same seed gives the same completion, whatever else the engine does meanwhile; None draws one."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the completion as the end of the text does."""
    ignore_eos: bool = False
    """Whether the completion goes on after the end of the text."""
    min_tokens: int = 0
    """Neither the end of the text nor a stop token is drawn before this many; stop texts count from the first."""
    logprobs: int | None = None
    """Alternatives to each token that are told beside its log-probability; None: neither is."""
    of_prompt: bool = False
    """Whether the prompt's log-probabilities are told too; `logprobs` says how."""
    in_pieces: bool = True
    """Whether pieces are wanted as they come; else all of the completion may come in the last one."""


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


@dataclass(frozen=True, kw_only=True)
class Load:
    """How busy an engine is: what autoscaling and metrics read. Totals count from the engine's start."""

    running: int
    """Completions that the next step works on."""
    waiting: int
    """Completions that wait for a slot or for room in the cache."""
    tokens_in_flight: int
    """Tokens still to be read or made for all these, were each to take its `max_tokens`."""
    cache_tokens: int
    """Reserved by what runs, in whole pages."""
    cache_limit_tokens: int
    oldest_wait_s: float
    """How long the first one that waits has waited; 0 where none does."""
    requests: int
    """Ended, whatever the end."""
    prompt_tokens: int
    """Of completions that were begun; those found in the cache are among them."""
    cached_prompt_tokens: int
    """Of these, found in the cache."""
    completion_tokens: int
    """Given to whoever asked."""
    steps: int
    last_step_s: float
    """Wall time of the last step."""
    compiled: bool
    """Whether the compiled decoder computes."""


class EngineError(Exception):
    """A completion that the engine could not make; the client gets a 500."""


class EngineBusyError(EngineError):
    """Too many completions wait already; the client gets a 429 and had better come back later."""


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
