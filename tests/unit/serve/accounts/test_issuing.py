"""Keys are made and revoked with a line each; a process of ours may ask its own closed service."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from orchestrator.errors import JobError
from orchestrator.serve.accounts.audit import read_audit, verify_audit
from orchestrator.serve.accounts.database import Database
from orchestrator.serve.accounts.front import Accounts, Policy, open_accounts
from orchestrator.serve.accounts.issuing import amend, issue, own_key, withdraw
from orchestrator.serve.accounts.keys import Change, NewKey, every
from orchestrator.serve.accounts.place import audit_path
from orchestrator.serve.api.errors import ApiError


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return str(tmp_path / "accounts.sqlite")


def who(url: str, secret: str) -> str:
    async def ask() -> str:
        accounts = open_accounts(Policy(), url)
        try:
            return (await accounts.authenticate(f"Bearer {secret}")).name
        finally:
            await accounts.close()

    return asyncio.run(ask())


def test_a_key_comes_and_goes_with_a_line_each(url: str) -> None:
    database = Database(url)
    key, secret = issue(database, NewKey(name="ana"))
    assert who(url, secret) == "ana"
    assert withdraw(database, key.id).revoked_at is not None
    with pytest.raises(ApiError, match="is revoked"):
        who(url, secret)
    with pytest.raises(JobError, match="there is no key 'key-0'"):
        withdraw(database, "key-0")
    told = [(event["event"], event.get("key")) for event in read_audit(audit_path())]
    assert told[:2] == [("key created", key.id), ("key revoked", key.id)]
    assert verify_audit(audit_path()).problem is None
    assert secret not in audit_path().read_text()


def test_a_service_without_keys_is_not_closed_by_asking_it(url: str) -> None:
    with own_key(url, name="slipway run") as secret:
        assert secret is None
    with Database(url).reading() as session:
        assert every(session) == []


def test_a_closed_service_can_be_asked_as_long_as_that_lasts(url: str) -> None:
    issue(Database(url), NewKey(name="ana"))
    secret = ""

    def ask_and_fail() -> None:
        nonlocal secret
        with own_key(url, name="slipway run") as own:
            assert own is not None
            secret = own
            assert who(url, own) == "slipway run"
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        ask_and_fail()
    with pytest.raises(ApiError, match="is revoked"):
        who(url, secret)
    with Database(url).reading() as session:
        (_, own) = every(session)
    assert own.expires_at is not None
    assert 0 < own.expires_at - own.created_at <= 601
    assert json.dumps(own.as_json())


def test_other_limits_hold_for_a_service_that_runs_with_a_line_of_what_changed(url: str) -> None:
    database = Database(url)
    key, secret = issue(database, NewKey(name="ana", rpm=1))

    async def ask(accounts: Accounts) -> int:
        caller = await accounts.authenticate(f"Bearer {secret}")
        try:
            asked = {"model": "m", "version": "v1", "prompt_tokens": 1, "max_tokens": 1}
            admission = await accounts.admit(caller, scope="generate", **asked)  # type: ignore[arg-type]
        except ApiError as error:
            return error.status
        await admission.settle(prompt_tokens=1, completion_tokens=1)
        return 200

    async def story() -> list[int]:
        accounts = open_accounts(Policy(), url)
        try:
            found = [await ask(accounts), await ask(accounts)]
            for change in (Change(rpm=2), Change(lifted=frozenset({"rpm"})), Change(scopes=frozenset({"embed"}))):
                amend(database, key.id, change)
                found += [await ask(accounts), await ask(accounts)]
            return found
        finally:
            await accounts.close()

    assert asyncio.run(story()) == [200, 429, 200, 429, 200, 200, 403, 403]
    told = [event for event in read_audit(audit_path()) if event["event"] == "key changed"]
    assert [event["key"] for event in told] == [key.id] * 3
    assert [(event.get("rpm", "same"), event.get("scopes")) for event in told] == [
        (2, None),
        (None, None),
        ("same", ["embed"]),
    ]
