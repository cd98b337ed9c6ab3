"""What people think of answers, and the answers that they speak of.

Of every answer its id, key, model and version are kept for a while, so that feedback can name them. Texts are kept only
if the service opted in, and then without the personal data that can be found in them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

from orchestrator.serve.accounts.database import Database, Row, Session
from orchestrator.serve.accounts.keys import utc
from orchestrator.serve.api.errors import ApiError
from orchestrator.serve.api.feedback import Feedback
from orchestrator.serve.api.front import Answered, Caller

KEPT_S = 30 * 86400.0
"""An answer without feedback is forgotten after this time, and its texts where nobody consented."""
KEPT_ANSWERS = 1_000_000
"""The newest; of more, those without feedback are forgotten sooner."""
_CHUNK = 500
_UP, _DOWN = json.dumps("up"), json.dumps("down")
"""Ratings as they are kept."""
Scrub = Callable[[str], str]


def remember(session: Session, answered: Answered, *, key_id: str | None, model: str, version: str) -> None:
    """Keep whose answer this is, without its texts."""
    session.run(
        "INSERT INTO slipway_answers (id, key_id, model, version, at) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        *(answered.id, key_id or "", model, version, session.now()),
    )


def scrubbed(answered: Answered, scrub: Scrub) -> str | None:
    """The texts of an answer as they may be kept; None: none were handed over."""
    if answered.prompts is None or answered.completions is None:
        return None
    is_chat = answered.id.startswith("chatcmpl-")
    prompts = [_scrubbed_chat(text, scrub) if is_chat else scrub(text) for text in answered.prompts]
    completions = [scrub(text) for text in answered.completions]
    return json.dumps({"prompts": prompts, "completions": completions}, ensure_ascii=False)


def _scrubbed_chat(text: str, scrub: Scrub) -> list[dict[str, str]]:
    """The messages of a chat; each for itself, as JSON's escapes hide the beginning of what is looked for."""
    return [{"role": message["role"], "content": scrub(message["content"])} for message in json.loads(text)]


def keep_texts(session: Session, answer_id: str, texts: str) -> None:
    """Add the texts to an answer that is remembered."""
    session.run("UPDATE slipway_answers SET texts = ? WHERE id = ?", texts, answer_id)


def scrubbed_opinion(feedback: Feedback, scrub: Scrub, *, keeps_text: bool) -> Feedback:
    """What may be kept of an opinion. Not within a transaction: it takes long enough to hold others up."""
    # A correction holds most of what the model wrote, so it is text like the answer's own.
    correction = feedback.correction if keeps_text else None
    return feedback.model_copy(
        update={
            "correction": None if correction is None else scrub(correction),
            "comment": None if feedback.comment is None else scrub(feedback.comment),
        }
    )


def give(session: Session, caller: Caller, feedback: Feedback) -> None:
    """Keep what a person thinks, scrubbed before; a second opinion of the same choice replaces the first.

    Raises:
        ApiError: 404, no such answer of this key (an `admin` may speak of any).
    """
    row = session.row("SELECT key_id FROM slipway_answers WHERE id = ?", feedback.id)
    if row is None or not ("admin" in caller.scopes or row[0] == (caller.key_id or "")):
        raise ApiError(
            f"There is no answer `{feedback.id}` of this key; answers are remembered for {KEPT_S / 86400:.0f} days",
            status=404,
            param="id",
            code="answer_not_found",
        )
    session.run(
        "INSERT INTO slipway_feedback (id, choice, at, rating, correction, comment, consent)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id, choice) DO UPDATE SET at = excluded.at,"
        " rating = excluded.rating, correction = excluded.correction, comment = excluded.comment,"
        " consent = excluded.consent",
        *(feedback.id, feedback.choice, session.now(), json.dumps(feedback.rating)),
        *(feedback.correction, feedback.comment, int(feedback.consent)),
    )


def thumbs(session: Session, *, model: str, version: str, since: float) -> tuple[int, int]:
    """How many thumbs up and down a version was given since a moment; ratings by number have no scale of ours."""
    counted: dict[str, int] = dict(
        session.rows(
            "SELECT f.rating, COUNT(*) FROM slipway_feedback f JOIN slipway_answers a ON a.id = f.id"
            " WHERE f.at >= ? AND a.model = ? AND a.version = ? AND f.rating IN (?, ?) GROUP BY f.rating",
            *(since, model, version, _UP, _DOWN),
        )
    )
    return counted.get(_UP, 0), counted.get(_DOWN, 0)


def given(
    session: Session, *, last: int, model: str | None = None, rating: Literal["up", "down"] | None = None
) -> list[dict[str, Any]]:
    """The newest opinions, oldest first, without the texts of their answers.

    Args:
        session: of the accounts.
        last: how many at most.
        model: of this model alone.
        rating: of these thumbs alone.
    """
    kept = None if rating is None else json.dumps(rating)
    asked = [(name, value) for name, value in (("a.model", model), ("f.rating", kept)) if value is not None]
    where = f" WHERE {' AND '.join(f'{name} = ?' for name, _ in asked)}" if asked else ""
    rows = session.rows(
        "SELECT f.at, f.id, f.choice, a.key_id, a.model, a.version, f.rating, f.comment, f.correction, f.consent"
        f" FROM slipway_feedback f JOIN slipway_answers a ON a.id = f.id{where}"
        " ORDER BY f.at DESC, f.id DESC, f.choice DESC LIMIT ?",
        *(value for _, value in asked),
        last,
    )
    return [_shown(row) for row in reversed(rows)]


def _shown(row: Row) -> dict[str, Any]:
    at, answer, choice, key_id, model, version, rating, comment, correction, consent = row
    return {
        "at": utc(at),
        "id": answer,
        "choice": choice,
        "key": key_id or None,
        "model": model,
        "version": version,
        "rating": json.loads(rating),
        "comment": comment,
        "correction": correction,
        "consent": bool(consent),
    }


def forget_old(database: Database, *, kept_answers: int = KEPT_ANSWERS) -> None:
    """Let go of what is too old: answers without feedback, and texts that nobody gave for training.

    In small transactions, so that no admission waits long behind one.
    """
    with database.reading() as session:
        before = session.now() - KEPT_S
        row = session.row("SELECT at FROM slipway_answers ORDER BY at DESC LIMIT 1 OFFSET ?", kept_answers)
        before = before if row is None else max(before, row[0])
    for forget in (
        "DELETE FROM slipway_answers WHERE id IN (SELECT id FROM slipway_answers"
        " WHERE at <= ? AND id NOT IN (SELECT id FROM slipway_feedback) LIMIT ?)",
        "UPDATE slipway_answers SET texts = NULL WHERE id IN (SELECT id FROM slipway_answers WHERE at <= ?"
        " AND texts IS NOT NULL AND id NOT IN (SELECT id FROM slipway_feedback WHERE consent = 1) LIMIT ?)",
    ):
        forgotten = _CHUNK
        while forgotten == _CHUNK:
            with database.transaction() as session:
                forgotten = session.run(forget, before, _CHUNK)


@cache
def scrubber() -> Scrub:
    """Replaces personal data and secrets by placeholders; made once, at the first text: that takes a while."""
    from orchestrator.data.refine.privacy import Scrubber
    from orchestrator.job_data import Privacy

    scrub = Scrubber(Privacy())
    return lambda text: scrub.scrub(text).text
