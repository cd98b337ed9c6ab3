"""The objectives of encoders, put together from a job and its dataset: what is learned, from what, scored on what."""

from __future__ import annotations

import contextlib
import functools
import itertools
from pathlib import Path

from tokenizers import Tokenizer

from model.config import HeadConfig
from orchestrator.data.dataset import Dataset
from orchestrator.data.load.loader import TrainLoader
from orchestrator.data.load.masking import Masking
from orchestrator.data.load.mixture import Part
from orchestrator.data.load.stream import TokenStream
from orchestrator.data.shelf import parts_at_hand
from orchestrator.data.splits import TRAIN
from orchestrator.data.tokens.encoder import continuations
from orchestrator.errors import DataError, JobError
from orchestrator.job import JobSpec
from orchestrator.objectives.classification import Classification, ClassificationRows
from orchestrator.objectives.encoder_inputs import LEAST_CONTEXT
from orchestrator.objectives.masked_data import Framing, MaskedExamples, MaskedFeed
from orchestrator.objectives.masked_lm import MaskedLM
from orchestrator.objectives.masked_pairs import PairExamples, PairFeed
from orchestrator.objectives.protocol import Examples, Feed, Objective
from orchestrator.objectives.question_answering import QuestionAnswering, QuestionRows
from orchestrator.objectives.rows import RowExamples, RowFeed, Rows, RowTable
from orchestrator.objectives.special_tokens import facts_of, frame_ids, frame_ids_if_any, mask_id, special_flags
from orchestrator.objectives.token_classification import TokenClassification, TokenClassificationRows
from orchestrator.plan.capacity import require_one_sample

_SCORES_SEED = 0
"""What is hidden in scores does not follow the job's seed: runs of all seeds are measured by the same."""


def encoder_task(job: JobSpec, dataset: Dataset) -> tuple[Objective, HeadConfig]:
    """What the job learns, and the head for it.

    Raises:
        DataError: classes are to be told apart, and the dataset has fewer than two labels.
    """
    smoothing = job.training.label_smoothing
    if job.objective == "masked-lm":
        pairs = job.training.masking.next_sentence
        return MaskedLM(next_sentence=pairs, label_smoothing=smoothing), HeadConfig("pretraining" if pairs else "mlm")
    if job.objective == "question-answering":
        decode = functools.partial(_texts, dataset.tokenizer_path)
        return QuestionAnswering(label_smoothing=smoothing, decode=decode), HeadConfig("question-answering")
    labels = tuple(dataset.manifest["labels"])
    if len(labels) < 2:
        raise DataError(
            f"{job.objective} tells labels apart, but the dataset has {len(labels)}: {', '.join(labels) or 'none'}",
            fix="check data.sources fields and data.labels, and prepare it again",
        )
    if job.objective == "classification":
        return Classification(labels, label_smoothing=smoothing), HeadConfig("classification", labels)
    return TokenClassification(labels, label_smoothing=smoothing), HeadConfig("token-classification", labels)


def _texts(tokenizer: Path, rows: list[list[int]]) -> list[str]:
    texts: list[str] = Tokenizer.from_file(str(tokenizer)).decode_batch(rows, skip_special_tokens=True)
    return texts


def encoder_feed(job: JobSpec, dataset: Dataset, leases: contextlib.ExitStack) -> Feed:
    """The training samples; shards that had to be fetched stay in the cache as long as `leases` holds.

    Raises:
        JobError: the tokenizer lacks a special token, the context is too short, or there is no sample.
    """
    parts = leases.enter_context(parts_at_hand(dataset, TRAIN, job.data))
    samples_per_step = job.training.batch_tokens // job.model.context
    if job.objective == "masked-lm":
        return _masked_feed(job, dataset, parts, samples_per_step)
    rows = _rows(job, dataset, parts, training=True)
    seed, curriculum = job.training.seed, job.data.curriculum
    return RowFeed(rows, samples_per_step=samples_per_step, seed=seed, curriculum=curriculum)


def encoder_examples(
    job: JobSpec, dataset: Dataset, split: str, leases: contextlib.ExitStack, *, most: int | None = None
) -> Examples | None:
    """A split for scores; None for one that is empty or was not asked for.

    Args:
        most: samples that will be read at most. Labelled rows are sorted by length after that, so that those which are
            read are not the short ones; null: all.

    Raises:
        JobError: as `encoder_feed`.
    """
    if not dataset.tokens(split):
        return None
    parts = leases.enter_context(parts_at_hand(dataset, split, job.data))
    examples: Examples
    if job.objective == "masked-lm":
        examples = _masked_examples(job, dataset, parts)
    else:
        examples = RowExamples(_rows(job, dataset, parts, training=False), most=most)
    return examples if examples.count else None


def _rows(job: JobSpec, dataset: Dataset, parts: list[Part], *, training: bool) -> Rows:
    context = _context(job, LEAST_CONTEXT)
    frame = frame_ids(facts_of(dataset), purpose=job.objective)
    table = RowTable(parts)
    if job.objective == "classification":
        return ClassificationRows(table, frame, context=context)
    if job.objective == "token-classification":
        return TokenClassificationRows(table, frame, context=context)
    return QuestionRows(table, frame, context=context, training=training)


def _masked_feed(job: JobSpec, dataset: Dataset, parts: list[Part], samples_per_step: int) -> Feed:
    train, curriculum = job.training, job.data.curriculum
    masking = _masking(job, dataset, train.seed)
    context = _context(job, LEAST_CONTEXT)
    require_one_sample(context, dataset.tokens(TRAIN))
    if train.masking.next_sentence:
        frame = frame_ids(facts_of(dataset), purpose="train.masking.next_sentence")
        return PairFeed(
            parts, frame, masking, context=context, samples_per_step=samples_per_step, curriculum=curriculum
        )
    framing = Framing(context, frame_ids_if_any(facts_of(dataset)))
    loader = TrainLoader(
        parts, context=framing.room, samples_per_step=samples_per_step, seed=train.seed, curriculum=curriculum
    )
    return MaskedFeed(loader, framing, masking, samples_per_step=samples_per_step)


def _masked_examples(job: JobSpec, dataset: Dataset, parts: list[Part]) -> Examples:
    masking = _masking(job, dataset, _SCORES_SEED)
    paths = list(itertools.chain.from_iterable(part.shard_paths for part in parts))
    if job.training.masking.next_sentence:
        frame = frame_ids(facts_of(dataset), purpose="train.masking.next_sentence")
        return PairExamples(paths, frame, masking, context=job.model.context)
    framing = Framing(job.model.context, frame_ids_if_any(facts_of(dataset)))
    return MaskedExamples(TokenStream(paths), framing, masking)


def _masking(job: JobSpec, dataset: Dataset, seed: int) -> Masking:
    facts, asked = facts_of(dataset), job.training.masking
    text = dataset.tokenizer_path.read_text(encoding="utf-8") if asked.whole_words else ""
    return Masking(
        mask_id=mask_id(facts),
        special_V=special_flags(facts),
        seed=seed,
        continues_word_V=continuations(text) if asked.whole_words else None,
        share=asked.share,
    )


def _context(job: JobSpec, least: int) -> int:
    if job.model.context < least:
        raise JobError(
            f"model.context is {job.model.context}: with the special tokens around it no text fits",
            fix=f"set model.context to at least {least}",
        )
    return job.model.context
