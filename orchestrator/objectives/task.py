"""What a job learns, from which samples: the one place where an objective is chosen."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from model.config import HeadConfig
from orchestrator.data.dataset import Dataset
from orchestrator.data.load.loader import TrainLoader
from orchestrator.data.load.mixture import Part
from orchestrator.data.load.stream import Samples, TokenStream
from orchestrator.data.shelf import parts_at_hand
from orchestrator.data.splits import TRAIN
from orchestrator.errors import JobError
from orchestrator.job import JobSpec
from orchestrator.objectives.causal_lm import CausalLM, TokenExamples, TokenFeed
from orchestrator.objectives.chat import ChatExamples, ChatFeed, ChatLM
from orchestrator.objectives.custom import ColumnExamples, ColumnFeed, ColumnRows, Custom
from orchestrator.objectives.encoders import encoder_examples, encoder_feed, encoder_task
from orchestrator.objectives.language import token_bytes
from orchestrator.objectives.pairs import PreferenceRows
from orchestrator.objectives.preference import DirectPreference, Reference
from orchestrator.objectives.protocol import Examples, Feed, Objective
from orchestrator.objectives.rows import RowExamples, RowFeed, RowTable

_LM = HeadConfig("lm")


@dataclass(frozen=True)
class Task:
    """An objective, and the head that the model needs for it."""

    objective: Objective
    head: HeadConfig


def make_head(job: JobSpec, dataset: Dataset) -> HeadConfig:
    """What the network of a job ends in; of kinds gpt and bert."""
    return encoder_task(job, dataset)[1] if job.model.kind == "bert" else _LM


def make_task(job: JobSpec, dataset: Dataset, *, reference: Reference | None = None) -> Task:
    """What a job learns from a dataset.

    Args:
        reference: preference: the model as it was at first.

    Raises:
        JobError: preference without a reference.
    """
    smoothing = job.training.label_smoothing
    if job.model.kind == "bert":
        return Task(*encoder_task(job, dataset))
    if job.objective == "custom":
        return Task(Custom(str(job.model.class_)), _LM)
    if job.objective == "preference":
        if reference is None:
            raise JobError(
                f"{job.name} learns preferences, which are told against the weights that it began with",
                fix="look at eval/ in metrics.jsonl: training scores the validation split",
            )
        return Task(DirectPreference(beta=job.training.preference.beta, reference=reference), _LM)
    known = token_bytes(dataset.tokenizer_path, dataset.vocab_size)
    makes = ChatLM if job.objective == "chat" else CausalLM
    return Task(makes(label_smoothing=smoothing, token_bytes=known), _LM)


def make_feed(job: JobSpec, dataset: Dataset, leases: contextlib.ExitStack) -> Feed:
    """The training samples; shards that had to be fetched stay in the cache as long as `leases` holds.

    Raises:
        JobError: there is not one sample, or the tokenizer or the context does not suit the objective.
    """
    if job.model.kind == "bert":
        return encoder_feed(job, dataset, leases)
    parts = leases.enter_context(parts_at_hand(dataset, TRAIN, job.data))
    context, seed, curriculum = job.model.context, job.training.seed, job.data.curriculum
    samples_per_step = job.training.batch_tokens // context
    if job.objective == "custom":
        return ColumnFeed(_columns(job, parts), samples_per_step=samples_per_step, seed=seed)
    if job.objective == "chat":
        return ChatFeed(parts, context=context, samples_per_step=samples_per_step, seed=seed, curriculum=curriculum)
    if job.objective == "preference":
        rows = PreferenceRows(parts, context=context, split=TRAIN)
        return RowFeed(rows, samples_per_step=samples_per_step, seed=seed, curriculum=curriculum)
    loader = TrainLoader(parts, context=context, samples_per_step=samples_per_step, seed=seed, curriculum=curriculum)
    return TokenFeed(loader, samples_per_step=samples_per_step)


def make_examples(
    job: JobSpec, dataset: Dataset, split: str, leases: contextlib.ExitStack, *, most: int | None = None
) -> Examples | None:
    """A split for scores; None for one that is empty or was not asked for.

    Args:
        most: samples that will be read at most; None: all.
    """
    if not dataset.shard_rows(split):
        return None
    if job.model.kind == "bert":
        return encoder_examples(job, dataset, split, leases, most=most)
    parts = leases.enter_context(parts_at_hand(dataset, split, job.data))
    examples = _examples(job, parts, split, most)
    return examples if examples.count else None


def _examples(job: JobSpec, parts: list[Part], split: str, most: int | None) -> Examples:
    context = job.model.context
    if job.objective == "custom":
        return ColumnExamples(_columns(job, parts))
    if job.objective == "chat":
        return ChatExamples(parts, context=context, split=split)
    if job.objective == "preference":
        return RowExamples(PreferenceRows(parts, context=context, split=split), most=most)
    return TokenExamples(Samples(TokenStream([path for part in parts for path in part.shard_paths]), context))


def _columns(job: JobSpec, parts: list[Part]) -> ColumnRows:
    return ColumnRows(RowTable(parts), list(job.data.columns))
