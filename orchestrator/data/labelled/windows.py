"""Rows that are longer than a model takes: windows over a context, pairs cut to fit, words kept whole. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Span = tuple[int, int]
"""First and last token, both inside."""


@dataclass(frozen=True)
class Window:
    """Tokens [first, end) of a context."""

    first: int
    end: int

    def holds(self, span: Span) -> bool:
        """Whether all of the span is inside."""
        return self.first <= span[0] and span[1] < self.end

    def inside(self, span: Span) -> Span:
        """The span counted from the window's first token."""
        return span[0] - self.first, span[1] - self.first


def question_room(question_tokens: int, *, max_tokens: int, special_tokens: int = 3) -> int:
    """Tokens of a question that are kept: all, or its beginning if it would leave the context less than half."""
    return min(question_tokens, max(0, (max_tokens - special_tokens) // 2))


def context_windows(
    context_tokens: int, *, room_tokens: int, overlap_tokens: int, answers: Iterable[Span] = ()
) -> list[Window]:
    """Windows that cover a context, each sharing `overlap_tokens` with the one before.

    An answer of up to `room_tokens` that no window holds whole gets one of its own, with the answer in its middle.
    Without `answers`, as where they are to be found, the windows depend on lengths only.

    Args:
        room_tokens: what a window holds at most, at least 1: the model's length less question and special tokens.
        overlap_tokens: cut down to `room_tokens - 1`.
    """
    stride = max(1, room_tokens - overlap_tokens)
    windows = [Window(0, min(room_tokens, context_tokens))]
    while windows[-1].end < context_tokens:
        first = windows[-1].first + stride
        windows.append(Window(first, min(first + room_tokens, context_tokens)))
    for first, last in answers:
        length = last + 1 - first
        if length > room_tokens or any(window.holds((first, last)) for window in windows):
            continue
        middle = max(0, min(first - (room_tokens - length) // 2, context_tokens - room_tokens))
        windows.append(Window(middle, min(middle + room_tokens, context_tokens)))
    return windows


def truncate_pair(first_tokens: int, second_tokens: int, *, room_tokens: int) -> tuple[int, int]:
    """Lengths of two texts cut to fit together, the longer one first, both alike once they are equally long."""
    if first_tokens + second_tokens <= room_tokens:
        return first_tokens, second_tokens
    shorter = min(first_tokens, second_tokens)
    if 2 * shorter >= room_tokens:
        kept = room_tokens // 2
        return (room_tokens - kept, kept) if first_tokens >= second_tokens else (kept, room_tokens - kept)
    if first_tokens >= second_tokens:
        return room_tokens - second_tokens, second_tokens
    return first_tokens, room_tokens - first_tokens


def word_windows(word_starts: Sequence[int], total_tokens: int, *, room_tokens: int) -> list[tuple[int, int]]:
    """Words [first, end) of each window: cut between words, each word in exactly one.

    A word of more than `room_tokens` has a window of its own, whose tokens the caller cuts off.

    Args:
        word_starts: the first token of each word.
        room_tokens: tokens of a window at most, at least 1.
    """
    ends = [*word_starts[1:], total_tokens]
    windows, first = [], 0
    for word in range(1, len(word_starts)):
        if ends[word] - word_starts[first] > room_tokens:
            windows.append((first, word))
            first = word
    return [*windows, (first, len(word_starts))] if len(word_starts) else []
