"""Admission and usage: exact against a model that remembers everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.serve.accounts import keys, ledger
from orchestrator.serve.accounts.database import Database
from orchestrator.serve.accounts.keys import NANO, Key, NewKey
from orchestrator.serve.accounts.ledger import ABANDONED_S, Admitted, Asked, Denied
from orchestrator.serve.accounts.limits import Lack
from orchestrator.serve.accounts.prices import Price
from orchestrator.serve.accounts.usage import total, used

PRICES = {"m": Price(prompt_per_million=1.0, completion_per_million=4.0)}


def new_key(database: Database, **what: Any) -> Key:
    with database.transaction() as session:
        return keys.create(session, NewKey(**{"name": "ana", **what}))[0]


def ask(database: Database, key_id: str | None, prompt: int = 10, most: int = 20, **other: Any) -> Admitted | Denied:
    asked = {"scope": "generate", "model": "m", "version": "1", **other}
    with database.transaction() as session:
        return ledger.admit(session, Asked(key_id=key_id, prompt_tokens=prompt, max_tokens=most, **asked), PRICES)


def let_in(database: Database, key_id: str | None, prompt: int = 10, most: int = 20) -> Admitted:
    outcome = ask(database, key_id, prompt, most)
    assert isinstance(outcome, Admitted)
    return outcome


def settle(database: Database, admitted: Admitted, prompt: int = 10, made: int = 20, failed: bool = False) -> None:
    with database.transaction() as session:
        ledger.settle(session, admitted, PRICES, prompt_tokens=prompt, completion_tokens=made, failed=failed)


def why(outcome: Admitted | Denied) -> Any:
    assert isinstance(outcome, Denied)
    return outcome.why


@dataclass
class Naive:
    """Every request that was let in, for ever."""

    rpm: int | None
    tpm: int | None

    def __post_init__(self) -> None:
        self.rows: list[list[float]] = []

    def fits(self, now: float, tokens: int) -> bool:
        inside = [size for at, size in self.rows if at > now - 60]
        return (self.rpm is None or len(inside) < self.rpm) and (self.tpm is None or sum(inside) + tokens <= self.tpm)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 30), st.integers(0, 30)),
        st.tuples(st.just("settle"), st.integers(0, 100), st.integers(0, 40)),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 7.0, 29.5, 30.0, 60.0, 4000.0]), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rpm=st.none() | st.integers(1, 5), tpm=st.none() | st.integers(30, 120), steps=STEPS)
def test_the_window_slides_as_in_a_model_that_forgets_nothing(
    sqlite: Database, clock: Any, rpm: int | None, tpm: int | None, steps: list[tuple[str, Any, int]]
) -> None:
    key = new_key(sqlite, rpm=rpm, tpm=tpm)
    naive = Naive(rpm, tpm)
    under_way: list[tuple[Admitted, list[float]]] = []
    spent = 0
    for step, first, second in steps:
        if step == "wait":
            clock.now += first
        elif step == "ask":
            fits = naive.fits(clock.now, first + second)
            outcome = ask(sqlite, key.id, first, second)
            assert isinstance(outcome, Admitted) == fits
            if isinstance(outcome, Admitted):
                naive.rows.append([clock.now, first + second])
                under_way.append((outcome, naive.rows[-1]))
                if rpm is not None:
                    left = rpm - sum(1 for at, _ in naive.rows if at > clock.now - 60)
                    assert outcome.headers["x-ratelimit-remaining-requests"] == str(left)
        elif under_way:
            admitted, row = under_way.pop(first % len(under_way))
            settle(sqlite, admitted, admitted.prompt_tokens, second)
            row[1] = admitted.prompt_tokens + second
            spent += admitted.prompt_tokens * 1000 + second * 4000
    with sqlite.reading() as session:
        assert sum(row.requests for row in used(session, key_id=key.id)) == len(naive.rows) - len(under_way)
        requests, tokens, spent_nano = session.rows(
            "SELECT window_requests, window_tokens, spent_nano FROM slipway_keys WHERE id = ?", key.id
        )[0]
        assert spent_nano == spent
        counted = session.row(
            "SELECT COUNT(*), COALESCE(SUM(tokens), 0) FROM slipway_admissions WHERE key_id = ? AND is_counted = 1",
            key.id,
        )
        assert (requests, tokens) == counted


def test_both_databases_keep_a_limit_and_say_when_to_come_again(database: Database, clock: Any) -> None:
    key = new_key(database, rpm=2, tpm=100)
    let_in(database, key.id, 10, 10)
    clock.now += 20
    settle(database, let_in(database, key.id, 10, 10), 10, 5)
    clock.now += 10
    denied = ask(database, key.id)
    assert isinstance(denied, Denied)
    assert denied.why == Lack(requests=1)
    assert denied.wait_s == pytest.approx(30)
    assert denied.headers["x-ratelimit-remaining-requests"] == "0"
    assert denied.headers["x-ratelimit-remaining-tokens"] == "65"
    assert denied.headers["x-ratelimit-reset-requests"] == "50s"
    clock.now += 29.9
    assert isinstance(ask(database, key.id), Denied)
    clock.now += 0.1
    assert let_in(database, key.id).headers["x-ratelimit-remaining-tokens"] == str(100 - 15 - 30)


def test_a_clock_that_was_set_back_holds_nobody_out_for_long(database: Database, clock: Any) -> None:
    key = new_key(database, rpm=1)
    let_in(database, key.id)
    clock.now -= 7200
    assert isinstance(ask(database, key.id), Admitted)
    assert isinstance(ask(database, key.id), Denied)


def test_the_wait_is_found_in_a_long_window_too(database: Database, clock: Any) -> None:
    key = new_key(database, tpm=600)
    for _ in range(600):
        let_in(database, key.id, 1, 0)
        clock.now += 0.05
    denied = ask(database, key.id, 400, 0)
    assert isinstance(denied, Denied)
    assert denied.why == Lack(tokens=400)
    assert denied.wait_s == pytest.approx(60 - (600 - 399) * 0.05)


def test_a_budget_is_never_overspent_and_unused_reserve_comes_back(database: Database) -> None:
    key = new_key(database, budget_nano=200_000)  # of 10 + 20 tokens, one costs 90,000 at most
    first, second = let_in(database, key.id), let_in(database, key.id)
    assert why(ask(database, key.id)) == Lack(over_budget=True)
    settle(database, first, made=0)
    third = let_in(database, key.id)
    for admitted in (second, third):
        settle(database, admitted)
    with database.reading() as session:
        assert keys.every(session)[0].spent_nano == 10_000 + 90_000 + 90_000
        assert session.row("SELECT reserved_nano FROM slipway_keys") == (0,)
    assert why(ask(database, key.id)) == Lack(over_budget=True, never=True)
    assert isinstance(ask(database, key.id, prompt=10, most=0), Admitted)


def test_what_no_waiting_lifts(sqlite: Database, clock: Any) -> None:
    key = new_key(sqlite, scopes=frozenset({"embed"}), models=frozenset({"other"}), expires_at=clock.now + 10)
    assert why(ask(sqlite, key.id)) == "scope"
    assert why(ask(sqlite, key.id, scope="embed")) == "model"
    assert isinstance(ask(sqlite, key.id, scope="embed", model="other"), Admitted)
    clock.now += 10
    assert why(ask(sqlite, key.id, scope="embed", model="other")) == "expired"
    with sqlite.transaction() as session:
        keys.revoke(session, key.id)
    assert why(ask(sqlite, key.id, scope="embed", model="other")) == "revoked"
    budgeted = new_key(sqlite, budget_nano=NANO)
    assert why(ask(sqlite, budgeted.id, model="unpriced")) == "price"


def test_usage_is_summed_by_key_model_version_and_day(database: Database, clock: Any) -> None:
    ana, ben = new_key(database), new_key(database, name="ben")
    for key_id, made in ((ana.id, 1), (ana.id, 2), (ben.id, 3), (None, 4)):
        settle(database, let_in(database, key_id), made=made)
    clock.now += 86400
    settle(database, let_in(database, ana.id), made=5, failed=True)
    other = ask(database, ana.id, model="free")
    assert isinstance(other, Admitted)
    settle(database, other, made=6)
    with database.reading() as session:
        rows = used(session)
        told = [(r.name, r.model, r.day, r.requests, r.prompt_tokens, r.completion_tokens, r.cost) for r in rows]
        assert sorted(told) == [
            ("ana", "free", "2027-01-16", 1, 10, 6, None),
            ("ana", "m", "2027-01-15", 2, 20, 3, pytest.approx(32e-6)),
            ("ana", "m", "2027-01-16", 1, 10, 5, pytest.approx(30e-6)),
            ("ben", "m", "2027-01-15", 1, 10, 3, pytest.approx(22e-6)),
            ("no key", "m", "2027-01-15", 1, 10, 4, pytest.approx(26e-6)),
        ]
        assert total(rows)["completion_tokens"] == 21
        assert [r.name for r in used(session, key_id=ben.id)] == ["ben"]
        assert len(used(session, day="2027-01-16")) == 2
        assert session.row("SELECT COUNT(*) FROM slipway_admissions") == (0,)


@pytest.mark.parametrize("late", [False, True])
def test_what_nobody_settles_counts_its_prompt_and_a_late_settlement_corrects_it(
    database: Database, clock: Any, late: bool
) -> None:
    key = new_key(database, budget_nano=NANO, tpm=1000)
    admitted, fresh = let_in(database, key.id), None
    clock.now += ABANDONED_S
    fresh = let_in(database, key.id)
    assert ledger.close_abandoned(database, PRICES) == 1
    assert ledger.close_abandoned(database, PRICES) == 0
    if late:
        settle(database, admitted, prompt=9, made=7)
    with database.reading() as session:
        (row,) = used(session)
        expected = (1, 9, 7) if late else (1, 10, 0)
        assert (row.requests, row.prompt_tokens, row.completion_tokens) == expected
        assert session.row("SELECT failed FROM slipway_usage") == (0 if late else 1,)
        spent, reserved = session.row("SELECT spent_nano, reserved_nano FROM slipway_keys") or (None, None)
        assert spent == (9_000 + 28_000 if late else 10_000)
        assert reserved == fresh.reserved_nano
