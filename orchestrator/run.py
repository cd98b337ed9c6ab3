"""The story: one job file from text to a served model. Read this first.

Each stage is idempotent: what is in the store already is reused, what was interrupted goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.bounds import require_capacity_ever
from orchestrator.cluster.connect import Session
from orchestrator.cluster.queue import Queue
from orchestrator.cluster.storage_check import StorageCheck
from orchestrator.data.sources.listing import list_sources
from orchestrator.errors import JobError
from orchestrator.identity import run_hash
from orchestrator.job import JobSpec
from orchestrator.job_file import environment
from orchestrator.plan import STAGES, Stage, make_plan, require_capacity
from orchestrator.runfolder import create_run
from orchestrator.status import dataset_identity, given_vocabulary, origin_of_job, prepared_dataset
from orchestrator.store import Store, is_committed
from orchestrator.track.progress import say
from orchestrator.track.state_lines import say_state

if TYPE_CHECKING:
    from orchestrator.data.dataset import Dataset
    from orchestrator.serve.deployment.deploy import Service
    from orchestrator.train.driver.launch import Trained


@dataclass
class Outcome:
    """What a run has come to, as `--json` prints it: paths relative to the store, null for what was not reached."""

    run: str | None = None
    dataset: str | None = None
    checkpoint: str | None = None
    export: str | None = None
    steps: int | None = None
    train_loss: float | None = None
    validation_loss: float | None = None
    tokens_per_s: float | None = None
    resumed_from_step: int | None = None
    samples: list[dict[str, str]] | None = None
    stages: dict[str, str | None] = field(default_factory=lambda: dict.fromkeys(STAGES))


def run(
    job: JobSpec,
    *,
    store: Store,
    session: Session,
    until: Stage,
    while_serving: Callable[[Service, Outcome], None],
) -> Outcome:
    """Take a job through its stages up to `until`; `while_serving` gets the service that has answered, and the outcome.

    Raises:
        SlipwayError: the first stage that cannot go on says why; what was done before stays.
    """
    if until != "prepare":
        refuse_early(job, store, session, until)
    if session.address is not None:
        session.connect()
        StorageCheck(store.root).require(session.machines() or ())
    outcome = Outcome()
    dataset = prepare_stage(job, store, session, outcome)
    if until == "prepare":
        if job.train is not None:
            lay_out_run(job, store, session, dataset)
        return outcome
    trained = train_stage(job, store, session, dataset, outcome)
    if until == "train":
        return outcome
    export = export_stage(job, store, session, dataset, trained, outcome)
    if until == "export":
        return outcome
    serve_stage(job, session, export, outcome, while_serving)
    return outcome


def refuse_early(job: JobSpec, store: Store, session: Session, until: Stage) -> None:
    """What would stop a later stage for sure is said before the first one starts."""
    view, seen = session.view(), session.machines()
    if seen is None:
        require_capacity(job, view)
    else:
        require_capacity_ever(job, seen, Queue().bounds)
    make_plan(job, view, vocab_size=given_vocabulary(job))
    origin_of_job(job, store)
    if job.model.kind == "custom" and session.address is None:  # on a cluster the code may be with the workers alone
        from orchestrator.export.module import make_module

        make_module(job.model, seed=job.training.seed)
    if until == "serve" and session.address is None:
        from orchestrator.serve.host.processes import check_port

        check_port(job.serve.port)
        if job.serve.engine == "vllm":
            from orchestrator.serve.engine.installed import require_vllm

            require_vllm()


def prepare_stage(job: JobSpec, store: Store, session: Session, outcome: Outcome) -> Dataset:
    """Text to Arrow shards."""
    from orchestrator.data.prepare import prepare

    say_state(state="preparing", stage="prepare")
    listing = list_sources(job.data, environment())
    identity = dataset_identity(job, listing, store)
    reused = is_committed(store.dataset(job.name, identity))
    dataset = prepare(job, store, listing=listing, identity=identity, connect=session.connect)
    outcome.dataset = store.relative(dataset.path)
    outcome.stages["prepare"] = "reused" if reused else "done"
    return dataset


def prepare_only(job: JobSpec, *, store: Store, session: Session) -> dict[str, Any]:
    """`slipway prepare`: the first stage alone, and what came of it; the document of its `--json`."""
    from orchestrator.data.dataset import open_dataset
    from orchestrator.data.show import summary

    outcome = run(job, store=store, session=session, until="prepare", while_serving=lambda *_: None)
    dataset = open_dataset(store.root / str(outcome.dataset), verify=False)
    return {"dataset": outcome.dataset, "state": outcome.stages["prepare"], **summary(dataset)}


def sample_order(job: JobSpec, *, store: Store, steps: str, workers: int) -> list[dict[str, Any]]:
    """`slipway data order`: the samples of each rank in some steps.

    Raises:
        JobError: the steps are no range.
        DataError: the dataset is not prepared.
    """
    from orchestrator.data.dataset import open_dataset
    from orchestrator.objectives.order import order

    first, _, last = steps.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise JobError(f"--steps {steps!r} is no range of steps", fix="write FIRST:LAST, such as 0:10")
    dataset = open_dataset(prepared_dataset(job, store), verify=False)
    return list(order(job, dataset, first=int(first), last=int(last), workers=workers))


def lay_out_run(job: JobSpec, store: Store, session: Session, dataset: Dataset) -> None:
    """The folder that training would write, for whoever trains without Ray; one that is there stays as it is."""
    origin = origin_of_job(job, store)
    identity = run_hash(job, dataset.hash, origin=origin.identity if origin else None)
    folder = store.run(job.name, identity)
    if not (folder / "job.yaml").exists():
        plan = make_plan(job, session.view(), vocab_size=dataset.vocab_size)
        began = (origin.folder, origin.identity) if origin else None
        create_run(folder, job=job, plan=plan, dataset=dataset.path, identity=identity, origin=began)
    say(f"to train without Ray:  python -m orchestrator.train.worker --run {folder}")


def train_stage(job: JobSpec, store: Store, session: Session, dataset: Dataset, outcome: Outcome) -> Trained:
    """Shards to the checkpoint of the last step."""
    from orchestrator.track.metric_log import read_metrics
    from orchestrator.track.metrics import typical_tokens_per_s
    from orchestrator.train.driver.launch import RunIdentity, train
    from orchestrator.train.driver.waiting import Cluster

    origin = origin_of_job(job, store)
    identity = RunIdentity(run_hash(job, dataset.hash, origin=origin.identity if origin else None), origin)
    folder = store.run(job.name, identity.hash)
    outcome.run = store.relative(folder)
    say_state(state="training", stage="train", run=outcome.run, steps=job.training.steps)
    cluster = Cluster(session.connect, session.machines)
    if session.address is not None:
        cluster = replace(cluster, queue=Queue(), reach=StorageCheck(store.root).require)
    trained = train(job, folder, dataset=dataset, identity=identity, cluster=cluster)
    progress = trained.checkpoint.progress
    outcome.checkpoint = store.relative(trained.checkpoint.path)
    outcome.steps, outcome.resumed_from_step = progress.step, trained.resumed_from_step
    outcome.train_loss, outcome.validation_loss = progress.train_loss, progress.validation_loss
    outcome.tokens_per_s = typical_tokens_per_s(read_metrics(folder))
    say_state(state="trained", step=progress.step, loss=progress.train_loss, tokens_per_s=outcome.tokens_per_s)
    outcome.stages["train"] = "reused" if trained.reused else "done"
    return trained


def export_stage(
    job: JobSpec, store: Store, session: Session, dataset: Dataset, trained: Trained, outcome: Outcome
) -> Path:
    """A checkpoint to a Hugging Face folder that carries its proof."""
    from orchestrator.export.stage import export_checkpoint

    say_state(state="exporting", stage="export")
    made = export_checkpoint(job, trained.best, dataset=dataset, at_end=session.at_end)
    outcome.export = store.relative(made.path)
    outcome.stages["export"] = "reused" if made.reused else "done"
    return made.path


def serve_stage(
    job: JobSpec,
    session: Session,
    export: Path,
    outcome: Outcome,
    while_serving: Callable[[Service, Outcome], None],
) -> None:
    """An export to a service that has proven it and answered requests of the kind that it is for."""
    from orchestrator.serve.accounts.issuing import own_key
    from orchestrator.serve.deployment.deploy import deploy
    from orchestrator.serve.deployment.showing import show

    say_state(state="serving", stage="serve")
    session.connect()
    service = deploy(export, settings=job.serve, model_name=job.name, port=job.serve.port)
    try:
        most, seed, texts = _sample_tokens(job), job.training.seed, job.serve.probe_prompts
        with own_key(job.serve.accounts, name="slipway run") as key:
            outcome.samples = show(service, texts, api_key=key, max_tokens=most, seed=seed)
        outcome.stages["serve"] = "done"
        while_serving(service, outcome)
    finally:
        if session.address is None:  # on somebody's cluster the service lives on
            service.stop()


def _sample_tokens(job: JobSpec) -> int:
    """Length of the samples: enough to look at, and no more than the service and half of the context allow."""
    return min(64, job.serve.max_tokens or job.model.context, max(1, job.model.context // 2))


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The document of `slipway run --json`."""
    return dict(vars(outcome))
