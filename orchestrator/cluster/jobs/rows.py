"""Jobs as `slipway jobs` tells of them: state, figures, how one has died, which one is meant. Pure."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from orchestrator.cluster.jobs.values import Settings, Submission
from orchestrator.errors import JobError, meaning_of
from orchestrator.track.state_lines import last_state, without_state_lines

STOPPED_CODE = 143
"""Of a job that was stopped, of which Ray keeps no exit code."""
LOST_CODE = 5
"""Of a job whose driver has left none."""
_FIGURES = ("step", "steps", "loss", "tokens_per_s", "goodput", "cost", "place", "why")
_ENDS = {"SUCCEEDED": "succeeded", "FAILED": "failed", "STOPPED": "stopped"}
_NO_PROGRAM = 127
"""Of a shell that finds no program of the name."""
_ERRORS = {
    "RUNTIME_ENV_SETUP_FAILURE": ("its environment", "could not be set up"),
    "JOB_SUPERVISOR_ACTOR_START_TIMEOUT": ("its start", "took too long"),
    "JOB_SUPERVISOR_ACTOR_START_FAILURE": ("its start", "failed"),
    "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE": ("its start", "found no place on the head"),
    "JOB_ENTRYPOINT_COMMAND_START_ERROR": ("its start", "failed"),
}
_TIMES = re.compile(r"^\[ *[\d.]+ s\] ")
_LAST_LINES = 12


def state_of(job: Submission, log: str) -> str:
    """pending, starting, what the run says of itself, or how it has ended."""
    if job.is_over:
        return _ENDS[job.status]
    if job.status == "PENDING":
        return "pending"
    return str(last_state(log).get("state", "starting"))


def run_of(job: Submission, log: str) -> str | None:
    """The run, relative to the store; None before it is known."""
    return last_state(log).get("run") or job.metadata.get("run")


def row_of(job: Submission, log: str) -> dict[str, Any]:
    """A job of `slipway jobs list`, given the end of its log."""
    said = last_state(log)
    figures = {name: said.get(name) for name in _FIGURES}
    if job.status == "PENDING" and job.message:
        figures["why"] = job.message.splitlines()[0]
    return {
        "job": job.id,
        "name": job.name,
        "state": state_of(job, log),
        "stage": said.get("stage"),
        "run": run_of(job, log),
        **figures,
        "user": job.metadata.get("user"),
        "submitted_at": _iso(job.started_at),
        "ended_at": _iso(job.ended_at),
    }


def account_of(job: Submission, log: str) -> dict[str, Any]:
    """The document of `slipway jobs show`."""
    settings = Settings.from_json(job.metadata["settings"]) if "settings" in job.metadata else None
    return {
        **row_of(job, log),
        "store": settings.store if settings else None,
        "until": settings.until if settings else None,
        "dev": settings.dev if settings else None,
        "commit": job.metadata.get("commit"),
        "node": job.node,
        "exit_code": exit_code_of(job) if job.is_over else None,
        "said": own_words(log) if job.is_over else [],
        "outcome": outcome_of(log) if job.is_over else None,
        "death": death_of(job, log),
    }


def exit_code_of(job: Submission) -> int:
    """What `submit` ends with when it has followed a job to its end."""
    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        return STOPPED_CODE
    if job.exit_code is None:
        return LOST_CODE
    return 128 - job.exit_code if job.exit_code < 0 else job.exit_code


def death_of(job: Submission, log: str) -> dict[str, Any] | None:
    """Who of a failed job has died, where and why, with its last words; None of one that has not failed."""
    if job.status != "FAILED":
        return None
    who, why = _cause(job)
    return {"who": who, "where": job.node, "why": why, "last_words": own_words(log) or _last_lines(job, log)}


def _cause(job: Submission) -> tuple[str, str]:
    if job.exit_code is None:
        reason = (job.message.strip().splitlines() or ["Ray does not say why"])[-1]
        who, what = _ERRORS.get(job.error_type or "", ("the driver, with its machine or the process over it", "ended"))
        return who, f"{what}: {reason}"
    code = exit_code_of(job)
    if code > 128 and code - 128 in set(signal.Signals):
        return "the driver", f"killed by {signal.Signals(code - 128).name}"
    meaning = "there is no such program on the head" if code == _NO_PROGRAM else meaning_of(code)
    return "the driver", f"ended with exit code {code}" + (f": {meaning}" if meaning else "")


def own_words(log: str) -> list[str]:
    """The lines in which a run said why it ended: its last error, or what a stop has left."""
    lines = [_TIMES.sub("", line) for line in without_state_lines(log).splitlines()]
    starts = [i for i, line in enumerate(lines) if line.startswith(("error: ", "stopped: "))]
    if not starts:
        return []
    said = lines[starts[-1] : starts[-1] + _LAST_LINES]
    return [line for i, line in enumerate(said) if i == 0 or line.startswith(" ")]


def _last_lines(job: Submission, log: str) -> list[str]:
    lines = without_state_lines(log).splitlines() or job.message.splitlines()
    return [line for line in lines if line.strip()][-_LAST_LINES:]


def outcome_of(log: str) -> dict[str, Any] | None:
    """The document that the run printed at its end."""
    for line in reversed(log.splitlines()):
        if line.startswith('{"run"'):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            return found if isinstance(found, dict) else None
    return None


def running(jobs: Sequence[Submission], identity: str) -> Submission | None:
    """The one that is the same job, and has not ended."""
    return next((job for job in reversed(jobs) if job.identity == identity and not job.is_over), None)


def next_id(jobs: Sequence[Submission], name: str, identity: str) -> str:
    """The name of the next submission of a job: of two at once, Ray takes one, and the other attaches to it."""
    stem = f"slipway-{name}-{identity[:8]}-"
    numbers = [job.id.removeprefix(stem) for job in jobs if job.id.startswith(stem)]
    return f"{stem}{1 + max((int(number) for number in numbers if number.isdigit()), default=0)}"


def chosen(jobs: Sequence[Submission], asked: str, runs: dict[str, str | None]) -> Submission:
    """The job that is meant: by its id, its run, or its name; of the submissions of one job the newest.

    Args:
        jobs: oldest first.
        asked: what the user has written.
        runs: id -> the run, as far as it is known.

    Raises:
        JobError: there is none, or several different ones of this name.
    """
    for job in jobs:
        if job.id == asked:
            return job
    wanted = asked.removeprefix("runs/")
    ofrun = [job for job in jobs if (runs.get(job.id) or "").removeprefix("runs/") == wanted]
    named = ofrun or [job for job in jobs if job.name == asked]
    if len({job.identity for job in named}) > 1 and not ofrun:
        alive = [job for job in named if not job.is_over]
        if len(alive) != 1:
            ids = ", ".join(job.id for job in named)
            raise JobError(f"several jobs are named {asked}", fix=f"say which: {ids}")
        return alive[0]
    if not named:
        ids = ", ".join(job.id for job in jobs[-5:]) or "none"
        raise JobError(f"there is no job {asked}; the last ones are: {ids}", fix="`slipway jobs list` has them all")
    return named[-1]


def _iso(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="seconds")
