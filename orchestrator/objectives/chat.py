"""Learn the assistant's turns of conversations: supervised fine-tuning of decoders, on packed rows.

Rows are packed into bins of the context, each row once, and none sees another: attention stays in its row, and
positions begin at 0 in each. What counts is the tokens that the rows' `loss_mask` names, as targets.

B bins, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from model.attention import document_mask
from model.loss import IGNORED_TARGET
from orchestrator.data.load.loader import Seen
from orchestrator.data.load.mixture import Mixture, Part, is_mixture
from orchestrator.data.load.order import BlockwiseOrder, SampleOrder
from orchestrator.data.load.packing import Packing, Positions, layout, pack
from orchestrator.errors import JobError
from orchestrator.job_data import Phase
from orchestrator.objectives.announce import say_once
from orchestrator.objectives.causal_lm import LOSS, CausalLM
from orchestrator.objectives.protocol import Batch, Tensors
from orchestrator.objectives.rows import RowTable

_IDS, _LEARNED = "input_ids", "loss_mask"


class ChatLM(CausalLM):
    """`Objective` of chats: cross entropy of each token of the assistant given those before it in its row."""

    def losses(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """As Objective. Logits are made for what is learned alone."""
        decoder: Any = model
        mask_B1TT = document_mask(tensors["segments"])
        x_BTD = decoder.hidden(tensors["input_ids"], positions_BT=tensors["positions"], mask_B1TT=mask_B1TT)
        targets_BT = tensors["targets"]
        learned_BT = targets_BT != IGNORED_TARGET
        return self._losses(decoder, x_BTD[learned_BT], targets_BT[learned_BT])


class PackedRows:
    """Rows of chats in bins: a bin is T inputs and their T targets, so a row of T + 1 tokens fills one.

    Args:
        groups: parts whose rows may share a bin.
        context: T.
    """

    def __init__(self, groups: Sequence[Sequence[Part]], *, context: int) -> None:
        self._table = RowTable([part for group in groups for part in group])
        tokens = self._table.lengths(_IDS)
        cuts = np.cumsum([len(group) for group in groups])[:-1]
        # A row of one token has no target; as it may not be empty it takes a position of padding.
        inputs = np.split(np.maximum(tokens - 1, 1), self._table.borders[cuts])
        packings = [pack(lengths, context) for lengths in inputs]
        self._packing = _joined(packings, context)
        self.context = context
        self.bins_of_group = [packing.bins for packing in packings]
        self.tokens_of_group = [int(packing.lengths.sum()) for packing in packings]

    @property
    def bins(self) -> int:
        """Samples in an epoch."""
        return self._packing.bins

    @property
    def bytes_read(self) -> int:
        """Bytes of rows read from the shards so far."""
        return self._table.bytes_read

    def say_truncated(self, split: str) -> None:
        """Tell people of rows that the context cuts off."""
        if count := self._packing.truncated:
            say_once(
                f"warning: {count:,} of {len(self._packing.rows):,} chats in {split} are longer than the context of "
                f"{self.context} tokens and lose their end; a larger model.context keeps it"
            )

    def read(self, bins: Positions) -> Batch:
        """Bins by number, at least one: [B]."""
        plan = layout(self._packing, bins)
        ids_BT = np.zeros_like(plan.rows_BT)
        targets_BT = np.full_like(plan.rows_BT, IGNORED_TARGET)
        for line, number in enumerate(bins.tolist()):
            at = 0
            for row in self._packing.rows[self._packing.starts[number] : self._packing.starts[number + 1]].tolist():
                end = at + int(self._packing.lengths[row])
                self._fill(row, ids_BT[line, at:end], targets_BT[line, at:end])
                at = end
        return _batch(ids_BT, targets_BT, positions_BT=plan.positions_BT, segments_BT=plan.segments_BT)

    def _fill(self, row: int, ids: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]) -> None:
        """One row's inputs and targets, into their place in the bin."""
        tokens = self._table.row(_IDS, row)[: len(ids) + 1].astype(np.int64)  # to hold the ignored target
        learned = self._table.row(_LEARNED, row)[: len(ids) + 1]
        ids[: len(tokens)] = tokens[: len(ids)]
        targets[: len(tokens) - 1] = np.where(learned[1:] == 1, tokens[1:], IGNORED_TARGET)


