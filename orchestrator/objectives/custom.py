"""Networks of the user's own, trained on plain columns by name: the loss is what the module says.

What a module takes and returns stands in `export/module.py`, which makes and calls it.

B rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.data.load.loader import Seen
from orchestrator.data.load.order import Indices, SampleOrder
from orchestrator.errors import JobError
from orchestrator.export.module import LOSS, call_module, make_module, predictions_of
from orchestrator.objectives.protocol import Batch, Scorer, Tensors
from orchestrator.objectives.rows import RowTable
from orchestrator.objectives.scores.mean_loss import MeanLoss
from orchestrator.objectives.scores.result import Scores

__all__ = ["ColumnExamples", "ColumnFeed", "ColumnRows", "Custom", "LossScorer", "make_module"]

_COUNTED = "rows that count"
"""In a batch's tensors: how many of its rows count. A rank that has run out of rows still calls the module with one."""


class Custom:
    """`Objective` of a user's own module: the loss is what it says."""

    parts: tuple[str, ...] = (LOSS,)

    def __init__(self, spelled: str) -> None:
        self._spelled = spelled

    def losses(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """As Objective.

        Raises:
            JobError: the module returned no loss, or asks for a column that there is not.
        """
        loss = call_module(model, self.inputs(tensors), spelled=self._spelled).get(LOSS)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            what = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise JobError(
                f"model.class {self._spelled} returned no loss, but {what}",
                fix="let forward(columns) return {'loss': mean over the rows, 'predictions': ...} in training",
            )
        return {LOSS: loss.float().reshape(()) * tensors[_COUNTED]}

    def outputs(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """As Objective: `logits` are the module's predictions."""
        return {"logits": predictions_of(model, self.inputs(tensors), spelled=self._spelled)}

    def inputs(self, tensors: Tensors) -> Tensors:
        """As Objective: all columns, since the module picks what it reads."""
        return {name: tensor for name, tensor in tensors.items() if name != _COUNTED}

    def scorer(self) -> Scorer:
        """As Objective."""
        return LossScorer()


class LossScorer:
    """`Scorer` of a mean loss a row, and no more."""

    needs_outputs = False

    def __init__(self) -> None:
        self._loss = MeanLoss()

    def add(self, batch: Batch, losses: Mapping[str, float], outputs: Tensors) -> None:
        """As Scorer."""
        self._loss.add(losses[LOSS], batch.counts[LOSS])

    def state(self) -> Any:
        """As Scorer."""
        return self._loss.state()

    def result(self, states: Sequence[Any]) -> Scores:
        """As Scorer."""
        loss = MeanLoss()
        loss.merge(states)
        return loss.result()


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
        # A single number of a row is a Python float by now, and those are float64.
        tensors = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
        return Batch({**tensors, _COUNTED: torch.tensor(count)}, {LOSS: count}, count)


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

    def samples(self, step: int) -> Indices:
        """As Feed: rows."""
        return self._order.at(np.arange((step - 1) * self.samples_per_step, step * self.samples_per_step))

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
