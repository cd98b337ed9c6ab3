"""A completion as the step loop knows it: what was asked, and how far it is."""

from __future__ import annotations

import random
import secrets
import time
from collections import Counter
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field

from model.logprob import TokenLogprob
from model.sampling import Choice, Penalties
from orchestrator.export.prove import ProvenModel
from orchestrator.serve.engine.pages import Holding
from orchestrator.serve.engine.protocol import EngineError, FinishReason, Sampling
from orchestrator.serve.engine.writer import Ending


@dataclass(frozen=True)
class Made:
    """What a step has made of one completion."""

    token: int | None
    """None: only the prompt was to be scored."""
    reason: FinishReason | None
    """Why this is all, as far as tokens tell it."""
    logprob: TokenLogprob | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(eq=False)
class Completion:
    """The state of one completion; the step loop's thread alone changes it, `cancelled` apart."""

    prompt_T: list[int]
    sampling: Sampling
    choice: Choice
    penalties: Penalties
    ending: Ending
    chances: random.Random
    came_at: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    slot: int = -1
    holding: Holding | None = None
    read_tokens: int = 0
    """Of prompt and made ones, those that are in the cache."""
    made_T: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    @classmethod
    def asked(cls, proven: ProvenModel, prompt_T: Ids[int], sampling: Sampling) -> Completion:
        """A new one.

        Raises:
            EngineError: the prompt is empty, too long, or has ids that there are not; a setting is out of its range.
        """
        context, size = proven.config.context, proven.allowed_size
        if not prompt_T or min(prompt_T) < 0 or max(prompt_T) >= size:
            raise EngineError(f"the prompt is empty, or has ids that are not in the vocabulary of {size}")
        if sampling.max_tokens < 0 or len(prompt_T) + sampling.max_tokens > context:
            raise EngineError(f"{len(prompt_T)} tokens and {sampling.max_tokens} more exceed the context of {context}")
        try:
            choice, penalties = _settings(sampling)
        except ValueError as error:
            raise EngineError(str(error)) from error
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        ending = Ending(sampling, eos_id=proven.eos_id)
        return cls(list(prompt_T), sampling, choice, penalties, ending, random.Random(seed))

    @property
    def room(self) -> int:
        """Tokens that it may come to have in the cache."""
        return len(self.prompt_T) + self.sampling.max_tokens

    @property
    def unread_tokens(self) -> int:
        """How many tokens are not in the cache yet."""
        return len(self.prompt_T) + len(self.made_T) - self.read_tokens

    @property
    def tokens_to_come(self) -> int:
        """Still to be read or made, were it to take its `max_tokens`."""
        return max(len(self.prompt_T) - self.read_tokens, 0) + self.sampling.max_tokens - len(self.made_T)

    @property
    def barred(self) -> frozenset[int]:
        """Ids that may not be drawn now."""
        return self.ending.ids if len(self.made_T) < self.sampling.min_tokens else frozenset()

    @property
    def altered(self) -> bool:
        """Whether its logits are changed before one is drawn."""
        return not self.penalties.none or bool(self.barred)

    def tokens(self, first: int, count: int) -> list[int]:
        """Of prompt and made ones."""
        prompt = len(self.prompt_T)
        if first >= prompt:
            return self.made_T[first - prompt : first - prompt + count]
        return (self.prompt_T[first : first + count] + self.made_T)[:count]

    def counts(self) -> Counter[int]:
        """How often each token was made."""
        return Counter(self.made_T)


def _settings(sampling: Sampling) -> tuple[Choice, Penalties]:
    choice = Choice(temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k, min_p=sampling.min_p)
    penalties = Penalties(
        presence=sampling.presence_penalty,
        frequency=sampling.frequency_penalty,
        repetition=sampling.repetition_penalty,
        bias=dict(sampling.logit_bias),
    )
    return choice, penalties
