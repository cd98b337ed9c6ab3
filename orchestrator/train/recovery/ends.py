"""The end of an attempt by failure: what is said of it in events.jsonl, in W&B, and to whoever started the run."""

from __future__ import annotations

from pathlib import Path

from orchestrator.checkpoint.layout import step_of
from orchestrator.checkpoint.reader import committed_steps
from orchestrator.errors import SlipwayError, TrainError
from orchestrator.identity import wandb_run_id
from orchestrator.job import JobSpec
from orchestrator.job_file import environment
from orchestrator.job_train import Guard
from orchestrator.track import events
from orchestrator.track.tracker import redact
from orchestrator.track.wandb import RunIdentity, open_tracker
from orchestrator.train.guarding.guard import RollbackError, roll_back
from orchestrator.train.recovery.retries import Decision, Failed


def last_good_step(run: Path) -> int:
    """Of the newest committed checkpoint; 0 without one."""
    saved = committed_steps(run)
    return (step_of(saved[-1].name) or 0) if saved else 0


def leave_out(run: Path, failed: Failed, settings: Guard) -> None:
    """Where a failure asks to go back: leave out the batches that led to it, for the attempts that follow.

    To be called once the attempt has ended, when no checkpoint of its can come to stand any more.
    """
    if isinstance(failed.failure.error, RollbackError):
        roll_back(run, failed.failure.error, to_step=failed.step, settings=settings)


def record_failure(run: Path, failed: Failed, decision: Decision, *, attempt: int | None) -> None:
    """The event `failed`: class, cause, last good step, and what follows; `attempt` is null before one has begun."""
    events.record(
        run,
        "failed",
        attempt=attempt,
        **{"class": failed.failure.kind.value},
        cause=failed.failure.cause,
        step=failed.step,
        action=decision.action,
        why=decision.why,
    )


def alert(job: JobSpec, run: Path, failed: Failed) -> None:
    """Tell W&B that a run has ended by failure; returns once it is told, or after the tracker's time limit."""
    who = RunIdentity(wandb_run_id(run.name), run.name, run)
    tracker = open_tracker(job.track.wandb, who, config=redact(job.model_dump(mode="json")), environ=environment())
    failure = failed.failure
    text = f"class: {failure.kind.value}\ncause: {failure.cause}\nlast good step: {failed.step}\nnext: {failure.fix}"
    tracker.alert(f"{run.name} failed: {failure.kind.value}", text)
    tracker.close()


def final_error(run: Path, failed: Failed, decision: Decision) -> SlipwayError:
    """What the command says: class, cause and last good step, and as its fix what to do next."""
    failure = failed.failure
    kind = type(failure.error) if failure.error is not None else TrainError
    saved = f"last good step {failed.step}" if failed.step else "no step saved"
    message = f"{run.name} failed: {failure.cause} (class {failure.kind.value}, {saved}; {decision.why})"
    return kind(message, fix=failure.fix)
