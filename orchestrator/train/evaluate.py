"""Scores of a split, over all ranks."""

from __future__ import annotations

from orchestrator.data.load.order import deal, micro_batches
from orchestrator.errors import JobError
from orchestrator.objectives.protocol import Examples, Objective
from orchestrator.objectives.scores.result import Scores
from orchestrator.train.engine.protocol import TrainEngine
from orchestrator.train.group import TorchGroup


def evaluate(
    engine: TrainEngine,
    objective: Objective,
    examples: Examples,
    *,
    group: TorchGroup,
    micro_batch: int,
    max_samples: int | None,
) -> Scores:
    """Scores of the first samples of a split, up to `max_samples`. Collective; the same on every rank."""
    count = min(examples.count, max_samples or examples.count)
    scorer = objective.scorer()
    passes = -(-max(1, -(-count // group.num_ranks)) // micro_batch)
    for first, last in micro_batches(*deal(count, group.rank, group.num_ranks), passes):
        batch = examples.read(first, last)
        found = engine.evaluate(batch, outputs=scorer.needs_outputs)
        if last > first:
            scorer.add(batch, found.losses, found.outputs)
    states = group.gather(scorer.state())
    try:
        return scorer.result(states)
    except ValueError as error:
        raise JobError(
            f"the split cannot be scored: {error}",
            fix="raise model.context if it cuts off what is learned, or look at the split: slipway data sample DATASET",
        ) from None
