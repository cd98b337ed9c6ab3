"""What is told of jobs: states, the right one, and how one has died."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.cluster.jobs import rows
from orchestrator.cluster.jobs.values import Status, Submission
from orchestrator.errors import JobError

FACTS = {"state": "training", "stage": "train", "run": "runs/tiny-0123", "step": 8, "steps": 40, "loss": 2.5}
STATE = f"slipway-state {json.dumps(FACTS)}\n"
SAID = "[  12.0 s] step 8/40  loss 2.5\n"


def job(id: str = "slipway-tiny-aaaaaaaa-1", status: Status = "RUNNING", **more: Any) -> Submission:
    metadata = {"slipway": "tiny", "identity": "aaaaaaaaaaaa", "user": "ana@desk", **more.pop("metadata", {})}
    return Submission(id=id, status=status, metadata=metadata, started_at=1_700_000_000.0, **more)


@pytest.mark.parametrize(
    ("status", "log", "state"),
    [
        ("PENDING", "", "pending"),
        ("RUNNING", "", "starting"),
        ("RUNNING", STATE + SAID, "training"),
        ("SUCCEEDED", STATE, "succeeded"),
        ("STOPPED", STATE, "stopped"),
        ("FAILED", STATE, "failed"),
    ],
)
def test_the_state_is_the_run_s_own_word_until_it_ends(status: Status, log: str, state: str) -> None:
    assert rows.state_of(job(status=status), log) == state


def test_a_row_has_the_figures_of_the_newest_state() -> None:
    row = rows.row_of(job(metadata={"run": "runs/guessed"}), STATE + SAID)
    assert (row["run"], row["step"], row["loss"], row["cost"]) == ("runs/tiny-0123", 8, 2.5, None)
    assert (row["user"], row["submitted_at"], row["ended_at"]) == ("ana@desk", "2023-11-14T22:13:20+00:00", None)
    assert rows.row_of(job(metadata={"run": "runs/guessed"}), "")["run"] == "runs/guessed"


def test_one_that_does_not_begin_says_what_it_waits_for() -> None:
    waiting = job(status="PENDING", message="Waiting for resources.\nmore")
    assert rows.row_of(waiting, "")["why"] == "Waiting for resources."


@pytest.mark.parametrize(
    ("status", "code", "ends_with"),
    [("SUCCEEDED", 0, 0), ("FAILED", 4, 4), ("FAILED", -9, 137), ("STOPPED", None, 143), ("FAILED", None, 5)],
)
def test_exit_codes_are_the_run_s(status: Status, code: int | None, ends_with: int) -> None:
    assert rows.exit_code_of(job(status=status, exit_code=code)) == ends_with


@pytest.mark.parametrize(
    ("code", "error_type", "message", "who", "why"),
    [
        (4, None, "", "the driver", "ended with exit code 4: the cluster is too small"),
        (1, None, "", "the driver", "ended with exit code 1"),
        (137, None, "", "the driver", "killed by SIGKILL"),
        (-15, None, "", "the driver", "killed by SIGTERM"),
        (None, "RUNTIME_ENV_SETUP_FAILURE", "bad\nno wheel", "its environment", "could not be set up: no wheel"),
        (
            None,
            "JOB_SUPERVISOR_ACTOR_DIED",
            "The node was lost.",
            "the driver, with its machine or the process over it",
            "ended: The node was lost.",
        ),
    ],
)
def test_a_death_says_who_where_and_why(code: Any, error_type: Any, message: str, who: str, why: str) -> None:
    dead = job(status="FAILED", exit_code=code, error_type=error_type, message=message, node="10.0.0.7")
    death = rows.death_of(dead, "") or {}
    assert (death["who"], death["where"], death["why"]) == (who, "10.0.0.7", why)


def test_the_last_words_are_the_run_s_own_else_the_end_of_its_log() -> None:
    log = f"{SAID}error: first\n{SAID}error: no file matches x\n  fix: check it\n[  13.0 s] bye\n{STATE}"
    assert rows.own_words(log) == ["error: no file matches x", "  fix: check it"]
    dead = job(status="FAILED", exit_code=1)
    assert (rows.death_of(dead, SAID * 30) or {})["last_words"] == [SAID.strip()] * 12
    assert (rows.death_of(job(status="FAILED", message="a\nb"), "") or {})["last_words"] == ["a", "b"]
    assert rows.death_of(job(status="STOPPED"), log) is None
    assert rows.own_words(f"{SAID}stopped: tiny was stopped; saved up to step 9\n")[0].endswith("step 9")


def test_the_outcome_is_the_run_s_last_document() -> None:
    assert rows.outcome_of(SAID + '{"run": "runs/x", "steps": 40}\n' + SAID) == {"run": "runs/x", "steps": 40}
    assert rows.outcome_of('{"run": "runs/x", "st') is None


def test_a_job_is_found_by_id_run_or_name() -> None:
    first, second = job("slipway-tiny-aaaaaaaa-1", "FAILED"), job("slipway-tiny-aaaaaaaa-2")
    runs: dict[str, str | None] = {first.id: "runs/tiny-0123", second.id: "runs/tiny-0123"}
    for asked in ("tiny", "tiny-0123", "runs/tiny-0123", second.id):
        assert rows.chosen([first, second], asked, runs) is second
    assert rows.chosen([first, second], first.id, runs) is first
    with pytest.raises(JobError, match="no job other"):
        rows.chosen([first, second], "other", runs)


def test_of_two_jobs_of_a_name_the_one_that_runs_is_meant() -> None:
    other = job("slipway-tiny-bbbbbbbb-1", "FAILED", metadata={"identity": "bbbbbbbbbbbb"})
    alive = job()
    assert rows.chosen([alive, other], "tiny", {}) is alive
    ended = job(status="FAILED")
    with pytest.raises(JobError, match="several jobs are named tiny") as raised:
        rows.chosen([ended, other], "tiny", {})
    assert other.id in str(raised.value.fix)


def test_the_same_job_is_attached_to_and_numbered_on() -> None:
    ended, alive = job("slipway-tiny-aaaaaaaa-9", "STOPPED"), job("slipway-tiny-aaaaaaaa-10")
    assert rows.running([ended, alive], "aaaaaaaaaaaa") is alive
    assert rows.running([ended], "aaaaaaaaaaaa") is None
    assert rows.next_id([ended, alive], "tiny", "aaaaaaaaaaaa") == "slipway-tiny-aaaaaaaa-11"
    assert rows.next_id([ended, alive], "tiny", "cccccccccccc") == "slipway-tiny-cccccccc-1"


def test_what_is_shown_is_plain_data() -> None:
    settings = '{"store": "/s", "until": "train", "dev": true, "image": null, "requirements": [], "environment": []}'
    shown = rows.account_of(job(status="FAILED", exit_code=3, metadata={"settings": settings}), STATE)
    assert json.loads(json.dumps(shown)) == shown
    assert (shown["store"], shown["until"], shown["dev"], shown["exit_code"]) == ("/s", "train", True, 3)
