"""Loss on a split, over all ranks."""

from __future__ import annotations

import numpy as np

from orchestrator.data.load.order import deal, micro_batches
from orchestrator.data.load.stream import Samples
from orchestrator.train.engine import TrainEngine
from orchestrator.train.group import TorchGroup
from orchestrator.train.objectives import causal_lm


def mean_loss(
    engine: TrainEngine, samples: Samples, *, group: TorchGroup, micro_batch: int, max_tokens: int | None
) -> float | None:
    """Mean loss a token over the first samples of a split, up to `max_tokens`; None for a split without text.

    A split shorter than one sample is evaluated as one short sample. Collective.
    """
    short = samples.short()
    if short is not None:
        return engine.loss(causal_lm(short, target_tokens=short.shape[1] - 1, context=short.shape[1] - 1))
    count = samples.count
    if max_tokens is not None:
        count = min(count, max(1, max_tokens // samples.context))
    if not count:
        return None
    largest_share = -(-count // group.num_ranks)
    total = 0.0
    for first, last in micro_batches(*deal(count, group.rank, group.num_ranks), -(-largest_share // micro_batch)):
        ids = samples.read(np.arange(first, last))
        batch = causal_lm(ids, target_tokens=count * samples.context, context=samples.context)
        total += engine.loss(batch) * batch.weight
    return group.sum(total)[0]
