"""One detector for each kind of personal data, and what they share: a single pass over the digits of a text. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from orchestrator.data.refine.detect_email import emails
from orchestrator.data.refine.detect_keys import api_keys
from orchestrator.data.refine.detect_national import national_ids
from orchestrator.data.refine.detect_numbers import Run, cards, ibans, ipv4, ipv6, runs
from orchestrator.data.refine.detect_phone import Phones
from orchestrator.data.refine.detect_private_keys import private_keys

Spans = Iterator[tuple[int, int]]
InText = Callable[[str], Spans]
InRun = Callable[[str, Run], Spans]

_IN_TEXT: dict[str, InText] = {"private_key": private_keys, "api_key": api_keys, "email": emails, "ip": ipv6}
_IN_RUN: dict[str, InRun] = {"iban": ibans, "credit_card": cards, "national_id": national_ids, "ip": ipv4}


class Candidate(NamedTuple):
    """What a detector found; candidates may overlap."""

    kind: str
    start: int
    end: int


class Detectors:
    """The detectors of some kinds.

    Args:
        kinds: which; the names of `PersonalData`.
        phone_region: ISO 3166 code of the country whose telephone numbers are known without country code.
    """

    def __init__(self, kinds: Sequence[str], phone_region: str) -> None:
        in_run = {**_IN_RUN, "phone": Phones(phone_region).find}
        self._in_text = [(kind, _IN_TEXT[kind]) for kind in kinds if kind in _IN_TEXT]
        self._in_run = [(kind, in_run[kind]) for kind in kinds if kind in in_run]

    def candidates(self, text: str) -> list[Candidate]:
        """All that is found, kind by kind."""
        found = [Candidate(kind, *span) for kind, detect in self._in_text for span in detect(text)]
        if self._in_run:
            all_runs = runs(text)
            found += [
                Candidate(kind, *span)
                for run in all_runs
                for kind, detect in self._in_run
                for span in detect(text, run)
            ]
        return found
