"""How long a text may be that still fits into a context: so that no time is spent on the tokens of one that cannot."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import BPE

_SLACK = 16
"""A tokenizer may drop white space, or take a long word as one unknown token."""


def longest_text(tokenizer: Tokenizer, context: int) -> int:
    """Characters that no text exceeds which fits into this many tokens; an estimate where tokens lose characters."""
    longest = max(map(len, tokenizer.get_vocab(with_added_tokens=True)))
    exact = tokenizer.normalizer is None and isinstance(tokenizer.model, BPE)
    return context * longest * (1 if exact else _SLACK)
