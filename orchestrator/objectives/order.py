"""Which samples each rank reads in which step: what `slipway data order` says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from orchestrator.data.dataset import Dataset
from orchestrator.data.load.order import deal
from orchestrator.job import JobSpec
from orchestrator.objectives.protocol import Feed
from orchestrator.objectives.task import make_feed


def order(job: JobSpec, dataset: Dataset, *, first: int, last: int, workers: int) -> Iterator[dict[str, Any]]:
    """The numbers of the samples that each rank reads in steps [first, last), counted from 0.

    A sample is what the objective's feed counts: a stretch of the token stream, a row, or a bin of packed chats.

    Raises:
        JobError: there is not one sample, or the tokenizer or the context does not suit the objective.
    """
    with contextlib.ExitStack() as leases:
        feed = make_feed(job, dataset, leases)
        for step in range(first, last):
            yield {"step": step, "ranks": dealt(feed, step + 1, workers)}


def dealt(feed: Feed, step: int, workers: int) -> list[list[int]]:
    """By rank, the numbers of the samples that it reads in step 1, 2, ..."""
    numbers, whole = feed.samples(step), feed.samples_per_step
    # Of the short batch that ends an epoch of rows every rank has its proportion, as `RowFeed.read` deals it.
    cuts = [[place * len(numbers) // whole for place in deal(whole, rank, workers)] for rank in range(workers)]
    return [numbers[first:last].tolist() for first, last in cuts]
