"""Between our words for a completion and vLLM's. Imports no vLLM: its outputs are read by their public fields.

Shapes: T tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Ids
from typing import Any

from torch import Tensor

from model.logprob import TokenLogprob
from orchestrator.export.compare import EXACT_TOLERANCE, MEAN_LOGPROB_TOLERANCE
from orchestrator.export.prove import ProvenModel
from orchestrator.serve.engine.completion import Made
from orchestrator.serve.engine.protocol import Sampling

_LARGEST_SEED = 2**63
MAX_ALTERNATIVES = 20
"""Of one token, that vLLM is told to give at most."""


def parameters(sampling: Sampling, proven: ProvenModel) -> dict[str, Any]:
    """The arguments of vLLM's `SamplingParams`. Texts that stop are none of them: who makes the text finds them."""
    ends = dict.fromkeys((*sampling.stop_token_ids, *(() if sampling.ignore_eos else (proven.eos_id,))))
    padding = proven.config.vocab_size - proven.allowed_size
    # Among the likeliest may be rows that are no tokens: these are left out of what is told.
    alternatives = None if sampling.logprobs is None else min(MAX_ALTERNATIVES, sampling.logprobs + padding)
    return {
        "max_tokens": max(1, sampling.max_tokens),  # vLLM scores no prompt without making a token
        "min_tokens": sampling.min_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "logit_bias": dict(sampling.logit_bias) or None,
        "seed": None if sampling.seed is None else sampling.seed % _LARGEST_SEED,
        "ignore_eos": True,  # those that end it are named
        "stop_token_ids": list(ends),
        "logprobs": alternatives,
        "prompt_logprobs": (alternatives or 0) if sampling.of_prompt else None,
        "allowed_token_ids": list(range(proven.allowed_size)) if padding else None,
        "detokenize": False,
    }


def made_of(output: Any, prompt_T: Ids[int], sampling: Sampling, *, allowed: int) -> list[Made]:
    """The new tokens of a `RequestOutput`; the prompt's log-probabilities are with the first.

    Ids from `allowed` on are none.
    """
    (choice,) = output.outputs
    told = choice.logprobs or [None] * len(choice.token_ids)
    before = prompt_logprobs(output, prompt_T, sampling, allowed=allowed)
    return [
        Made(token, None, _logprob(token, said, sampling, allowed), before if number == 0 else ())
        for number, (token, said) in enumerate(zip(choice.token_ids, told, strict=True))
    ]


def prompt_logprobs(output: Any, prompt_T: Ids[int], sampling: Sampling, *, allowed: int) -> tuple[TokenLogprob, ...]:
    """Of all the prompt, if they were asked for and this output has them."""
    if not sampling.of_prompt or not output.prompt_logprobs:
        return ()
    said_T = zip(prompt_T, output.prompt_logprobs, strict=True)
    return tuple(_logprob(token, said, sampling, allowed) or TokenLogprob(token, None) for token, said in said_T)


def _logprob(token: int, said: Mapping[int, Any] | None, sampling: Sampling, allowed: int) -> TokenLogprob | None:
    if said is None:
        return None
    known = ((each, found) for each, found in said.items() if each < allowed)
    likeliest = sorted(known, key=lambda item: item[1].rank)[: sampling.logprobs or 0]
    return TokenLogprob(token, said[token].logprob, tuple((each, found.logprob) for each, found in likeliest))


def alike(told: Ids[TokenLogprob], want_TV: Tensor, *, exact: bool) -> str | None:
    """What a prompt's log-probabilities have against those of a network; None: nothing.

    Args:
        told: of the prompt; nothing is said of its first token.
        want_TV: log-probabilities of the tokens after each place.
        exact: both were computed in fp32.
    """
    errors = [
        (abs(float(want_TV[place, each.token]) - each.logprob), place)
        for place, each in enumerate(told[1:])
        if each.logprob is not None
    ]
    if len(errors) < len(told) - 1 or not errors:
        return "it says nothing of some tokens"
    # What is no number is the worst; `max` alone would pass over it.
    worst, place = max(errors, key=lambda each: math.inf if math.isnan(each[0]) else each[0])
    # A logit may be off by the tolerance, and so may the sum over all of them.
    allowed = 2 * EXACT_TOLERANCE * max(1.0, float(want_TV.abs().max()))
    found = worst
    if not exact:
        allowed, found = MEAN_LOGPROB_TOLERANCE * 2, sum(error for error, _ in errors) / len(errors)
    if found <= allowed:  # a NaN is not
        return None
    return f"the log-probability of token {place + 1} differs by {worst:.3g}; {found:.3g} is above {allowed:.3g}"
