"""How long a text may be that still fits into a context: so that no time is spent on the tokens of one that cannot.

And where time is spent on those that can.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sized
from typing import TypeVar

from tokenizers import Tokenizer
from tokenizers.models import BPE

_T = TypeVar("_T")
_SHORT = 2048
"""Characters, or ids, that are read in a fraction of a millisecond: a thread of their own would take longer to wake."""
_EACH = 64
"""What each of many counts for besides its length."""
_SLACK = 16
"""A tokenizer may drop white space, or take a long word as one unknown token."""


def longest_text(tokenizer: Tokenizer, context: int) -> int:
    """Characters that no text exceeds which fits into this many tokens; an estimate where tokens lose characters."""
    longest = max(map(len, tokenizer.get_vocab(with_added_tokens=True)))
    exact = tokenizer.normalizer is None and isinstance(tokenizer.model, BPE)
    return context * longest * (1 if exact else _SLACK)


async def beside(work: Callable[[], _T], read: Iterable[Sized]) -> _T:
    """Do some work that reads texts or ids: in a thread if they are long, for it would hold up everybody's streams."""
    return work() if sum(len(each) + _EACH for each in read) <= _SHORT else await asyncio.to_thread(work)
