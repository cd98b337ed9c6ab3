"""`slipway submit` and `slipway jobs`: hand a job to a cluster that is up, see how far it is, stop it, run it again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from orchestrator.cli_common import DEFAULT_STORE, AsJson, JobFile, Sets, StoreDir, print_document, store_at
from orchestrator.plan import Stage

if TYPE_CHECKING:
    from orchestrator.cluster.jobs.client import JobsClient
    from orchestrator.cluster.jobs.submit import Handed
    from orchestrator.cluster.jobs.values import Settings, Submission
    from orchestrator.job import JobSpec

Url = Annotated[
    str, typer.Option("--address", metavar="URL", help="The cluster's dashboard, such as http://head:8265.")
]
AnyJob = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, its name, or its run.")]
Detach = Annotated[bool, typer.Option("--detach", help="Return once the cluster has taken the job, or refused it.")]
Dev = Annotated[bool, typer.Option("--dev", help="Run this checkout's code, not what the cluster has installed.")]
Image = Annotated[
    str | None, typer.Option(metavar="IMAGE", help="Run the job in this container (podman on the nodes).")
]
Requirements = Annotated[
    list[str],
    typer.Option("--requirement", metavar="WHL|PKG==V|FILE", help="A pinned package for this job alone. Repeatable."),
]
Needs = Annotated[
    list[str],
    typer.Option("--env", metavar="NAME", help="A variable that the cluster's nodes must have set. Repeatable."),
]
_REFUSED_WITHIN_S = 20.0
"""A job that can never fit says so once its driver has started; --detach returns before that only where it is slow."""
jobs = typer.Typer(no_args_is_help=True, help="The jobs on a cluster: how far each is, its log, its end.")


def submit(
    job: JobFile,
    address: Url,
    sets: Sets = [],
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
    until: Annotated[Stage, typer.Option("--until", help="Stop after this stage.")] = "serve",
    detach: Detach = False,
    dev: Dev = False,
    image: Image = None,
    requirement: Requirements = [],
    env: Needs = [],
) -> None:
    """Run a job on a cluster that is up, and follow it. Ctrl-C detaches, the job goes on; again: attaches to it.

    Example:  slipway submit jobs/quickstart.yaml --address http://127.0.0.1:8265 --store /shared/slipway
    """
    from orchestrator.cluster.jobs.client import JobsClient
    from orchestrator.cluster.jobs.packing import with_absolute_paths
    from orchestrator.cluster.jobs.submit import submit as hand_over
    from orchestrator.cluster.jobs.values import Settings
    from orchestrator.cluster.jobs.watch import wait_until_begun
    from orchestrator.job_file import load_job
    from orchestrator.job_secrets import require_no_secret

    spec = with_absolute_paths(load_job(job, sets))
    require_no_secret(spec)
    settings = Settings(
        store=str(store.absolute()),
        until=until,
        dev=dev,
        image=image,
        requirements=tuple(str(Path(one).absolute()) if Path(one).exists() else one for one in requirement),
        environment=tuple(env),
    )
    client = JobsClient(address)
    handed = hand_over(client, spec, settings, run=_run_name(spec, settings))
    _audit_submission(client, handed, spec.name)
    _say_handed(client, handed)
    if detach:
        if (ended := wait_until_begun(client, handed.id, limit_s=_REFUSED_WITHIN_S)).is_over:
            _tell_end(client, ended, as_json=as_json, was_shown=False)
        print_document(_brief(client, handed.id), as_json, "jobs.print_job_line")
        return
    _follow(client, handed.id, as_json=as_json)


@jobs.command("list")
def jobs_list(
    address: Url,
    as_json: AsJson = False,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="The newest so many.")] = 50,
) -> None:
    """List the jobs on a cluster: state, step, loss, tokens/s, goodput, cost, who and when.

    Example:  slipway jobs list --address http://127.0.0.1:8265
    """
    from orchestrator.cluster.jobs import rows
    from orchestrator.cluster.jobs.client import JobsClient
    from orchestrator.cluster.jobs.submit import ends_of_logs

    client = JobsClient(address)
    found = client.submissions()[-limit:]
    listed = [rows.row_of(job, log) for job, log in zip(found, ends_of_logs(client, found), strict=True)]
    print_document({"jobs": listed}, as_json, "jobs.print_jobs")


@jobs.command("show")
def jobs_show(job: AnyJob, address: Url, as_json: AsJson = False) -> None:
    """Show one job: how far it is, how it was submitted, and of one that died who, where, why.

    Example:  slipway jobs show quickstart --address http://127.0.0.1:8265
    """
    from orchestrator.cluster.jobs import rows
    from orchestrator.cluster.jobs.client import JobsClient
    from orchestrator.cluster.jobs.submit import find
    from orchestrator.cluster.jobs.watch import STATE_LINES

    client = JobsClient(address)
    found = find(client, job)
    print_document(rows.account_of(found, client.log(found, lines=STATE_LINES)), as_json, "jobs.print_job")


@jobs.command("logs")
def jobs_logs(
    job: AnyJob,
    address: Url,
    as_json: AsJson = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until it ends; its exit code.")] = False,
) -> None:
    """Print what a job has written, or follow it as `submit` does.

    Example:  slipway jobs logs quickstart --follow --address http://127.0.0.1:8265
    """
    from orchestrator.cluster.jobs.client import JobsClient
    from orchestrator.cluster.jobs.submit import find
    from orchestrator.track.state_lines import without_state_lines

    client = JobsClient(address)
    found = find(client, job)
    if follow:
        _follow(client, found.id, as_json=as_json)
    document = {"job": found.id, "log": without_state_lines(client.log(found))}
    print_document(document, as_json, "jobs.print_log")


@jobs.command("stop")
def jobs_stop(job: AnyJob, address: Url, as_json: AsJson = False) -> None:
    """Have a job save a checkpoint and end; returns once it has, and says how.

    Example:  slipway jobs stop quickstart --address http://127.0.0.1:8265
    """
    from orchestrator.cluster.jobs import rows
    from orchestrator.cluster.jobs.client import JobsClient
    from orchestrator.cluster.jobs.submit import find, stop
    from orchestrator.cluster.jobs.watch import STATE_LINES

    client = JobsClient(address)
    found = find(client, job)
    if not found.is_over:
        _audit("job-stopped", job=found.id, name=found.name, address=address)
    ended = stop(client, found)
    print_document(rows.account_of(ended, client.log(ended, lines=STATE_LINES)), as_json, "jobs.print_job")


@jobs.command("retry")
def jobs_retry(job: AnyJob, address: Url, as_json: AsJson = False) -> None:
    """Hand over a job that has ended once more, as it was; its run goes on from the newest checkpoint.

    Example:  slipway jobs retry quickstart --address http://127.0.0.1:8265
    """
    from orchestrator.cluster.jobs.client import JobsClient
    from orchestrator.cluster.jobs.submit import again, find

    client = JobsClient(address)
    found = find(client, job)
    handed = again(client, found)
    _audit_submission(client, handed, found.name)
    _say_handed(client, handed)
    print_document(_brief(client, handed.id), as_json, "jobs.print_job_line")


def _follow(client: JobsClient, id: str, *, as_json: bool) -> NoReturn:
    """Until the job ends, with its exit code, or until Ctrl-C."""
    from orchestrator.cluster.jobs.watch import follow
    from orchestrator.track.progress import say

    try:
        ended = follow(client, id)
    except KeyboardInterrupt:
        say(f"detached; the job goes on: slipway jobs logs {id} --follow --address {client.address}")
        print_document(_brief(client, id), as_json, "jobs.print_job_line")
        sys.exit(0)
    _tell_end(client, ended, as_json=as_json, was_shown=True)


def _tell_end(client: JobsClient, ended: Submission, *, as_json: bool, was_shown: bool) -> NoReturn:
    """Of a job, with its exit code; its last words, where its log was not shown."""
    from orchestrator.cluster.jobs import rows
    from orchestrator.track.progress import say

    document = _brief(client, ended.id)
    if (death := rows.death_of(ended, _end_of_log(client, ended.id))) is not None:
        say(f"{ended.id}: {death['who']} on {death['where']} {death['why']}")
        for line in () if was_shown else death["last_words"]:
            say(f"  {line}")
    print_document(document, as_json, "jobs.print_job_line")
    sys.exit(rows.exit_code_of(ended))


def _brief(client: JobsClient, id: str) -> dict[str, Any]:
    """The document of `submit`."""
    from orchestrator.cluster.jobs import rows

    job, log = client.submission(id), _end_of_log(client, id)
    return {"job": id, "run": rows.run_of(job, log), "state": rows.state_of(job, log)}


def _end_of_log(client: JobsClient, id: str) -> str:
    from orchestrator.cluster.jobs.watch import STATE_LINES

    return client.log(client.submission(id), lines=STATE_LINES)


def _run_name(job: JobSpec, settings: Settings) -> str | None:
    """The run that the job will be, where its sources can be listed from here at once."""
    from orchestrator.status import standing

    stages = {stage.stage: stage for stage in standing(job, store_at(Path(settings.store))).stages}
    return stages["train"].path if "train" in stages else None


def _say_handed(client: JobsClient, handed: Handed) -> None:
    from orchestrator.track.progress import say

    if handed.attached:
        say(f"attached to {handed.id}, which is there already")
    else:
        say(f"submitted {handed.id} to {client.address}; Ctrl-C detaches")


def _audit_submission(client: JobsClient, handed: Handed, name: str) -> None:
    if not handed.attached:
        _audit("job-submitted", job=handed.id, name=name, address=client.address)


def _audit(event: str, **facts: Any) -> None:
    """A line of this machine's audit log, with who did it."""
    import getpass

    from orchestrator.serve.accounts.audit import AuditLog
    from orchestrator.serve.accounts.place import audit_path

    AuditLog(audit_path()).append(event, **facts, user=getpass.getuser())
