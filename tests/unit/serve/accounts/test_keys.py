"""Keys: made once, kept as a hash, ended at once."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import JobError
from orchestrator.serve.accounts import keys
from orchestrator.serve.accounts.database import Database
from orchestrator.serve.accounts.dialects import AccountsError
from orchestrator.serve.accounts.keys import Change, NewKey
from orchestrator.serve.accounts.prices import Price


def test_a_key_is_found_by_itself_alone(database: Database, clock: Any) -> None:
    with database.transaction() as session:
        assert not keys.any_at_all(session)
        made, secret = keys.create(session, NewKey(name="ana", rpm=3, models=frozenset({"a", "b"})))
        keys.create(session, NewKey(name="ben"))
    assert secret.startswith("sk-")
    assert len(secret) == 3 + 43
    with database.reading() as session:
        assert keys.of_secret(session, secret) == made
        assert keys.of_secret(session, secret + "x") is None
        assert keys.of_secret(session, keys.hash_of(secret)) is None
        assert [key.name for key in keys.every(session)] == ["ana", "ben"] or made.created_at == clock.now
    shown = made.as_json()
    assert shown["scopes"] == ["embed", "generate"]
    assert shown["models"] == ["a", "b"]
    assert shown["created"] == "2027-01-15T08:00:00+00:00"


def test_an_ended_key_stays_ended_and_remembered(database: Database, clock: Any) -> None:
    with database.transaction() as session:
        made, secret = keys.create(session, NewKey(name="ana"))
        first = keys.revoke(session, made.id)
        clock.now += 10
        assert keys.revoke(session, made.id) == first
        found = keys.of_secret(session, secret)
        assert found is not None
        assert found.revoked_at == clock.now - 10
        assert keys.any_at_all(session)


def test_a_key_that_is_not_there_names_those_that_are(sqlite: Database) -> None:
    with sqlite.transaction() as session:
        made, _ = keys.create(session, NewKey(name="ana"))
    with sqlite.transaction() as session, pytest.raises(JobError, match=rf"{made.id} \(ana\)"):
        keys.revoke(session, "key-0")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"name": " "}, "needs a name"),
        ({"scopes": frozenset({"root"})}, "no scope 'root'"),
        ({"scopes": frozenset()}, "has no scope"),
        ({"rpm": 0}, "rpm"),
        ({"budget_nano": 0}, "budget"),
    ],
)
def test_a_key_that_cannot_be(sqlite: Database, what: dict[str, Any], said: str) -> None:
    with sqlite.transaction() as session, pytest.raises(JobError, match=said):
        keys.create(session, NewKey(**{"name": "ana", **what}))


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    database = Database(str(tmp_path / "new" / "accounts.sqlite"))
    with database.transaction() as session:
        keys.create(session, NewKey(name="ana"))
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    found = list((tmp_path / "new").iterdir())
    assert {path.name for path in found} >= {"accounts.sqlite", "accounts.sqlite-wal"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}
    database.close()


def test_a_loose_file_is_tightened(tmp_path: Path) -> None:
    path = tmp_path / "accounts.sqlite"
    path.touch(0o644)
    with Database(str(path)).reading() as session:
        assert keys.every(session) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_places_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a database, and far longer than the header of one would be" * 10)
    for url in (str(tmp_path / "file"), str(tmp_path / "file" / "under"), "postgresql://ana:secret@/x?host=/nowhere"):
        if url.startswith("postgresql"):
            pytest.importorskip("psycopg")
        with pytest.raises(AccountsError) as caught, Database(url).reading():
            pass
        assert "secret" not in str(caught.value)


def test_tables_of_another_format_are_left_alone(database: Database, url: str) -> None:
    with database.transaction() as session:
        session.run("UPDATE slipway_format SET format = 99")
    with pytest.raises(AccountsError, match="format 99"), Database(url).reading():
        pass


def test_prices() -> None:
    price = Price(prompt_per_million=0.15, completion_per_million=0.6)
    assert price.nano(1_000_000, 0) == 150_000_000
    assert price.nano(1, 1) == 750
    with pytest.raises(ValueError, match="between 0 and a million"):
        Price(prompt_per_million=-1, completion_per_million=0)


def test_a_change_names_what_it_changes_and_leaves_the_rest(database: Database, clock: Any) -> None:
    with database.transaction() as session:
        made, secret = keys.create(session, NewKey(name="ana", rpm=3, tpm=9, models=frozenset({"a"}), budget_nano=7))
        wanted = Change(rpm=5, scopes=frozenset({"admin"}), lifted=frozenset({"models", "budget"}))
        before, after = keys.change(session, made.id, wanted)
    assert before == made
    assert (after.rpm, after.tpm, after.models, after.budget_nano) == (5, 9, None, None)
    assert after.scopes == {"admin"}
    with database.reading() as session:
        assert keys.of_secret(session, secret) == after


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Change(), "nothing was said to change"),
        (Change(rpm=0), "rpm of the key 'ana' is too small"),
        (Change(scopes=frozenset()), "has no scope"),
        (Change(rpm=5, lifted=frozenset({"rpm"})), "rpm is to be lifted, and is given too"),
        (Change(budget_nano=5, lifted=frozenset({"budget"})), "budget is to be lifted, and is given too"),
        (Change(lifted=frozenset({"scopes"})), "no limit 'scopes'"),  # type: ignore[arg-type]
    ],
)
def test_a_change_that_cannot_be_changes_nothing(sqlite: Database, wanted: Change, said: str) -> None:
    with sqlite.transaction() as session:
        made, _ = keys.create(session, NewKey(name="ana", rpm=3))
    with sqlite.transaction() as session, pytest.raises(JobError, match=said):
        keys.change(session, made.id, wanted)
    with sqlite.reading() as session:
        assert keys.every(session) == [made]


def test_a_revoked_key_is_not_changed(sqlite: Database) -> None:
    with sqlite.transaction() as session:
        made, _ = keys.create(session, NewKey(name="ana"))
        keys.revoke(session, made.id)
        with pytest.raises(JobError, match="is revoked, for good"):
            keys.change(session, made.id, Change(rpm=5))
        with pytest.raises(JobError, match="there is no key 'key-0'"):
            keys.change(session, "key-0", Change(rpm=5))
