"""Networks of the user's own, trained on plain columns by name.

The class is made with `model.settings` as keyword arguments. Its `forward(columns)` gets a dictionary of tensors by
column ([B] or [B, size], int64 or float) and returns one with `predictions` (rows first), and with `loss`, the mean
over the rows, where the columns that it is told from are among them.

B rows.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.data.load.loader import Seen
from orchestrator.data.load.order import Indices, SampleOrder
from orchestrator.errors import JobError
from orchestrator.job_model import Model
from orchestrator.objectives.protocol import Batch, Scorer, Tensors
from orchestrator.objectives.rows import RowTable
from orchestrator.objectives.scores.arithmetic import Series
from orchestrator.objectives.scores.result import Scores

LOSS = "loss"
PREDICTIONS = "predictions"


def make_module(model: Model, *, seed: int) -> nn.Module:
    """The network that `model.class` names, with weights drawn from `seed`.

    Modules are found where Python finds them, and in the folder in which the command was started.

    Raises:
        JobError: it cannot be imported or made, or is no `torch.nn.Module`.
    """
    spelled = str(model.class_)
    module_name, _, class_name = spelled.partition(":")
    try:
        made_of = getattr(_imported(module_name), class_name)
    except Exception as error:
        raise JobError(
            f"model.class {spelled} cannot be imported: {type(error).__name__}: {error}",
            fix="name it package.module:Class, where Python finds it: installed, or below the working folder",
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            made = made_of(**model.settings)
        except Exception as error:
            raise JobError(
                f"model.class {spelled} cannot be made with model.settings {model.settings}: {error}",
                fix="give the keyword arguments that its __init__ takes",
            ) from error
    if not isinstance(made, nn.Module):
        raise JobError(f"model.class {spelled} is no torch.nn.Module, but {type(made).__name__}", fix="derive it so")
    return made


def _imported(name: str) -> Any:
    here = str(Path.cwd())
    if here in sys.path:
        return importlib.import_module(name)
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)


class Custom:
    """`Objective` of a user's own module: the loss is what it says."""

    parts: tuple[str, ...] = (LOSS,)

    def __init__(self, spelled: str) -> None:
        self._spelled = spelled

    def losses(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """As Objective."""
        loss = self._called(model, tensors).get(LOSS)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise JobError(
                f"model.class {self._spelled} returned no loss: {type(loss).__name__}",
                fix="let forward(columns) return {'loss': mean over the rows, 'predictions': ...} in training",
            )
        return {LOSS: loss.float().reshape(()) * len(next(iter(tensors.values())))}

    def outputs(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """As Objective: `logits` are the module's predictions."""
        found = self._called(model, tensors).get(PREDICTIONS)
        if not isinstance(found, Tensor):
            raise JobError(
                f"model.class {self._spelled} returned no predictions: {type(found).__name__}",
                fix="let forward(columns) return {'predictions': ...} at all times",
            )
        return {"logits": found}

    def inputs(self, tensors: Tensors) -> Tensors:
        """As Objective: the module picks what it reads."""
        return dict(tensors)

    def scorer(self) -> Scorer:
        """As Objective."""
        return LossScorer()

    def _called(self, model: nn.Module, tensors: Tensors) -> dict[str, Any]:
        wide = next((p.dtype for p in model.parameters()), torch.float32)
        found = model({name: t.to(wide) if t.is_floating_point() else t for name, t in tensors.items()})
        if not isinstance(found, dict):
            raise JobError(
                f"model.class {self._spelled} returned {type(found).__name__}, not a dictionary",
                fix="let forward(columns) return {'loss': ..., 'predictions': ...}",
            )
        return found


class LossScorer:
    """`Scorer` of a mean loss a row, and no more."""

    needs_outputs = False

    def __init__(self) -> None:
        self._sum, self._rows = Series(), 0

    def add(self, batch: Batch, losses: Mapping[str, float], outputs: Tensors) -> None:
        """As Scorer."""
        self._sum.add(losses[LOSS])
        self._rows += batch.counts[LOSS]

    def state(self) -> Any:
        """As Scorer."""
        return self._sum.values(), self._rows

    def result(self, states: Sequence[Any]) -> Scores:
        """As Scorer."""
        total, rows = Series(), 0
        for values, count in states:
            total.add(values)
            rows += count
        return Scores({"loss": total.sum() / max(1, rows)})


class ColumnRows:
    """Rows of a table as tensors by column."""

    def __init__(self, table: RowTable, columns: Sequence[str]) -> None:
        self._table, self._columns = table, columns

    def __len__(self) -> int:
        return len(self._table)

    @property
    def bytes_read(self) -> int:
        """As Feed."""
        return self._table.bytes_read

    def collate(self, numbers: Indices) -> Batch:
        """Rows by number; without any the first one, which counts nothing."""
        count = len(numbers)
        used = numbers.tolist() if count else [0]
        tensors = {
            name: torch.from_numpy(np.stack([np.asarray(self._table.row(name, n)) for n in used]))
            for name in self._columns
        }
        return Batch(tensors, {LOSS: count}, count)


class ColumnFeed:
    """`Feed` of columns: each row once an epoch.

    Raises:
        JobError: there are no rows.
    """

    def __init__(self, rows: ColumnRows, *, samples_per_step: int, seed: int) -> None:
        if not len(rows):
            raise JobError("the training split has no rows", fix="lower data.split.validation and test, or add rows")
        self.samples_per_step = samples_per_step
        self._rows = rows
        self._order = SampleOrder(len(rows), seed)

    def read(self, step: int, first: int, last: int) -> Batch:
        """As Feed."""
        before = (step - 1) * self.samples_per_step
        return self._rows.collate(self._order.at(np.arange(before + first, before + last)))

    def totals(self, step: int) -> Mapping[str, int]:
        """As Feed."""
        return {LOSS: self.samples_per_step}

    @property
    def bytes_read(self) -> int:
        """As Feed."""
        return self._rows.bytes_read

    def seen(self, step: int) -> dict[str, Seen]:
        """As Feed: columns are not mixed."""
        return {}


class ColumnExamples:
    """`Examples` of columns, in order."""

    def __init__(self, rows: ColumnRows) -> None:
        self._rows = rows
        self.count = len(rows)

    def read(self, first: int, last: int) -> Batch:
        """As Examples."""
        return self._rows.collate(np.arange(first, last))
