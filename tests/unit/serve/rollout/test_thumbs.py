"""Ratings reach a rollout from the accounts, by version and time."""

from __future__ import annotations

from pathlib import Path

from orchestrator.serve.accounts import feedback
from orchestrator.serve.accounts.database import Database
from orchestrator.serve.api.feedback import Feedback
from orchestrator.serve.api.front import Answered, Caller
from orchestrator.serve.deployment.table import Entry, Facts
from orchestrator.serve.rollout.decide import UNRATED, Thumbs
from orchestrator.serve.rollout.thumbs import ThumbsOf

ANA = Caller(key_id="key-ana", name="ana", scopes=frozenset({"generate"}))


def entry(version: str, model: str = "m") -> Entry:
    facts = Facts(kind="decoder", fingerprint="fp", created=1)
    return Entry(model=model, version=version, export="/none", share=1.0, app=f"{model}-{version}", facts=facts)


def give(database: Database, number: int, rating: str | float, *, version: str, model: str = "m") -> None:
    opinion = Feedback.model_validate({"id": f"cmpl-{number}", "rating": rating})
    with database.transaction() as session:
        answered = Answered(id=opinion.id, prompts=None, completions=None)
        feedback.remember(session, answered, key_id=ANA.key_id, model=model, version=version)
        feedback.give(session, ANA, opinion)


def test_thumbs_of_a_version_in_the_last_seconds(tmp_path: Path) -> None:
    url = str(tmp_path / "accounts.sqlite")
    database, thumbs_of = Database(url), ThumbsOf(url)
    ratings: list[str | float] = ["up", "up", "down", 4.5]
    for number, rating in enumerate(ratings):
        give(database, number, rating, version="v2")
    give(database, 10, "down", version="v1")
    give(database, 11, "up", version="v2", model="other")
    assert thumbs_of(entry("v2"), 60.0) == Thumbs(up=2, down=1)
    assert thumbs_of(entry("v1"), 60.0) == Thumbs(down=1)
    give(database, 0, "down", version="v2")  # another mind
    assert thumbs_of(entry("v2"), 60.0) == Thumbs(up=1, down=2)
    with database.transaction() as session:
        session.run("UPDATE slipway_feedback SET at = at - 100")
    assert thumbs_of(entry("v2"), 60.0) == UNRATED
    assert thumbs_of(entry("v2"), 160.0).count == 3
    thumbs_of.close()


def test_accounts_that_cannot_be_read_are_no_verdict(tmp_path: Path) -> None:
    (tmp_path / "accounts.sqlite").write_text("no database at all, whatever its name may say of it" * 20)
    thumbs_of = ThumbsOf(str(tmp_path / "accounts.sqlite"))
    assert thumbs_of(entry("v2"), 60.0) == UNRATED
    thumbs_of.close()
