"""Finds personal data and secrets, and puts a placeholder of its kind in the place of each. Pure.

What is found, how well, and what is not: `docs/privacy.md`. A scrubbed text holds nothing more to find: a placeholder
changes what stands beside a number, so the lines with one are searched again until nothing new is found.
"""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.data.refine.detectors import Candidate, Detectors
from orchestrator.job_data import Privacy

ORDER = ("private_key", "api_key", "email", "iban", "credit_card", "national_id", "ip", "phone")
"""Where two findings overlap, the kind that stands first here wins: the more specific ones do. Then the longer one."""
_RANK = {kind: i for i, kind in enumerate(ORDER)}


@dataclass(frozen=True, slots=True)
class Finding:
    """Personal data at text[start:end]."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """A text after the search."""

    text: str
    """With placeholders such as <EMAIL>; unchanged for action `drop` and `off`."""
    counts: dict[str, int]
    """Kind -> how many; empty: nothing found. With action `drop`, a document with any must go."""


class Scrubber:
    """Scrubs texts, each by itself. One a process: making it compiles and loads tables.

    Args:
        settings: the job's `data.privacy`.
    """

    def __init__(self, settings: Privacy) -> None:
        self._action = settings.action
        self._detectors = Detectors(settings.kinds, settings.phone_region)

    def scrub(self, text: str) -> Scrubbed:
        """What the settings make of a text; with action `off` nothing is looked for."""
        if self._action == "off":
            return Scrubbed(text, {})
        if self._action == "drop":
            return Scrubbed(text, _counts(resolve(self._detectors.candidates(text))))
        findings, scrubbed = self._settle(text)
        return Scrubbed(scrubbed, _counts(findings))

    def find(self, text: str) -> list[Finding]:
        """All that would be redacted, in order, never overlapping; whatever the action is."""
        return self._settle(text)[0]

    def _settle(self, text: str) -> tuple[list[Finding], str]:
        """The findings in `text`, and the text with placeholders in which nothing more is found."""
        findings = resolve(self._detectors.candidates(text))
        if not findings:
            return findings, text
        settled: list[Finding] = []
        for start, end, inside in _lines_with(findings, text):
            line, known = text[start:end], [Finding(f.kind, f.start - start, f.end - start) for f in inside]
            while new := resolve(self._detectors.candidates(redact(line, known))):
                known = sorted(known + _in_original(new, known), key=lambda f: f.start)
            settled += [Finding(f.kind, f.start + start, f.end + start) for f in known]
        return settled, redact(text, settled)


def find(text: str, settings: Privacy) -> list[Finding]:
    """The personal data and secrets in a text: sorted, never overlapping; whatever the action is."""
    return Scrubber(settings).find(text)


def placeholder(kind: str) -> str:
    """What stands in a text instead of a finding: <EMAIL>, <CREDIT_CARD>."""
    return f"<{kind.upper()}>"


def redact(text: str, findings: Iterable[Finding]) -> str:
    """The text with a placeholder for each finding. The findings must be sorted and not overlap."""
    parts, position = [], 0
    for finding in findings:
        parts += [text[position : finding.start], placeholder(finding.kind)]
        position = finding.end
    return "".join([*parts, text[position:]])


def resolve(candidates: Iterable[Candidate]) -> list[Finding]:
    """Of candidates that overlap, the first by `ORDER` stays, then the longer, then the earlier."""
    starts: list[int] = []
    taken: list[Candidate] = []
    for candidate in sorted(set(candidates), key=lambda c: (_RANK[c.kind], c.start - c.end, c.start)):
        i = bisect(starts, candidate.start)
        if (i and taken[i - 1].end > candidate.start) or (i < len(taken) and taken[i].start < candidate.end):
            continue
        starts.insert(i, candidate.start)
        taken.insert(i, candidate)
    return [Finding(*candidate) for candidate in taken]


def _in_original(new: Sequence[Finding], known: Sequence[Finding]) -> list[Finding]:
    """Findings in a text with placeholders for `known`, as places in the text that it was made of; both are sorted.

    No detector takes `<` or `>` into a finding, so a new one never touches a placeholder.
    """
    moved, shift, i = [], 0, 0
    for finding in new:
        while i < len(known) and known[i].start <= finding.start + shift:
            shift += known[i].end - known[i].start - len(placeholder(known[i].kind))
            i += 1
        moved.append(Finding(finding.kind, finding.start + shift, finding.end + shift))
    return moved


def _lines_with(findings: Sequence[Finding], text: str) -> Iterator[tuple[int, int, list[Finding]]]:
    """The stretches of lines that hold findings, as (start, end, findings); neighbouring lines are one stretch.

    Whether something is a finding depends on what stands on its line, but for private keys, which nothing precedes in
    `ORDER`. So a placeholder can only change what is found on its own line.
    """
    start, end, inside = 0, -1, list[Finding]()
    for finding in findings:
        if finding.start > end + 1:
            if inside:
                yield start, end, inside
            start, inside = text.rfind("\n", 0, finding.start) + 1, []
        if finding.end > end:
            line_end = text.find("\n", finding.end)
            end = len(text) if line_end < 0 else line_end
        inside.append(finding)
    if inside:
        yield start, end, inside


def _counts(findings: Iterable[Finding]) -> dict[str, int]:
    return dict(Counter(finding.kind for finding in findings))
