"""What a rank needs to train: model, engine, samples, scores, put together from a job and its dataset."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from model.families import build
from model.recompute import recompute_activations
from orchestrator.attempts import Attempt
from orchestrator.checkpoint.origin import Origin, require_unchanged
from orchestrator.checkpoint.writer import CheckpointWriter, Retention
from orchestrator.data.dataset import Dataset
from orchestrator.data.splits import VALIDATION
from orchestrator.errors import JobError
from orchestrator.export.module import describe
from orchestrator.job import JobSpec
from orchestrator.objectives.custom import make_module
from orchestrator.objectives.preference import FrozenCopy
from orchestrator.objectives.protocol import Feed, Tensors
from orchestrator.objectives.scores.direction import DIRECTIONS
from orchestrator.objectives.scores.result import Scores
from orchestrator.objectives.task import make_examples, make_feed, make_head, make_task
from orchestrator.plan import Plan
from orchestrator.train.engine.make import make_engine
from orchestrator.train.engine.protocol import TrainEngine
from orchestrator.train.evaluate import evaluate
from orchestrator.train.group import TorchGroup
from orchestrator.train.loop import Batching
from orchestrator.train.saving.saver import Saver
from orchestrator.train.weights.initial import begin_at_frequencies, load_initial
from orchestrator.train.weights.lora import adapters_off, add_adapters

_PROBE_SAMPLES = 2
_PROBE_TOKENS = 64
_SEQUENCES = ("input_ids", "token_type_ids", "attention_mask")


@dataclass
class Parts:
    """What a rank needs to train."""

    job: JobSpec
    group: TorchGroup
    engine: TrainEngine
    feed: Feed
    evaluate: Callable[[], Scores] | None
    batching: Batching
    description: dict[str, Any]
    """The model as plain data: its configuration and its head."""
    probe: Tensors
    stage: int

    def saver(self, run: Path, attempt: Attempt) -> Saver:
        """What writes the checkpoints of an attempt. Collective."""
        retention = retention_of(self.job)
        writer = CheckpointWriter(run, group=self.group.apart(), attempt=attempt, retention=retention)
        return Saver(
            writer,
            engine=self.engine,
            group=self.group,
            job=self.job,
            description=self.description,
            probe=self.probe,
            stage=self.stage,
        )


def retention_of(job: JobSpec) -> Retention:
    """Which checkpoints stay."""
    return Retention(job.training.checkpoint.keep_last, job.training.checkpoint.keep_every_steps)


@dataclass(frozen=True)
class Beginning:
    """What a run's folder says of how it is trained, beside its job."""

    plan: Plan
    origin: Origin | None = None
    """The weights it begins with; None: they are drawn."""
    largest_micro_batch: int | None = None
    """Where memory ran out with more."""

    @property
    def micro_batch(self) -> int:
        """Samples in one forward pass of a worker, at most."""
        return min(self.plan.micro_batch, self.largest_micro_batch or self.plan.micro_batch)


def assemble(
    job: JobSpec, dataset: Dataset, group: TorchGroup, leases: contextlib.ExitStack, *, beginning: Beginning
) -> Parts:
    """Data and engine of a rank; shards that had to be fetched stay in the cache as long as `leases` holds."""
    train = job.training
    batching = cut(job, group.num_ranks, most=beginning.micro_batch)
    stage = beginning.plan.zero_stage
    model, description = make_model(job, dataset, beginning.origin)
    reference = None
    if job.objective == "preference":
        reference = adapters_off if train.lora else FrozenCopy(model)
    objective = make_task(job, dataset, reference=reference).objective
    feed = make_feed(job, dataset, leases)
    best = train.evaluate.best
    if best is not None and best not in DIRECTIONS:
        known = ", ".join(sorted(DIRECTIONS))
        raise JobError(f"train.evaluate.best is {best}, which is no metric", fix=f"name one of {known}")
    engine = make_engine(
        model,
        objective,
        train,
        group=group,
        stage=stage,
        micro_batch=batching.micro_batch,
        accumulation=batching.accumulation,
    )
    most = max(1, train.evaluate.max_tokens // job.model.context) if train.evaluate.max_tokens else None
    scores = None
    if (examples := make_examples(job, dataset, VALIDATION, leases, most=most)) is not None:
        scores = functools.partial(
            evaluate, engine, objective, examples, group=group, micro_batch=batching.micro_batch, max_samples=most
        )
    batch = feed.read(1, 0, min(_PROBE_SAMPLES, feed.samples_per_step))
    probe = objective.inputs(batch.tensors)
    if job.model.kind != "custom":
        probe = {name: _cut(name, tensor) for name, tensor in probe.items()}
    return Parts(job, group, engine, feed, scores, batching, description, probe, stage)


def cut(job: JobSpec, num_ranks: int, *, most: int) -> Batching:
    """A step on so many ranks, in forward passes of `most` samples."""
    largest_share = max(1, -(-(job.training.batch_tokens // job.model.context) // num_ranks))
    micro_batch = min(most, largest_share)
    return Batching(micro_batch, -(-largest_share // micro_batch))


def make_model(job: JobSpec, dataset: Dataset, origin: Origin | None) -> tuple[nn.Module, dict[str, Any]]:
    """The network with the weights that it begins with, and its description as plain data.

    Raises:
        JobError: the weights of `origin` are of another network, or the user's module cannot be made.
        StoreError: they cannot be read, or are not what the run began with.
    """
    train = job.training
    if job.model.kind == "custom":
        made = make_module(job.model, seed=train.seed)
        return made, describe(job.model, made)
    config, head = job.model.config(dataset.vocab_size), make_head(job, dataset)
    model = build(config, head).initialise(train.seed)
    if job.objective == "masked-lm" and train.masking.frequency_bias:
        begin_at_frequencies(model, job, dataset)
    if origin is not None:
        require_unchanged(origin)
        load_initial(model, config, head, origin, tokenizer=dataset.tokenizer_path)
    if train.activation_checkpointing:
        recompute_activations(model)
    if train.lora:
        add_adapters(model, train.lora, seed=train.seed)
    return model, {**config.to_dict(), "head": head.to_dict()}


def _cut(name: str, tensor: Tensor) -> Tensor:
    """A few tokens of each row are enough for a probe; columns of other kinds stay whole."""
    return (tensor[:, :_PROBE_TOKENS] if name in _SEQUENCES else tensor).clone()
