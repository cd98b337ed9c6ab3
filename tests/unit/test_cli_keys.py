"""`slipway keys`, `usage`, `feedback` and `audit`, as typed."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.cli_keys import expiry
from orchestrator.errors import JobError, SlipwayError
from orchestrator.serve.accounts import feedback, keys, ledger
from orchestrator.serve.accounts.database import Database
from orchestrator.serve.accounts.ledger import Admitted, Asked
from orchestrator.serve.api.feedback import Feedback
from orchestrator.serve.api.front import Answered, Caller


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("SLIPWAY_ACCOUNTS", raising=False)
    monkeypatch.setenv("COLUMNS", "250")
    return tmp_path / "state" / "slipway"


def slipway(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, words)
    if isinstance(result.exception, SlipwayError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def document(*words: str, code: int = 0) -> Any:
    return json.loads(slipway(*words, "--json", code=code))


def test_a_key_from_its_making_to_its_end(state: Path) -> None:
    made = document("keys", "create", "--name", "ana", "--rpm", "60", "--budget", "2.5", "--models", "a, b")
    assert set(made) == {"id", "key"}
    (listed,) = document("keys", "list")["keys"]
    assert (listed["id"], listed["rpm"], listed["budget"], listed["models"]) == (made["id"], 60, 2.5, ["a", "b"])
    assert listed["scopes"] == ["embed", "generate"]
    assert made["key"] not in slipway("keys", "list")
    with Database(str(state / "accounts.sqlite")).reading() as session:
        assert keys.of_secret(session, made["key"]) is not None
    assert document("keys", "revoke", made["id"])["revoked"] is not None
    assert document("keys", "list")["keys"][0]["revoked"] is not None
    assert [event["event"] for event in document("audit", "show")["events"]] == ["key created", "key revoked"]
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_a_key_gets_other_limits() -> None:
    made = document("keys", "create", "--name", "ana", "--rpm", "60", "--budget", "2.5", "--expires", "2d")
    (before,) = document("keys", "list")["keys"]
    after = document("keys", "update", made["id"], "--rpm", "5", "--models", "a,b", "--lift", "budget, expires")
    assert after == {**before, "rpm": 5, "models": ["a", "b"], "budget": None, "expires": None}
    assert document("keys", "list")["keys"] == [after]
    shown = slipway("keys", "update", made["id"], "--tpm", "70", "--scopes", "admin")
    assert "5 rpm, 70 tpm" in shown
    assert "admin: a, b" in shown
    told = document("audit", "show", "--last", "2")["events"]
    assert [event["event"] for event in told] == ["key changed"] * 2
    assert (told[0]["rpm"], told[0]["budget"], told[1]["tpm"]) == (5, None, 70)
    assert "rpm" not in told[1]


def test_what_people_see(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "everybody on this machine may ask" in slipway("keys", "list")
    monkeypatch.setenv("COLUMNS", "40")
    _, key = (line.split()[1] for line in slipway("keys", "create", "--name", "[b]", "--rpm", "5").splitlines()[:2])
    assert len(key) == 46
    monkeypatch.setenv("COLUMNS", "100")
    listed = slipway("keys", "list")
    assert "[b]" in listed
    assert "5 rpm" in listed
    assert "key created" in slipway("audit", "show", "--last", "1")
    assert "none" in slipway("usage")
    assert "none" in slipway("feedback", "list")


def test_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = str(tmp_path / "elsewhere.sqlite")
    slipway("keys", "create", "--name", "ana", "--accounts", elsewhere)
    assert document("keys", "list")["keys"] == []
    monkeypatch.setenv("SLIPWAY_ACCOUNTS", elsewhere)
    assert len(document("keys", "list")["keys"]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("keys", "revoke", "key-0"), "there is no key 'key-0'; there are: none"),
        (("keys", "create", "--name", "ana", "--scopes", "root"), "no scope 'root'"),
        (("keys", "create", "--name", "ana", "--expires", "soon"), "'soon' is no day"),
        (("keys", "create", "--name", "ana", "--budget", "-1"), "budget -1.0 is no sum"),
        (("keys", "create", "--name", "ana", "--budget", "nan"), "budget nan is no sum"),
        (("keys", "update", "key-0", "--rpm", "5"), "there is no key 'key-0'; there are: none"),
        (("usage", "--key", "key-0"), "there is no key 'key-0'"),
        (("usage", "--day", "yesterday"), "'yesterday' is no day"),
        (("audit", "verify"), "no audit log"),
        (("feedback", "export", "--format", "chat", "--out", "/nowhere/at/all.jsonl"), "no folder"),
        (("feedback", "export", "--format", "chat", "--out", "/tmp"), "/tmp is a folder"),
    ],
)
def test_mistakes_are_named(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(SlipwayError, match=said):
        slipway(*words)


def test_usage_and_feedback_of_a_service(state: Path, tmp_path: Path) -> None:
    made = document("keys", "create", "--name", "ana")
    database = Database(str(state / "accounts.sqlite"))
    asked = Asked(key_id=made["id"], scope="generate", model="m", version="2", prompt_tokens=3, max_tokens=4)
    caller = Caller(key_id=made["id"], name="ana", scopes=frozenset({"generate"}))
    answered = Answered(id="cmpl-1", prompts=("Two and two",), completions=(" is 5",))
    opinion = Feedback(id="cmpl-1", rating="down", correction=" is 4", consent=True)
    with database.transaction() as session:
        admitted = ledger.admit(session, asked, {})
        assert isinstance(admitted, Admitted)
        ledger.settle(session, admitted, {}, prompt_tokens=3, completion_tokens=4, failed=False)
        feedback.remember(session, answered, key_id=made["id"], model="m", version="2")
        feedback.keep_texts(session, "cmpl-1", feedback.scrubbed(answered, str) or "")
        feedback.give(session, caller, opinion)
    used = document("usage", "--key", made["id"])
    assert used["total"] == {"requests": 1, "prompt_tokens": 3, "completion_tokens": 4, "cost": None}
    assert document("usage", "--day", used["usage"][0]["day"])["usage"] == used["usage"]
    assert "in all" in slipway("usage")
    assert document("usage", "--day", "2001-01-01")["usage"] == []
    (shown,) = document("feedback", "list")["feedback"]
    assert (shown["id"], shown["key"], shown["model"], shown["version"]) == ("cmpl-1", made["id"], "m", "2")
    assert (shown["rating"], shown["correction"], shown["consent"]) == ("down", " is 4", True)
    assert document("feedback", "list", "--rating", "down", "--model", "m")["feedback"] == [shown]
    assert document("feedback", "list", "--rating", "up")["feedback"] == []
    assert document("feedback", "list", "--model", "n")["feedback"] == []
    assert "cmpl-1" in slipway("feedback", "list")
    out = tmp_path / "pairs.jsonl"
    done = document("feedback", "export", "--format", "preference", "--out", str(out))
    assert (done["rows"], done["left_out"]) == (1, {})
    assert json.loads(out.read_text()) == {"prompt": "Two and two", "chosen": " is 4", "rejected": " is 5"}


def test_a_changed_audit_log_is_told(state: Path) -> None:
    for name in ("ana", "ben"):
        slipway("keys", "create", "--name", name)
    assert document("audit", "verify")["problem"] is None
    log = state / "audit.jsonl"
    log.write_text(log.read_text().replace('"ana"', '"eve"'))
    assert "line 2" in document("audit", "verify", code=3)["problem"]


def test_when_a_key_ends() -> None:
    now = 1_800_000_000.0  # 2027-01-15 08:00 UTC
    assert expiry("30d", now=now) == now + 30 * 86400
    assert expiry("12h", now=now) == now + 12 * 3600
    assert expiry("2027-01-15", now=now) == now + 16 * 3600
    with pytest.raises(JobError, match="over already"):
        expiry("2027-01-14", now=now)
