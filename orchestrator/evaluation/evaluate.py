"""Score a target on a split, and write down what came of it. One process, no optimizer, fp32."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orchestrator.checkpoint.origin import Origin
from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.data.splits import VALIDATION
from orchestrator.errors import JobError
from orchestrator.evaluation.generated import generated_texts
from orchestrator.evaluation.target import Target, find_target
from orchestrator.job import JobSpec
from orchestrator.job_data import Split
from orchestrator.objectives.preference import FrozenCopy, Reference
from orchestrator.objectives.protocol import Examples, Objective
from orchestrator.objectives.scores.result import Scores
from orchestrator.objectives.task import make_examples, make_task
from orchestrator.runfolder import origin_of, read_run
from orchestrator.store import Store
from orchestrator.track.progress import bar
from orchestrator.train.engine.devices import own_device, to_device, to_host
from orchestrator.train.parts import make_model

EVALUATIONS = "evaluations.jsonl"
_MICRO_BATCH = 8


@dataclass(frozen=True)
class Evaluation:
    """The result; `as_json` is what `--json` prints."""

    target: str
    dataset: str
    split: str
    step: int
    samples: int
    scores: Scores
    generated: list[dict[str, str]] | None
    """Of a decoder: what it writes after the job's prompts."""

    def as_json(self) -> dict[str, Any]:
        """{"target", "dataset", "split", "step", "samples", "metrics", "tables", "generated"}."""
        facts = {key: getattr(self, key) for key in ("target", "dataset", "split", "step", "samples")}
        return {**facts, **self.scores.to_json(), "generated": self.generated}


def evaluate_target(store: Store, asked: str, *, split: str = VALIDATION, job: JobSpec | None = None) -> Evaluation:
    """Score a run or an export on a split of its dataset, or of a job's; a run's is appended to its evaluations.jsonl.

    Raises:
        StoreError, ServeError, JobError, DataError: as `find_target`.
        JobError: the dataset has no such split, it is empty, or the job learns something else than the model says.
    """
    target = find_target(store, asked, job)
    task = make_task(target.job, target.dataset, reference=_reference(target))
    if target.head is not None and task.head != target.head:
        raise JobError(
            f"the job {target.job.name} is for {_told(task.head)}, {target.path} has {_told(target.head)}",
            fix="name a job of the model's own kind and labels",
        )
    _require_split(target.dataset, split)
    model = target.model.to(own_device())
    with contextlib.ExitStack() as leases:
        examples = make_examples(target.job, target.dataset, split, leases)
        if examples is None:
            raise JobError(
                f"the split {split} of {target.dataset.path.name} holds no whole sample",
                fix=f"give it a larger share in data.split.{split} and prepare the data again",
            )
        micro_batch = target.job.training.micro_batch or _MICRO_BATCH
        scores = score(model, task.objective, examples, micro_batch=micro_batch)
        count = examples.count
    found = Evaluation(
        target=store.relative(target.path),
        dataset=store.relative(target.dataset.path),
        split=split,
        step=target.step,
        samples=count,
        scores=scores,
        generated=generated_texts(model, target.job, target.dataset),
    )
    if target.run is not None:
        record(target.run, found)
    return found


@torch.no_grad()
def score(model: nn.Module, objective: Objective, examples: Examples, *, micro_batch: int) -> Scores:
    """Scores of all examples, `micro_batch` at a time, in the precision of the model's weights."""
    device = next(model.parameters()).device
    scorer = objective.scorer()
    with bar("evaluate", examples.count, unit="samples") as update:
        for first in range(0, examples.count, micro_batch):
            last = min(first + micro_batch, examples.count)
            batch = examples.read(first, last)
            tensors = to_device(batch.tensors, device)
            losses = {part: float(value) for part, value in objective.losses(model, tensors).items()}
            outputs = to_host(objective.outputs(model, tensors)) if scorer.needs_outputs else {}
            scorer.add(batch, losses, outputs)
            update(last, "")
    return scorer.result([scorer.state()])


def record(run: Path, evaluation: Evaluation) -> None:
    """Append to the run's evaluations.jsonl. One write call of one line: those of several processes do not mix."""
    line = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), **evaluation.as_json()}
    with (run / EVALUATIONS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _reference(target: Target) -> Reference | None:
    """What preferences are told against: the weights that the target's run began with."""
    if target.job.objective != "preference" or target.run is None:
        return None
    job, dataset = read_run(target.run)
    plain = job.model_copy(update={"train": job.training.model_copy(update={"lora": None})})
    began = origin_of(target.run)
    model, _ = make_model(plain, open_dataset(dataset, verify=False), Origin(*began) if began else None)
    return FrozenCopy(model)


def _require_split(dataset: Dataset, split: str) -> None:
    splits = dataset.manifest["splits"]
    there = [name for name, found in splits.items() if found["documents"]]
    if split not in there:
        what = "is empty" if split in splits else "does not exist"
        wanted = f"data.split.{split}" if split in Split.model_fields else None
        raise JobError(
            f"the split {split!r} of {dataset.path.name} {what}; there are {', '.join(there) or 'none'}",
            fix="name one of these with --split" + (f", or set {wanted} in the job and run it again" if wanted else ""),
        )


def _told(head: Any) -> str:
    labels = f" ({', '.join(head.labels)})" if head.labels else ""
    return f"the head {head.kind}{labels}"
