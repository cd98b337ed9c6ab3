"""Which sequence has which page of the cache, and which pages hold the beginning of a prompt that comes again.

A page that is full of tokens is known by these and by the page before it. When nobody has it any more it is kept, until
its room is needed: the one that was left longest goes first, and of a sequence its end before its beginning.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

_Key = tuple[int, tuple[int, ...]]
"""What a page continues, and its tokens."""
_BEGINNING = 0


@dataclass
class Holding:
    """The pages of one sequence."""

    pages: list[int]
    found_tokens: int
    """In the first of them, from others that began alike."""
    epoch: int
    known: int
    """Of the pages, how many others may find."""
    last: int
    """What the last of these is known as."""


@dataclass
class PagePool:
    """A fixed number of pages; numbers alone, no memory."""

    pages: int
    page_tokens: int
    _free: list[int] = field(init=False)
    _holders: dict[int, int] = field(init=False, default_factory=dict)
    _known: dict[_Key, tuple[int, int]] = field(init=False, default_factory=dict)
    """To a page, and what it is known as."""
    _keys: dict[int, _Key] = field(init=False, default_factory=dict)
    """Of pages that may be found."""
    _idle: OrderedDict[int, None] = field(init=False, default_factory=OrderedDict)
    """Those of them that nobody has, the one left longest first."""
    _names: int = field(init=False, default=_BEGINNING)
    _epoch: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """All are free."""
        self._free = list(range(self.pages - 1, -1, -1))

    @property
    def held(self) -> int:
        """Pages that a sequence has."""
        return len(self._holders)

    def hold(self, tokens: Sequence[int], *, room: int, reuse: bool = True) -> Holding | None:
        """Pages for a sequence that begins with `tokens` and may grow to `room`; None while there are not enough.

        At least the last of the tokens is left to be read: what follows it is asked for.
        """
        found, last = self._find(tokens) if reuse else ([], _BEGINNING)
        fresh = -(-room // self.page_tokens) - len(found)
        woken = sum(page in self._idle for page in found)
        if fresh > len(self._free) + len(self._idle) - woken:
            return None
        for page in found:
            self._holders[page] = self._holders.get(page, 0) + 1
            self._idle.pop(page, None)
        pages = found + [self._take() for _ in range(fresh)]
        return Holding(pages, len(found) * self.page_tokens, self._epoch, len(found), last)

    def learn(self, holding: Holding, tokens: Sequence[int]) -> None:
        """Let others find the pages that `tokens`, which have been read, fill."""
        if holding.epoch != self._epoch:
            return
        for index in range(holding.known, len(tokens) // self.page_tokens):
            page, key = holding.pages[index], (holding.last, self._part(tokens, index))
            if key not in self._known:
                self._names += 1
                self._known[key] = page, self._names
                self._keys[page] = key
            holding.last = self._known[key][1]
            holding.known = index + 1

    def release(self, holding: Holding, *, forget: bool = False) -> list[int]:
        """The sequence has ended; what its pages hold is not to be found any more if it is to `forget`.

        Returns the pages that nobody has now.
        """
        left = []
        for page in reversed(holding.pages):
            self._holders[page] -= 1
            if forget:
                self._forget(page)
            if self._holders[page]:
                continue
            del self._holders[page]
            left.append(page)
            if page in self._keys:
                self._idle[page] = None
            else:
                self._free.append(page)
        return left

    def forget_all(self) -> None:
        """What is held stays so, but nothing of what was read until now is found any more: the weights are others."""
        self._free += self._idle
        self._idle.clear()
        self._known.clear()
        self._keys.clear()
        self._epoch += 1

    def _find(self, tokens: Sequence[int]) -> tuple[list[int], int]:
        pages, last = [], _BEGINNING
        for index in range((len(tokens) - 1) // self.page_tokens):
            if (known := self._known.get((last, self._part(tokens, index)))) is None:
                break
            page, last = known
            pages.append(page)
        return pages, last

    def _part(self, tokens: Sequence[int], index: int) -> tuple[int, ...]:
        return tuple(tokens[index * self.page_tokens : (index + 1) * self.page_tokens])

    def _take(self) -> int:
        if not self._free:
            page, _ = self._idle.popitem(last=False)
            self._forget(page)
            self._free.append(page)
        page = self._free.pop()
        self._holders[page] = 1
        return page

    def _forget(self, page: int) -> None:
        if (key := self._keys.pop(page, None)) is not None:
            del self._known[key]
