"""Hand a job to a cluster, attach to the one that runs, hand it over again, stop it, find it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cluster.jobs import rows
from orchestrator.cluster.jobs.client import AlreadyThereError, JobsClient
from orchestrator.cluster.jobs.packing import STOP_WAIT_S, packed, runtime_env
from orchestrator.cluster.jobs.values import Settings, Submission, job_identity
from orchestrator.cluster.jobs.watch import STATE_LINES, wait_until_over
from orchestrator.errors import CapacityError, JobError
from orchestrator.job import JobSpec
from orchestrator.job_file import load_job

_ASKED_AT_ONCE = 8
_STOP_MARGIN_S = 30.0


@dataclass(frozen=True)
class Handed:
    """A job that is on the cluster."""

    id: str
    attached: bool
    """Whether it was there already, and has not ended."""


def submit(client: JobsClient, job: JobSpec, settings: Settings, *, run: str | None = None) -> Handed:
    """Have the cluster run a job; the same job that is there and has not ended is taken instead.

    `run` is the name that the run will have, where it is known here.

    Raises:
        JobError: the job cannot be packed.
        CapacityError: the cluster does not take it.
    """
    identity = job_identity(job, settings)
    before = client.submissions()
    if there := rows.running(before, identity):
        return Handed(there.id, attached=True)
    id = rows.next_id(before, job.name, identity)
    with packed(job, settings) as package:
        uri = client.upload(str(package.packages)) if package.packages else None
        metadata = {**package.metadata, **({"run": run} if run else {})}
        env = runtime_env(settings, working_dir=str(package.folder), packages=uri)
        try:
            client.submit(id=id, command=package.command, runtime_env=env, metadata=metadata)
        except AlreadyThereError:  # somebody was a moment earlier
            return Handed(id, attached=True)
    return Handed(id, attached=False)


def again(client: JobsClient, job: Submission) -> Handed:
    """Hand a job over once more, as it was; the run goes on from its newest checkpoint.

    Raises:
        JobError: it has not ended, or was submitted by something else.
    """
    if not job.is_over:
        raise JobError(f"{job.id} has not ended", fix=f"slipway jobs stop {job.id} --address {client.address}")
    if not {"job", "settings"} <= job.metadata.keys():
        raise JobError(f"{job.id} does not hold its job", fix="submit the job file again")
    return submit(client, job_of(job), Settings.from_json(job.metadata["settings"]), run=job.metadata.get("run"))


def job_of(submission: Submission) -> JobSpec:
    """The job itself, as it was handed over."""
    with tempfile.TemporaryDirectory(prefix="slipway-again-") as folder:
        path = Path(folder) / "job.yaml"
        path.write_text(submission.metadata["job"], encoding="utf-8")
        return load_job(path)


def stop(client: JobsClient, job: Submission) -> Submission:
    """Have a job save and end; returns once it has, or at once where it had ended before.

    Raises:
        CapacityError: it does not end in time.
    """
    if job.is_over:
        return job
    client.stop(job.id)
    ended = wait_until_over(client, job.id, limit_s=STOP_WAIT_S + _STOP_MARGIN_S)
    if not ended.is_over:
        raise CapacityError(
            f"{job.id} has not ended {STOP_WAIT_S + _STOP_MARGIN_S:.0f} s after it was told to",
            fix=f"look at it: slipway jobs logs {job.id} --address {client.address}",
        )
    return ended


def find(client: JobsClient, asked: str) -> Submission:
    """The job that is meant: by its id, its run, or its name.

    Raises:
        JobError: there is none, or more than one of this name.
    """
    jobs = client.submissions()
    runs = {job.id: job.metadata.get("run") for job in jobs}
    known = {name for job in jobs for name in (job.id, job.name, runs[job.id])}
    if not {asked, f"runs/{asked}"} & known:  # a run whose name was not known when it was handed over
        runs = {job.id: rows.run_of(job, log) for job, log in zip(jobs, ends_of_logs(client, jobs), strict=True)}
    return rows.chosen(jobs, asked, runs)


def ends_of_logs(client: JobsClient, jobs: Sequence[Submission]) -> list[str]:
    """The end of each job's log, in the same order."""
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        return list(pool.map(lambda job: client.log(job, lines=STATE_LINES), jobs))
