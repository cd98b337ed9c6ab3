"""Which language a document is in: langid (Lui and Baldwin 2012) as py3langid, offline. The one home of py3langid."""

from __future__ import annotations

from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from orchestrator.errors import JobError
from orchestrator.job_data import Languages

SAMPLE_CHARACTERS = 2000
"""A longer document is judged by this many from its middle: its ends are where headings and notices stand."""


@cache
def _identifier() -> LanguageIdentifier:
    """One model a process: it takes half a second to load, and knows no settings."""
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


class LanguageFilter:
    """Keeps documents that are probably in one of the languages asked for.

    The probability of a language is among all that are known, not only among those asked for.

    Raises:
        JobError: a code is not known.
    """

    def __init__(self, settings: Languages) -> None:
        known = _identifier().labels
        if unknown := sorted(set(settings.keep) - set(known)):
            raise JobError(
                f"data.clean.language.keep names {', '.join(unknown)}, which language identification does not know",
                fix=f"use codes out of {', '.join(sorted(known))}",
            )
        self._settings = settings

    def best(self, text: str) -> float:
        """The probability of the likeliest language of `keep`."""
        start = max(0, (len(text) - SAMPLE_CHARACTERS) // 2)
        probability: dict[str, float] = dict(_identifier().rank(text[start : start + SAMPLE_CHARACTERS]))
        return max(probability[code] for code in self._settings.keep)

    def keeps(self, text: str) -> bool:
        """Whether that reaches `min_probability`."""
        return self.best(text) >= self._settings.min_probability
