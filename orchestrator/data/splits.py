"""Which split a document belongs to: by a hash of its content, so that a repeated text never crosses splits. Pure.

No split that is asked for stays empty: where the hash leaves one so, the document whose size is nearest to the
share asked for moves there; where every document is much larger than that share, the end of the longest is cut off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.errors import DataError
from orchestrator.job_data import Split

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_TOO_LARGE = 4.0
"""A document over this many times the share asked for is not moved: it would take too much from training."""


@dataclass(frozen=True)
class Documents:
    """Distinct documents: content digest -> UTF-8 bytes."""

    sizes_bytes: Mapping[bytes, int]


@dataclass(frozen=True)
class SplitDecision:
    """Everything needed to place any document."""

    shares: Split
    moved: Mapping[bytes, str] = field(default_factory=dict)
    cut: bytes | None = None
    tails: Sequence[tuple[str, float]] = ()
    """Of the document that is cut: (split, share of the document), from its end backwards in reverse order."""

    def split_of(self, digest: bytes) -> str:
        """The split of a whole document (of its head, for the one that is cut)."""
        return self.moved.get(digest) or by_hash(digest, self.shares)

    def pieces(self, digest: bytes, text: str) -> list[tuple[str, str]]:
        """The (split, text) pieces of a document: one, but for the document that is cut."""
        if digest != self.cut:
            return [(self.split_of(digest), text)]
        ends = [len(text)]
        for i, (_, share) in enumerate(reversed(self.tails)):
            room = len(self.tails) - i  # characters that must stay for what comes before
            wanted = ends[-1] - max(1, round(share * len(text)))
            ends.append(max(room, _line_start(text, wanted, ends[-1])))
        ends.reverse()
        names = [self.split_of(digest), *(name for name, _ in self.tails)]
        starts = [0, *ends[:-1]]
        return [(name, text[a:b]) for name, a, b in zip(names, starts, ends, strict=True)]


def by_hash(digest: bytes, shares: Split) -> str:
    """The split of a digest, by its first 64 bits as a number in [0, 1)."""
    u = int.from_bytes(digest[:8], "big") / 2**64
    if u < shares.test:
        return TEST
    return VALIDATION if u < shares.test + shares.validation else TRAIN


def asked_for(shares: Split) -> list[str]:
    """The splits a job asks for."""
    extra = ((VALIDATION, shares.validation), (TEST, shares.test))
    return [TRAIN, *(name for name, share in extra if share > 0)]


def decide(documents: Documents, shares: Split) -> SplitDecision:
    """Fill every split that is asked for.

    Raises:
        DataError: there is less text than splits.
    """
    sizes = documents.sizes_bytes
    total = sum(sizes.values())
    members: dict[str, set[bytes]] = {name: set() for name in asked_for(shares)}
    for digest in sizes:
        members[by_hash(digest, shares)].add(digest)
    wanted = {TRAIN: 1.0 - shares.validation - shares.test, VALIDATION: shares.validation, TEST: shares.test}
    moved: dict[bytes, str] = {}
    missing: list[str] = []
    for name, own in members.items():
        if own:
            continue
        giver = max(members, key=lambda m: (sum(sizes[d] for d in members[m]), m))
        target = wanted[name] * total
        fits = [d for d in members[giver] if sizes[d] <= _TOO_LARGE * target] if len(members[giver]) > 1 else []
        if not fits:
            missing.append(name)
            continue
        chosen = min(fits, key=lambda d: (abs(sizes[d] - target), d))
        members[giver].remove(chosen)
        own.add(chosen)
        moved[chosen] = name
    if not missing:
        return SplitDecision(shares, moved)
    return _with_cut(sizes, SplitDecision(shares, moved), missing, {n: wanted[n] * total for n in missing})


def _with_cut(
    sizes: Mapping[bytes, int], decision: SplitDecision, missing: list[str], wanted_bytes: Mapping[str, float]
) -> SplitDecision:
    longest = max(sizes, key=lambda d: (sizes[d], d), default=b"")
    if sizes.get(longest, 0) <= 4 * len(missing):  # a character of UTF-8 has up to 4 bytes
        raise DataError(
            f"{len(sizes)} document(s) with {sum(sizes.values())} bytes are too little text for the splits asked for",
            fix="add text, or set data.split.validation and data.split.test to 0",
        )
    moved, tails = dict(decision.moved), [n for n in missing if n != TRAIN]
    if TRAIN in missing:  # training keeps the head, and what the hash had chosen gets the tail
        tails = [*tails, decision.split_of(longest)]
        moved[longest] = TRAIN
    shares = [(n, min(0.5, wanted_bytes.get(n, sizes[longest] / 2) / sizes[longest])) for n in tails]
    return SplitDecision(decision.shares, moved, cut=longest, tails=tuple(shares))


def _line_start(text: str, wanted: int, end: int) -> int:
    """A place to cut at or before `wanted`: the start of a line if one is near, else `wanted` itself."""
    wanted = max(1, min(wanted, end - 1))
    newline = text.rfind("\n", max(0, wanted - 1000), wanted)
    return newline + 1 if newline > 0 else wanted