class ChatFeed:
    """`Feed` of packed chats: bins in an order keyed by the seed, each once an epoch, or by the sources' weights.

    Args:
        parts: of the training split. With weights or a curriculum no bin has rows of two parts.
        context: T.
        samples_per_step: bins of a step, over all ranks.
        seed: of the order.
        curriculum: weights by ranges of steps.

    Raises:
        JobError: there are no rows, or a part that has a weight has none.
        DataError: a shard cannot be read.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        context: int,
        samples_per_step: int,
        seed: int,
        curriculum: Sequence[Phase] = (),
    ) -> None:
        mixed = is_mixture(parts, curriculum)
        self._rows = PackedRows([[part] for part in parts] if mixed else [parts], context=context)
        if not self._rows.bins:
            raise JobError("the training split has no chats", fix="add rows to data.sources, or look at rejected.jsonl")
        self._rows.say_truncated("the training split")
        self.samples_per_step = samples_per_step
        self._names = [part.name for part in parts]
        self._mixture: Mixture | None = None
        if mixed:
            counts = self._rows.bins_of_group
            self._mixture = Mixture(parts, counts, curriculum=curriculum, samples_per_step=samples_per_step, seed=seed)
        self._order = BlockwiseOrder(self._mixture or SampleOrder(self._rows.bins, seed))

    def read(self, step: int, first: int, last: int) -> Batch:
        """As Feed."""
        if first == last:
            return no_chats(self._rows.context)
        before = (step - 1) * self.samples_per_step
        return self._rows.read(self._order.between(before + first, before + last))

    def samples(self, step: int) -> Positions:
        """As Feed: bins."""
        return self._order.between((step - 1) * self.samples_per_step, step * self.samples_per_step)

    def totals(self, step: int) -> Mapping[str, int] | None:
        """As Feed: not known, because how much of a bin is learned stands in its rows."""
        return None

    @property
    def bytes_read(self) -> int:
        """As Feed."""
        return self._rows.bytes_read

    def seen(self, step: int) -> dict[str, Seen]:
        """As Feed; tokens are those of an average bin of the part."""
        if self._mixture is None or len(self._names) < 2:
            return {}
        bins = self._mixture.consumed(step * self.samples_per_step)
        epochs = bins / np.maximum(self._rows.bins_of_group, 1)
        tokens = np.rint(epochs * self._rows.tokens_of_group).astype(np.int64)
        pairs = zip(self._names, tokens.tolist(), epochs.tolist(), strict=True)
        return {name: Seen(count, passes) for name, count, passes in pairs}


class ChatExamples:
    """`Examples` of a split: its bins in order."""

    def __init__(self, parts: Sequence[Part], *, context: int, split: str) -> None:
        self._rows = PackedRows([parts], context=context)
        self._rows.say_truncated(f"the split {split}")
        self.count = self._rows.bins

    def read(self, first: int, last: int) -> Batch:
        """As Examples."""
        return no_chats(self._rows.context) if first == last else self._rows.read(np.arange(first, last))


def no_chats(context: int) -> Batch:
    """One bin of padding."""
    empty_BT = np.zeros((1, context), dtype=np.int64)
    targets_BT = np.full_like(empty_BT, IGNORED_TARGET)
    return _batch(empty_BT, targets_BT, positions_BT=empty_BT.copy(), segments_BT=empty_BT.copy())


def _batch(ids_BT: Positions, targets_BT: Positions, *, positions_BT: Positions, segments_BT: Positions) -> Batch:
    arrays = {"input_ids": ids_BT, "targets": targets_BT, "positions": positions_BT, "segments": segments_BT}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Batch(tensors, {LOSS: int((targets_BT != IGNORED_TARGET).sum())}, int((segments_BT > 0).sum()))


def _joined(packings: Sequence[Packing], context: int) -> Packing:
    """Packings of rows that follow each other, as one."""
    rows_before = np.cumsum([0, *(len(packing.rows) for packing in packings)]).tolist()
    empty = np.zeros(0, dtype=np.int64)
    starts = [packing.starts[1:] + before for packing, before in zip(packings, rows_before[:-1], strict=True)]
    rows = [packing.rows + before for packing, before in zip(packings, rows_before[:-1], strict=True)]
    return Packing(
        capacity=context,
        rows=np.concatenate([empty, *rows]),
        starts=np.concatenate([empty, [0], *starts]).astype(np.int64),
        lengths=np.concatenate([empty, *(packing.lengths for packing in packings)]),
        truncated=sum(packing.truncated for packing in packings),
    )
