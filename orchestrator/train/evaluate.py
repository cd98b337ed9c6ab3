"""Scores of a split, over all ranks, and what an evaluation in the middle of a training leaves beside its metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.checkpoint.layout import step_folder
from orchestrator.data.load.order import deal, micro_batches
from orchestrator.errors import JobError
from orchestrator.objectives.protocol import Examples, Objective
from orchestrator.objectives.scores.result import Scores, Table
from orchestrator.store import write_json
from orchestrator.train.engine.protocol import TrainEngine
from orchestrator.train.group import TorchGroup

SCORES = "scores"
"""Below a run's folder: the tables of each evaluation while it was trained."""
WRITTEN = "generated"
"""The table of what a decoder writes."""


@dataclass(frozen=True)
class Evaluation:
    """What the loop calls after a step that is due: the scores of the step, with what a decoder writes."""

    scores: Callable[[], Scores]
    written: Callable[[], Table] | None
    """What the model writes after the job's prompts; None of one that writes nothing."""
    tell: Callable[[int, Scores], None]
    """Is told the scores with all their tables, on every rank."""

    def __call__(self, step: int) -> Scores:
        """Collective; the metrics are the same on every rank."""
        found = self.scores()
        if self.written is not None:
            found = replace(found, tables={**found.tables, WRITTEN: self.written()})
        self.tell(step, found)
        return found


def write_scores(run: Path, step: int, scores: Scores) -> Path:
    """scores/step-NNNNNNNN.json in the run, as `Scores.to_json`; a step that is done again replaces its own."""
    path = step_folder(run / SCORES, step).with_suffix(".json")
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"step": step, **scores.to_json()})
    return path


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
