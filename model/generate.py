"""From logits to tokens: sampling one, how likely each was, and generating many with a cache.

Shapes: T tokens, D width, V vocabulary, A allowed entries of it, N likeliest of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from model.cache import KVCache
from model.gpt import GPT
from model.logprob import TokenLogprob

_LEAST_TEMPERATURE = torch.finfo(torch.float32).tiny
"""What is smaller is 0 to fp32, and 0 divided by it no number."""
_SCORED_ROWS = 256
"""Positions whose logits are held at once, in fp32, while a prompt is scored."""


def sample(
    logits_V: Tensor,
    *,
    temperature: float,
    top_p: float,
    generator: torch.Generator | None,
    allowed_size: int,
) -> int:
    """Draw one token id below `allowed_size`.

    Args:
        logits_V: any precision, any device.
        temperature: divides the logits; 0 takes the likeliest token and draws nothing.
        top_p: draw among the fewest likeliest tokens that reach this share (Holtzman et al. 2019); 1 is all.
        generator: the state of the randomness, on the logits' device; None is torch's global one.
        allowed_size: ids from here on are never drawn, such as a vocabulary's padding beyond its tokenizer.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """
    if temperature < 0:
        raise ValueError(f"temperature {temperature} is negative")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p {top_p} is not above 0 and at most 1")
    if not 0 < allowed_size <= len(logits_V):
        raise ValueError(f"allowed_size {allowed_size} is not between 1 and the vocabulary's {len(logits_V)}")
    logits_A = logits_V[:allowed_size].float()
    if temperature == 0:
        return int(logits_A.argmax())
    # The largest becomes 0 first: a tiny temperature may then take the others to -inf, which is right.
    divisor = max(temperature, _LEAST_TEMPERATURE)
    probabilities_A = torch.softmax((logits_A - logits_A.max()) / divisor, dim=-1)
    if top_p == 1:
        return int(torch.multinomial(probabilities_A, 1, generator=generator))
    sorted_A, ids_A = probabilities_A.sort(descending=True, stable=True)
    before_A = sorted_A.cumsum(-1) - sorted_A
    nucleus_A = sorted_A * (before_A < top_p)
    return int(ids_A[torch.multinomial(nucleus_A, 1, generator=generator)])


def token_logprobs(logits_TV: Tensor, tokens_T: Sequence[int], *, top: int, allowed_size: int) -> list[TokenLogprob]:
    """The log-probability of each token under its row of logits, and the `top` likeliest ids below `allowed_size`.

    It is that of the softmax over all of V, padding included, as in training, before any temperature or nucleus.
    """
    logits_TV = logits_TV.float()
    total_T1 = logits_TV.logsumexp(-1, keepdim=True)
    given_T1 = torch.tensor(tokens_T, device=logits_TV.device)[:, None]
    own_T = (logits_TV.gather(1, given_T1) - total_T1)[:, 0].tolist()
    best = logits_TV[:, :allowed_size].topk(min(top, allowed_size))
    rows = zip(tokens_T, own_T, best.indices.tolist(), (best.values - total_T1).tolist(), strict=True)
    return [TokenLogprob(token, own, tuple(zip(ids_N, best_N, strict=True))) for token, own, ids_N, best_N in rows]


def prompt_logprobs(
    model: GPT, x_TD: Tensor, tokens_T: Sequence[int], *, top: int, allowed_size: int
) -> list[TokenLogprob]:
    """As `token_logprobs`, of each token of a prompt after those before it; `x_TD` is `model.hidden` of the prompt.

    The logits of a few hundred positions are in memory at once, never those of the whole prompt.
    """
    found = [TokenLogprob(tokens_T[0], None)]
    for first in range(0, len(tokens_T) - 1, _SCORED_ROWS):
        predicted_T = tokens_T[first + 1 : first + 1 + _SCORED_ROWS]
        logits_TV = model.logits(x_TD[first : first + len(predicted_T)])
        found += token_logprobs(logits_TV, predicted_T, top=top, allowed_size=allowed_size)
    return found


@torch.inference_mode()
def generate(model: GPT, prompt_T: Sequence[int], *, pick: Callable[[Tensor], int]) -> Iterator[int]:
    """Continue one prompt, a token at a time, until the caller stops or the context is full.

    `pick` takes logits [V] to an id: `functools.partial(sample, ...)`. Call `model.eval()` first.

    Raises:
        ValueError: the prompt is empty or exceeds the context.
    """
    if not prompt_T:
        raise ValueError("the prompt is empty; begin with the tokenizer's start token")
    weights = model.embed.weight
    cache = KVCache.empty(model.config, rows=1, dtype=weights.dtype, device=weights.device)
    ids_1T = torch.tensor([prompt_T], device=weights.device)
    while True:
        token = pick(model.logits(model.hidden(ids_1T, cache)[0, -1]))
        yield token
        if int(cache.lengths_B) == model.config.context:
            return
        ids_1T = torch.tensor([[token]], device=weights.device)
