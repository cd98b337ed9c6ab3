"""Feedback: whose it is, what of it is kept, and that training reads what is exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_fixtures import read_path

from orchestrator.data.labelled.kinds import labelled_kind
from orchestrator.data.values import Record, Row
from orchestrator.job_data import Data, Source
from orchestrator.serve.accounts import feedback as opinions
from orchestrator.serve.accounts.database import Database
from orchestrator.serve.accounts.feedback_export import Format, export
from orchestrator.serve.api.errors import ApiError
from orchestrator.serve.api.feedback import Feedback
from orchestrator.serve.api.front import Answered, Caller

ANA = Caller(key_id="key-ana", name="ana", scopes=frozenset({"generate"}))
Say = Callable[..., None]


@pytest.fixture
def answer(sqlite: Database) -> Say:
    """Remember an answer, with texts where they are given."""

    def remember(name: str, prompts: tuple[str, ...] | None = None, completions: tuple[str, ...] | None = None) -> None:
        answered = Answered(id=name, prompts=prompts, completions=completions)
        with sqlite.transaction() as session:
            opinions.remember(session, answered, key_id=ANA.key_id, model="m", version="1")
            texts = opinions.scrubbed(answered, opinions.scrubber())
            if texts is not None:
                opinions.keep_texts(session, name, texts)

    return remember


@pytest.fixture
def say(sqlite: Database, clock: Any) -> Say:
    """Give feedback on an answer, a second after the last."""

    def give(name: str, rating: Any, *, caller: Caller = ANA, keeps_text: bool = True, **more: Any) -> None:
        feedback = Feedback(id=name, rating=rating, **{"consent": True, **more})
        clock.now += 1
        kept = opinions.scrubbed_opinion(feedback, opinions.scrubber(), keeps_text=keeps_text)
        with sqlite.transaction() as session:
            opinions.give(session, caller, kept)

    return give


def read_by_training(database: Database, kind: Format, folder: Path) -> list[Record]:
    """What `data.kind` makes of the exported file."""
    with database.reading() as session:
        rows = export(session, kind).rows
    path = folder / f"{kind}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = Source(path=str(path))
    reader = labelled_kind(Data(kind=kind, sources=[source]))
    found = read_path(path) if rows else []  # an empty file is none
    assert all(isinstance(row, Row) for row in found)
    return [reader.record(row.fields, source) for row in found]


def left_out(database: Database, kind: Format) -> dict[str, int]:
    with database.reading() as session:
        return export(session, kind).left_out


def chat(*turns: tuple[str, str]) -> str:
    return json.dumps([{"role": role, "content": content} for role, content in turns])


def test_corrections_become_what_training_reads(answer: Say, say: Say, sqlite: Database, tmp_path: Path) -> None:
    answer("cmpl-1", ("Two and two", "Three and three"), (" is 5", " is 4", " is 9", " is 6"))
    answer("chatcmpl-1", (chat(("system", "Be brief."), ("user", "Hi")),), ("Hello there, how do you do",))
    say("cmpl-1", "down", correction=" is 4")
    say("cmpl-1", "up", choice=3)
    say("chatcmpl-1", "down", correction="Hello")
    preferences = read_by_training(sqlite, "preference", tmp_path)
    assert [record.texts for record in preferences] == [
        ("Two and two", " is 4", " is 5"),
        ("Be brief.", "Hi", "Hello", "Hello there, how do you do"),
    ]
    assert left_out(sqlite, "preference") == {"no other answer to compare with": 1}
    chats = read_by_training(sqlite, "chat", tmp_path)
    assert [record.texts for record in chats] == [
        ("Two and two", " is 4"),
        ("Three and three", " is 6"),
        ("Be brief.", "Hi", "Hello"),
    ]


def test_ratings_of_one_prompt_are_compared(answer: Say, say: Say, sqlite: Database, tmp_path: Path) -> None:
    for number, (text, rating) in enumerate(
        [("a", "up"), ("b", "down"), ("c", "up"), ("d", 2.0), ("e", 5.0), ("f", 5.0), ("g", "up")]
    ):
        answer(f"cmpl-{number}", ("prompt",) if text != "g" else ("another",), (text,))
        say(f"cmpl-{number}", rating)
    records = read_by_training(sqlite, "preference", tmp_path)
    assert [record.texts for record in records] == [("prompt", "a", "b"), ("prompt", "e", "d")]
    assert left_out(sqlite, "preference") == {"no other answer to compare with": 3}


def test_without_consent_nothing_is_exported(answer: Say, say: Say, sqlite: Database, tmp_path: Path) -> None:
    answer("cmpl-1", ("prompt",), ("answer",))
    say("cmpl-1", "up", correction="better")
    assert len(read_by_training(sqlite, "preference", tmp_path)) == 1
    say("cmpl-1", "up", correction="better", consent=False)  # taken back
    assert read_by_training(sqlite, "preference", tmp_path) == []
    assert read_by_training(sqlite, "chat", tmp_path) == []
    assert left_out(sqlite, "chat") == {"no consent": 1}


def test_texts_are_kept_only_where_the_service_opted_in(answer: Say, say: Say, sqlite: Database) -> None:
    answer("cmpl-1")
    say("cmpl-1", "down", correction="secret of the model", comment="too long", keeps_text=False)
    with sqlite.reading() as session:
        assert session.row("SELECT texts FROM slipway_answers") == (None,)
        assert session.row("SELECT rating, correction, comment FROM slipway_feedback") == ('"down"', None, "too long")
    assert left_out(sqlite, "preference") == {"its texts were not kept": 1}


def test_personal_data_is_not_kept(answer: Say, say: Say, sqlite: Database, tmp_path: Path) -> None:
    answer("chatcmpl-1", (chat(("user", "Mail\nana@example.com")),), ("I wrote to ana@example.com",))
    answer("cmpl-1", ("Call +49 30 901820",), ("or ana@example.com",))
    for name in ("chatcmpl-1", "cmpl-1"):
        say(name, "up", correction="ask ben@example.com", comment="he is ben@example.com")
    texts = [text for record in read_by_training(sqlite, "chat", tmp_path) for text in record.texts]
    assert texts == ["Mail\n<EMAIL>", "ask <EMAIL>", "Call <PHONE>", "ask <EMAIL>"]
    sqlite.close()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"@example.com" in path.read_bytes()]


def test_nobody_speaks_of_an_answer_of_somebody_else(answer: Say, say: Say) -> None:
    answer("cmpl-1")
    stranger = Caller(key_id="key-ben", name="ben", scopes=frozenset({"generate"}))
    for name, caller in (("cmpl-1", stranger), ("cmpl-2", ANA)):
        with pytest.raises(ApiError) as caught:
            say(name, "up", caller=caller)
        assert (caught.value.status, caught.value.code) == (404, "answer_not_found")
    say("cmpl-1", "up", caller=Caller(key_id="key-root", name="root", scopes=frozenset({"admin"})))


def test_old_answers_are_forgotten(answer: Say, say: Say, sqlite: Database, clock: Any) -> None:
    for name in ("none", "rated", "given"):
        answer(f"cmpl-{name}", ("prompt",), ("answer",))
    say("cmpl-rated", "up", consent=False)
    say("cmpl-given", "up")
    clock.now += opinions.KEPT_S
    opinions.forget_old(sqlite)
    with sqlite.reading() as session:
        kept = session.rows("SELECT id, texts IS NULL FROM slipway_answers ORDER BY id")
    assert kept == [("cmpl-given", 0), ("cmpl-rated", 1)]


def test_there_is_a_bound_on_answers_that_nobody_speaks_of(answer: Say, say: Say, sqlite: Database, clock: Any) -> None:
    for number in range(6):
        clock.now += 1
        answer(f"cmpl-{number}")
    say("cmpl-0", "up")
    opinions.forget_old(sqlite, kept_answers=2)
    with sqlite.reading() as session:
        assert session.rows("SELECT id FROM slipway_answers ORDER BY id") == [("cmpl-0",), ("cmpl-4",), ("cmpl-5",)]
