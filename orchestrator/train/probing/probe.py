"""Measure a few real steps before a plan is made (`slipway plan --probe`): the command's side, which imports no torch.

The steps are made in a process of their own (`probe_worker`): its memory is clean, and when it crashes or is killed for
its memory the command lives on to say so. One worker alone makes them, with as many samples a step as the busiest of
the plan's workers has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from orchestrator.cluster.view import local_view
from orchestrator.data.dataset import open_dataset
from orchestrator.data.sources.listing import list_sources
from orchestrator.errors import (
    CapacityError,
    DataError,
    JobError,
    OutOfMemoryError,
    SlipwayError,
    StoreError,
    TrainError,
)
from orchestrator.job import JobSpec
from orchestrator.job_file import environment, job_to_yaml
from orchestrator.plan import ClusterView, Probe, make_plan
from orchestrator.plan.capacity import workers_on
from orchestrator.plan.network import network_of
from orchestrator.status import dataset_identity, given_vocabulary, origin_of_job
from orchestrator.store import Store, is_committed
from orchestrator.track.progress import say

JOB, ASKED, FOUND = "job.yaml", "asked.json", "found.json"
"""In the folder that both sides share."""

_ERRORS = {
    error.kind: error for error in (JobError, DataError, CapacityError, TrainError, OutOfMemoryError, StoreError)
}
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Of whatever group the command stands in: the probe is a group of its own."""


_MOST_STEPS = 100_000
"""No warm-up is so long: the probe ends by its own count, never by the job's."""


def probe(job: JobSpec, view: ClusterView, *, store: Store, steps: int = 8) -> Probe:
    """Time some steps of a job on this machine, after a few that warm up; and the memory that they take.

    They are made of the job's dataset where the store has it, else of random tokens in full rows. Where memory runs out
    the micro-batch is halved, as training does it.

    Args:
        view: the cluster that will be planned for: it decides stage, micro-batch and a worker's share of a step.
        steps: to time.

    Raises:
        CapacityError: this machine does not hold one worker of the job.
        DataError: a custom module reads columns, and they are not prepared.
        JobError: the size of the tokenizer is not known yet, or the job is wrong.
        TrainError: the steps failed, or one sample does not fit.
    """
    _require_one_worker(job)
    dataset = _prepared(job, store)
    vocab_size = open_dataset(dataset, verify=False).vocab_size if dataset else _vocabulary(job)
    plan = make_plan(job, view, vocab_size=vocab_size)
    share = max(1, -(-plan.samples_per_step // plan.workers))
    asked: dict[str, Any] = {
        "steps": steps,
        "vocab_size": vocab_size,
        "dataset": str(dataset) if dataset else None,
        "origin": _origin(job, store) if dataset else None,  # on random tokens weights are as good as any
        "plan": json.loads(plan.model_dump_json()),
    }
    said = "the job's dataset" if dataset else "random tokens, as the dataset is not prepared"
    say(f"probing {steps} steps of {share} sample(s) on {said}")
    found, micro_batch = _until_it_fits(_one_share(job, share, steps), asked, min(plan.micro_batch, share))
    return Probe(
        steps=found["steps"],
        workers=1,
        stage=plan.zero_stage,
        micro_batch=micro_batch,
        tokens_per_s=share * job.model.context / found["step_s"],
        peak_bytes=found["peak_bytes"],
        samples="dataset" if dataset else "random",
    )


def _origin(job: JobSpec, store: Store) -> tuple[str, str] | None:
    """Folder and identity of the weights that the job begins from."""
    origin = origin_of_job(job, store)
    return (str(origin.folder.resolve()), origin.identity) if origin else None


def _require_one_worker(job: JobSpec) -> None:
    here, asked = local_view(), job.training.workers
    if workers_on(asked, here.nodes[0]) < 1:
        raise CapacityError(
            f"a probe needs one worker of {asked.cpus} CPU(s) and {asked.gpus} GPU(s); here are {here.describe()}",
            fix="run it on a machine of the cluster, or plan without --probe",
        )


def _prepared(job: JobSpec, store: Store) -> Path | None:
    """The job's dataset, where the store has it."""
    try:
        path = store.dataset(job.name, dataset_identity(job, list_sources(job.data, environment()), store))
    except SlipwayError:
        return None  # `prepare` says what is wrong with the sources
    return path if is_committed(path) else None


def _vocabulary(job: JobSpec) -> int:
    if job.model.kind == "custom":
        raise DataError(
            f"a probe of {job.name} needs its columns: only its own module knows what random ones would be",
            fix="run `slipway prepare` first, or plan without --probe",
        )
    network = network_of(job, given_vocabulary(job))
    if network is None:
        raise JobError(
            f"the tokenizer of {job.name} is not there, and without its size there is no model to probe",
            fix="run `slipway prepare` first, or set model.vocab_size",
        )
    return network.config.vocab_size


def _one_share(job: JobSpec, share: int, steps: int) -> JobSpec:
    """The job with one worker's share of a step, long enough for the probe."""
    train = job.training
    changes = {"batch_tokens": share * job.model.context, "steps": max(train.steps, _MOST_STEPS + steps)}
    return job.model_copy(update={"train": train.model_copy(update=changes)})


def _until_it_fits(job: JobSpec, asked: dict[str, Any], micro_batch: int) -> tuple[dict[str, Any], int]:
    while True:
        try:
            return _measured(job, {**asked, "micro_batch": micro_batch}), micro_batch
        except OutOfMemoryError as error:
            if micro_batch == 1:
                raise
            micro_batch //= 2
            say(f"{error.message}: probing with {micro_batch}")


def _measured(job: JobSpec, asked: dict[str, Any]) -> dict[str, Any]:
    """What a process of its own has measured."""
    surrounding = {name: value for name, value in os.environ.items() if name not in _RANKS}
    if not job.training.workers.gpus:
        surrounding["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory(prefix="slipway-probe-") as name:
        folder = Path(name)
        (folder / JOB).write_text(job_to_yaml(job), encoding="utf-8")
        (folder / ASKED).write_text(json.dumps(asked), encoding="utf-8")
        command = [sys.executable, "-m", "orchestrator.train.probing.worker", str(folder)]
        done = subprocess.run(command, env=surrounding, capture_output=True, text=True, errors="replace", check=False)
        if not (folder / FOUND).is_file():
            raise _crashed(done, asked["micro_batch"])
        found: dict[str, Any] = json.loads((folder / FOUND).read_text(encoding="utf-8"))
    if "error" in found:
        raised = _ERRORS.get(found["error"]["kind"], SlipwayError)
        raise raised(found["error"]["message"], fix=found["error"]["fix"])
    return found


def _crashed(done: subprocess.CompletedProcess[str], micro_batch: int) -> TrainError:
    """Of a process that ended without a word in its file."""
    if done.returncode == -9:
        return OutOfMemoryError(
            f"the probe was killed with {micro_batch} sample(s) in a forward pass: memory ran out, most likely",
            fix="lower train.micro_batch or model.context, or use a machine with more memory",
        )
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return TrainError(
        f"the probe ended with exit code {done.returncode}: {last}",
        fix="plan without --probe, or train the job in small to see where it fails",
    )
