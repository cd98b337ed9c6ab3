"""Hand a job to a cluster that is up, through Ray's Jobs API; the driver runs there, logs follow here."""

from __future__ import annotations

import asyncio
import shlex
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cluster.connect import prepare_environment
from orchestrator.errors import CapacityError
from orchestrator.job import JobSpec
from orchestrator.job_file import job_to_yaml

_AGENT_LIMIT_S = 30.0
_STOP_WAIT_S = 90
"""How long `ray job stop` lets a run finish its step, save and end before it kills it; 3 s by default."""
_STOPPED = 143


@dataclass(frozen=True)
class Submitted:
    """How it ended, or that it goes on without us."""

    document: dict[str, Any]
    exit_code: int


def submit_and_follow(job: JobSpec, *, address: str, store: Path, until: str) -> Submitted:
    """Submit `slipway run` of a job to a cluster and follow its log; Ctrl-C detaches.

    The store, and sources without a placeholder, are paths that the cluster's nodes share.

    Raises:
        CapacityError: no Ray dashboard answers at the address, or it does not take our token.
    """
    prepare_environment()
    client = _client(address)
    with tempfile.TemporaryDirectory(prefix="slipway-submit-") as folder:
        (Path(folder) / "job.yaml").write_text(job_to_yaml(with_absolute_paths(job)), encoding="utf-8")
        submission = _submit(client, job, folder, entrypoint(store=store, until=until))
    sys.stderr.write(f"submitted {submission}; Ctrl-C detaches\n")
    try:
        asyncio.run(_follow(client, submission))
    except KeyboardInterrupt:
        sys.stderr.write(f"detached; the job goes on: ray job logs --address {address} -f {submission}\n")
        return Submitted({"job": submission, "status": "RUNNING"}, 0)
    except RuntimeError as error:  # the connection has closed
        raise CapacityError(
            f"the cluster no longer tells of {submission}: {str(error).splitlines()[0]}",
            fix=f"the job may go on: ray job status --address {address} {submission}",
        ) from error
    info = client.get_job_info(submission)
    stopped = info.status.value == "STOPPED"  # then Ray keeps no exit code
    code = _STOPPED if stopped else 5 if info.driver_exit_code is None else info.driver_exit_code
    return Submitted({"job": submission, "status": str(info.status.value)}, code)


def entrypoint(*, store: Path, until: str) -> str:
    """The command that the cluster runs. Nothing secret is in it: it shows in the dashboard."""
    command = ["-m", "orchestrator.cli", "run", "job.yaml", "--address", "auto", "--store", str(store)]
    arguments = shlex.join([*command, "--until", until, "--json"])
    # The interpreter we run in where the head has it too, else the one that is first on the path of the head's Ray.
    python = shlex.quote(sys.executable)
    choice = f"python={python}; \"$python\" -c 'import orchestrator' 2>/dev/null || python=python"
    return f'{choice}; exec "$python" {arguments}'


def with_absolute_paths(job: JobSpec) -> JobSpec:
    """The job with relative sources as seen from here: the driver starts in another folder."""

    def absolute(path: str) -> str:
        return path if path.startswith(("$", "/", "~")) or "://" in path else str(Path.cwd() / path)

    sources = [source.model_copy(update={"path": absolute(source.path)}) for source in job.data.sources]
    given = job.data.tokenizer.path
    tokenizer = job.data.tokenizer.model_copy(update={"path": absolute(given) if given else None})
    template = tokenizer.chat_template
    if template and template != "chatml" and "{" not in template.replace("${", ""):
        tokenizer = tokenizer.model_copy(update={"chat_template": absolute(template)})
    against = [e.model_copy(update={"path": absolute(e.path)}) for e in job.data.deduplicate.against]
    deduplicate = job.data.deduplicate.model_copy(update={"against": against})
    datasets = [  # a name stands for a dataset of the store there
        d.model_copy(update={"dataset": absolute(d.dataset)}) if Path(d.dataset).is_dir() else d
        for d in job.data.datasets
    ]
    update = {"sources": sources, "tokenizer": tokenizer, "deduplicate": deduplicate, "datasets": datasets}
    data = job.data.model_copy(update=update)
    return job.model_copy(update={"data": data})


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise CapacityError(
            f"no Ray dashboard takes jobs at {address}: {str(error).splitlines()[0]}",
            fix="give the dashboard's URL, such as http://127.0.0.1:8265; ~/.ray/auth_token must hold its token",
        ) from None


def _submit(client: Any, job: JobSpec, folder: str, command: str) -> str:
    """Hand the job over; a head that has just started has no agent yet for a while."""
    deadline = time.monotonic() + _AGENT_LIMIT_S
    while True:
        try:
            return str(
                client.submit_job(
                    entrypoint=command,
                    runtime_env={
                        "working_dir": folder,
                        # Ray reads it in the process that watches over the job, which has the job's environment.
                        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)},
                    },
                    submission_id=f"slipway-{job.name}-{uuid.uuid4().hex[:8]}",
                    metadata={"slipway": job.name},
                )
            )
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise CapacityError(
                    f"the cluster did not take the job: {str(error).strip().splitlines()[-1]}",
                    fix="see the head's dashboard_agent.log; another Ray there may hold the agent's port (52365)",
                ) from error
            time.sleep(1.0)


async def _follow(client: Any, submission: str) -> None:
    async for lines in client.tail_job_logs(submission):
        sys.stderr.write(lines)
        sys.stderr.flush()
