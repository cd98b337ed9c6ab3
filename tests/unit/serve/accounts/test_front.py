"""The accounts as routes see them: who is let in, with which words the rest is not, and that nothing leaks."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.serve.accounts import keys
from orchestrator.serve.accounts.audit import AuditLog, read_audit
from orchestrator.serve.accounts.database import Database
from orchestrator.serve.accounts.front import Accounts, Policy
from orchestrator.serve.accounts.keys import NewKey
from orchestrator.serve.accounts.prices import Price
from orchestrator.serve.api.errors import ApiError
from orchestrator.serve.api.feedback import Feedback
from orchestrator.serve.api.front import Answered, Caller, Front

pytestmark = pytest.mark.anyio
PRICES = {"m": Price(prompt_per_million=1.0, completion_per_million=1.0)}


@pytest.fixture
async def front(sqlite: Database, tmp_path: Path) -> AsyncIterator[Accounts]:
    made = Accounts(sqlite, AuditLog(tmp_path / "audit.jsonl"), Policy(prices=PRICES, store_prompts=True))
    as_front: Front = made
    assert as_front.keeps_text
    yield made
    await made.close()


def new_key(database: Database, **what: Any) -> tuple[str, str]:
    with database.transaction() as session:
        key, secret = keys.create(session, NewKey(**{"name": "ana", **what}))
    return key.id, secret


def bearer(secret: str) -> str:
    return f"Bearer {secret}"


async def refused(front: Accounts, authorization: str | None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await front.authenticate(authorization)
    return caught.value


async def enter(front: Accounts, caller: Caller, **other: Any) -> Any:
    asked = {"scope": "generate", "model": "m", "version": "1", "prompt_tokens": 3, "max_tokens": 4, **other}
    return await front.admit(caller, **asked)


async def test_without_any_key_everybody_may(front: Accounts, sqlite: Database) -> None:
    assert not front.has_keys()
    for header in (None, "Bearer sk-whatever"):
        caller = await front.authenticate(header)
        assert caller.key_id is None
        assert caller.scopes == {"generate", "embed", "admin"}
    admission = await enter(front, caller)
    await admission.settle(prompt_tokens=3, completion_tokens=2)
    (row,) = await front.usage(caller, key_id=None, day=None)
    assert (row.key_id, row.completion_tokens) == (None, 2)


async def test_with_the_first_key_the_door_is_shut_and_stays_so(
    front: Accounts, sqlite: Database, tmp_path: Path
) -> None:
    await front.authenticate(None)
    key_id, secret = new_key(sqlite)
    assert front.has_keys()
    assert (await front.authenticate(bearer(secret))).key_id == key_id
    error = await refused(front, None)
    assert (error.status, error.code) == (401, "missing_api_key")
    assert error.headers["WWW-Authenticate"].startswith("Basic ")
    with sqlite.transaction() as session:
        keys.revoke(session, key_id)
    assert (await refused(front, bearer(secret))).code == "revoked_api_key"
    assert (await refused(front, None)).code == "missing_api_key"
    restarted = Accounts(sqlite, AuditLog(tmp_path / "audit.jsonl"), Policy())
    assert (await refused(restarted, None)).code == "missing_api_key"


async def test_each_wrong_key_has_its_words(front: Accounts, sqlite: Database, clock: Any) -> None:
    _, expiring = new_key(sqlite, expires_at=clock.now + 5)
    await front.authenticate(bearer(expiring))
    clock.now += 5
    bad = ["Bearer sk-wrong", "Bearer ", "Basic !!!", "Basic " + base64.b64encode(b"\xff\xfe").decode(), "Digest x", ""]
    errors = [await refused(front, header) for header in [*bad, bearer(expiring), None]]
    assert [error.status for error in errors] == [401] * len(errors)
    assert [error.code for error in errors] == [*["invalid_api_key"] * len(bad), "expired_api_key", "missing_api_key"]
    assert len({error.message for error in errors}) == 3
    await front.close()
    denied = {event["reason"]: event["requests"] for event in read_audit(front._audit._path)}
    assert denied == {"wrong key": len(bad), "expired": 1, "missing key": 1}


async def test_a_browser_sends_the_key_as_a_password(front: Accounts, sqlite: Database) -> None:
    key_id, secret = new_key(sqlite, models=frozenset({"n"}))
    basic = base64.b64encode(f"anybody:{secret}".encode()).decode()
    for header in (f"Basic {basic}", f"basic  {basic} ", f"bearer {secret}"):
        caller = await front.authenticate(header)
        assert caller.key_id == key_id
    assert caller.models == {"n"}


async def test_limits_reach_clients_as_openai_has_them(front: Accounts, sqlite: Database) -> None:
    _, secret = new_key(sqlite, rpm=1, tpm=50)
    caller = await front.authenticate(bearer(secret))
    admission = await enter(front, caller)
    assert admission.headers["x-ratelimit-remaining-requests"] == "0"
    assert admission.headers["x-ratelimit-remaining-tokens"] == "43"
    with pytest.raises(ApiError) as caught:
        await enter(front, caller)
    error = caught.value
    assert (error.status, error.code, error.kind) == (429, "rate_limit_exceeded", "requests")
    assert error.headers["Retry-After"] == "60"
    assert error.headers["x-ratelimit-limit-requests"] == "1"
    with pytest.raises(ApiError) as caught:
        await enter(front, caller, max_tokens=48)
    assert (caught.value.status, caught.value.kind) == (429, "tokens")
    assert "3 in your prompt; 48 for the completion" in caught.value.message


@pytest.mark.parametrize(
    ("key", "request_", "code"),
    [
        ({"scopes": frozenset({"embed"})}, {}, "insufficient_scope"),
        ({"models": frozenset({"n"})}, {}, "model_not_allowed"),
        ({"budget_nano": 1}, {"model": "n"}, "model_without_price"),
    ],
)
async def test_what_a_key_is_not_for(
    front: Accounts, sqlite: Database, key: dict[str, Any], request_: dict[str, Any], code: str
) -> None:
    _, secret = new_key(sqlite, **key)
    with pytest.raises(ApiError) as caught:
        await enter(front, await front.authenticate(bearer(secret)), **request_)
    assert (caught.value.status, caught.value.code) == (403, code)


@pytest.mark.parametrize(
    ("key", "model", "code", "word"),
    [
        ({"scopes": frozenset({"embed"})}, "m", "insufficient_scope", "its scopes are: embed"),
        ({"models": frozenset({"n"})}, "m", "model_not_allowed", "its models are: `n`"),
        ({"models": frozenset({"n"})}, "x" * 500, "model_not_allowed", "xxx...`; its models are: `n`"),
    ],
    ids=["scope", "model", "long"],
)
async def test_what_a_key_is_not_for_is_refused_before_all_else_and_audited(
    front: Accounts, sqlite: Database, tmp_path: Path, key: Any, model: str, code: str, word: str
) -> None:
    key_id, secret = new_key(sqlite, **key)
    caller = await front.authenticate(bearer(secret))
    with pytest.raises(ApiError) as caught:
        await front.require(caller, scope="generate", model=model)
    assert (caught.value.status, caught.value.code) == (403, code)
    assert word in caught.value.message
    assert len(caught.value.message) < 250
    await front.close()
    denied = [event for event in read_audit(tmp_path / "audit.jsonl") if event["event"] == "denied"]
    assert [(event["key"], event["reason"]) for event in denied] == [(key_id, "scope" if "scope" in code else "model")]


async def test_what_a_key_is_for_is_required_in_vain(front: Accounts, sqlite: Database) -> None:
    _, secret = new_key(sqlite, models=frozenset({"m"}))
    await front.require(await front.authenticate(bearer(secret)), scope="embed", model="m")


async def test_a_spent_budget(front: Accounts, sqlite: Database) -> None:
    _, secret = new_key(sqlite, budget_nano=5_000)
    with pytest.raises(ApiError) as caught:
        await enter(front, await front.authenticate(bearer(secret)))
    assert (caught.value.status, caught.value.code, caught.value.kind) == (429, *["insufficient_quota"] * 2)
    assert caught.value.headers["x-should-retry"] == "false"


async def test_a_key_that_is_revoked_between_its_check_and_its_request(front: Accounts, sqlite: Database) -> None:
    key_id, secret = new_key(sqlite)
    caller = await front.authenticate(bearer(secret))
    with sqlite.transaction() as session:
        keys.revoke(session, key_id)
    with pytest.raises(ApiError) as caught:
        await enter(front, caller)
    assert (caught.value.status, caught.value.code) == (401, "revoked_api_key")


async def test_usage_of_others_is_for_admins(front: Accounts, sqlite: Database) -> None:
    ana_id, ana = new_key(sqlite)
    _, root = new_key(sqlite, name="root", scopes=frozenset({"admin", "generate"}))
    caller, admin = await front.authenticate(bearer(ana)), await front.authenticate(bearer(root))
    for one in (caller, admin):
        await (await enter(front, one)).settle(prompt_tokens=1, completion_tokens=1)
    assert [row.name for row in await front.usage(caller, key_id=None, day=None)] == ["ana"]
    assert {row.name for row in await front.usage(admin, key_id=None, day=None)} == {"ana", "root"}
    assert [row.name for row in await front.usage(admin, key_id=ana_id, day=None)] == ["ana"]
    with pytest.raises(ApiError) as caught:
        await front.usage(caller, key_id=admin.key_id, day=None)
    assert caught.value.status == 403


async def test_a_client_that_goes_while_it_is_let_in_leaves_nothing_open(front: Accounts, sqlite: Database) -> None:
    caller = await front.authenticate(None)
    for pause in (0.0, 0.0005, 0.002):
        entering = asyncio.ensure_future(enter(front, caller))
        await asyncio.sleep(pause)
        entering.cancel()
        done = (await asyncio.gather(entering, return_exceptions=True))[0]
        if not isinstance(done, BaseException):
            await done.settle(prompt_tokens=0, completion_tokens=0, failed=True)
    await front.authenticate(None)  # behind all that was begun
    await asyncio.sleep(0.05)
    with sqlite.reading() as session:
        assert session.row("SELECT COUNT(*) FROM slipway_admissions") == (0,)


async def test_a_settlement_is_finished_though_nobody_waits_for_it(front: Accounts) -> None:
    caller = await front.authenticate(None)
    admission = await enter(front, caller)
    settling = asyncio.ensure_future(admission.settle(prompt_tokens=3, completion_tokens=9))
    await asyncio.sleep(0)
    settling.cancel()
    await asyncio.gather(settling, return_exceptions=True)
    (row,) = await front.usage(caller, key_id=None, day=None)
    assert row.completion_tokens == 9


async def test_accounts_that_cannot_be_read_let_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "accounts.sqlite").write_text("no database" * 100)
    database = Database(str(tmp_path / "accounts.sqlite"))
    front = Accounts(database, AuditLog(tmp_path / "audit.jsonl"), Policy())
    error = await refused(front, None)
    assert error.status == 503
    assert str(tmp_path) not in error.message


async def test_neither_keys_nor_prompts_are_found_anywhere_they_should_not_be(
    sqlite: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    front = Accounts(sqlite, AuditLog(tmp_path / "audit.jsonl"), Policy())  # did not opt in to keep texts
    _, secret = new_key(sqlite, rpm=1)
    caller = await front.authenticate(bearer(secret))
    admission = await enter(front, caller)
    answered = Answered(id="cmpl-1", prompts=("SENTINEL-PROMPT",), completions=("SENTINEL-ANSWER",))
    await admission.settle(prompt_tokens=3, completion_tokens=1, answered=answered)
    await front.feedback(caller, Feedback(id="cmpl-1", rating="down", correction="SENTINEL-CORRECTION", consent=True))
    errors = [await refused(front, header) for header in ("Bearer SENTINEL-WRONG", f"Basic {secret}")]
    with pytest.raises(ApiError) as caught:
        await enter(front, caller)
    await front.close()
    files = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"accounts.sqlite", "audit.jsonl"} <= files.keys()
    told = repr([(e.message, e.headers, repr(e)) for e in (*errors, caught.value)]) + caplog.text
    for sentinel in ("SENTINEL", secret):
        assert not [name for name, content in files.items() if sentinel.encode() in content]
        assert sentinel not in told
