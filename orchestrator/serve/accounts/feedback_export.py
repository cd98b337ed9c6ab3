"""Feedback as training data, in the formats that `data.kind: preference` and `data.kind: chat` read.

Only what was given with consent, and whose texts were kept.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.serve.accounts.database import Session

Format = Literal["preference", "chat"]
Message = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """Of one choice of one answer."""

    prompt: str | tuple[tuple[str, str], ...]
    """Text, or a chat as (role, content)."""
    completion: str
    rating: str | float
    correction: str | None


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Rows to write, and why the rest of the feedback is none."""

    rows: list[dict[str, Any]]
    left_out: dict[str, int]


def export(session: Session, to: Format) -> Exported:
    """All feedback that can be used, oldest first."""
    opinions, left_out = _opinions(session)
    rows = preferences(opinions) if to == "preference" else chats(opinions)
    unused = len(opinions) - _used(opinions, to)
    if unused:
        left_out["no other answer to compare with" if to == "preference" else "not rated up"] = unused
    return Exported(rows=rows, left_out=dict(left_out))


def preferences(opinions: Sequence[Opinion]) -> list[dict[str, Any]]:
    """A correction is preferred to what it corrects; of two answers to one prompt, the one that is rated higher."""
    corrected = [
        _pair(o.prompt, o.correction, o.completion) for o in opinions if o.correction and o.correction != o.completion
    ]
    compared = [_pair(better.prompt, better.completion, worse.completion) for better, worse in _compared(opinions)]
    return corrected + compared


def chats(opinions: Iterable[Opinion]) -> list[dict[str, Any]]:
    """What was corrected, as it should have been, and what was rated `up`; scores have no scale that says `good`."""
    rows = []
    for opinion in opinions:
        answer = _good(opinion)
        if answer:
            prompt = [("user", opinion.prompt)] if isinstance(opinion.prompt, str) else opinion.prompt
            rows.append({"messages": [*_messages(prompt), *_messages([("assistant", answer)])]})
    return rows


def _good(opinion: Opinion) -> str | None:
    return opinion.correction or (opinion.completion if opinion.rating == "up" else None)


def _used(opinions: Sequence[Opinion], to: Format) -> int:
    if to == "chat":
        return sum(1 for opinion in opinions if _good(opinion))
    paired = {id(opinion) for pair in _compared(opinions) for opinion in pair}
    return sum(1 for o in opinions if (o.correction and o.correction != o.completion) or id(o) in paired)


def _compared(opinions: Sequence[Opinion]) -> list[tuple[Opinion, Opinion]]:
    """(better, worse) of answers to the same prompt: the best with the worst, and so on; thumbs apart from scores."""
    groups: dict[Any, list[Opinion]] = {}
    for opinion in opinions:
        groups.setdefault((opinion.prompt, isinstance(opinion.rating, str)), []).append(opinion)
    pairs = []
    for group in groups.values():
        ranked = sorted(group, key=_score, reverse=True)
        for better, worse in zip(ranked, reversed(ranked), strict=True):
            if _score(better) <= _score(worse):
                break
            if better.completion != worse.completion:
                pairs.append((better, worse))
    return pairs


def _score(opinion: Opinion) -> float:
    return float(opinion.rating == "up") if isinstance(opinion.rating, str) else opinion.rating


def _pair(prompt: str | tuple[tuple[str, str], ...], chosen: str, rejected: str) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    answers = {name: _messages([("assistant", text)]) for name, text in (("chosen", chosen), ("rejected", rejected))}
    return {"prompt": _messages(prompt), **answers}


def _messages(turns: Iterable[tuple[str, str]]) -> list[Message]:
    return [{"role": role, "content": content} for role, content in turns]


def _opinions(session: Session) -> tuple[list[Opinion], Counter[str]]:
    found: list[Opinion] = []
    left_out: Counter[str] = Counter()
    for texts, choice, rating, correction, consent in session.rows(
        "SELECT a.texts, f.choice, f.rating, f.correction, f.consent FROM slipway_feedback f"
        " JOIN slipway_answers a ON a.id = f.id ORDER BY f.at, f.id, f.choice"
    ):
        if not consent:
            left_out["no consent"] += 1
            continue
        opinion = None if texts is None else _opinion(json.loads(texts), choice, json.loads(rating), correction)
        if opinion is None:
            left_out["its texts were not kept"] += 1
        else:
            found.append(opinion)
    return found, left_out


def _opinion(texts: dict[str, Any], choice: int, rating: str | float, correction: str | None) -> Opinion | None:
    """None: the answer has no such choice."""
    prompts, completions = texts["prompts"], texts["completions"]
    if choice >= len(completions):
        return None
    asked = prompts[choice // (len(completions) // len(prompts))]
    prompt = asked if isinstance(asked, str) else tuple((turn["role"], turn["content"]) for turn in asked)
    return Opinion(prompt=prompt, completion=completions[choice], rating=rating, correction=correction)
