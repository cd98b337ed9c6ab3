"""The samples of each step: memory-mapped, the same global order at any world size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from orchestrator.data.load.mixture import Mixture, Part, is_mixture
from orchestrator.data.load.order import BlockwiseOrder, Indices, SampleOrder
from orchestrator.data.load.stream import Ids, TokenStream, samples_in
from orchestrator.job_data import Phase
from orchestrator.plan import require_one_sample


class Seen(NamedTuple):
    """How far a part of a mixture is."""

    tokens: int
    """Target tokens."""
    epochs: float
    """The same in passes over the part."""


class TrainLoader:
    """The samples of each step, in the order that seed and weights give. For one thread at a time.

    Args:
        parts: of the training split, in stream order. Without weights and without a curriculum they are one
            stream, and each sample comes once an epoch; else each part is cut into samples of its own.
        context: T.
        samples_per_step: over all ranks.
        seed: of the order.
        curriculum: weights by ranges of steps.

    Raises:
        JobError: the split is shorter than one sample, or a part that has a weight is.
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
        self.context = context
        self._samples_per_step = samples_per_step
        self._stream = TokenStream([path for part in parts for path in part.shard_paths])
        require_one_sample(context, len(self._stream))
        self._names = [part.name for part in parts]
        self._borders = self._stream.starts[np.cumsum([0, *(len(part.shard_paths) for part in parts)])]
        self._mixture: Mixture | None = None
        if is_mixture(parts, curriculum):
            counts = [samples_in(int(tokens), context) for tokens in np.diff(self._borders)]
            self._mixture = Mixture(parts, counts, curriculum=curriculum, samples_per_step=samples_per_step, seed=seed)
            self._first_ids, self._first_tokens = self._mixture.first_ids, self._borders
        else:
            self._first_ids = np.array([0, samples_in(len(self._stream), context)])
            self._first_tokens = self._first_ids * context
        self._seen_step, self._seen_tokens = 0, np.zeros(len(parts), dtype=np.int64)
        self._order = BlockwiseOrder(self._mixture or SampleOrder(self.num_samples, seed))

    @property
    def num_samples(self) -> int:
        """Samples in an epoch; of a mixture, in all its parts."""
        return int(self._first_ids[-1])

    @property
    def bytes_read(self) -> int:
        """Bytes of tokens read from the shards so far."""
        return self._stream.bytes_read

    def read(self, step: int, first: int, last: int) -> Ids:
        """Samples [first, last) of step 1, 2, ...: [B, T + 1]; one integer is all that a resume needs."""
        return self._stream.rows(self._starts(step, first, last), self.context + 1)

    def sample_ids(self, step: int, first: int, last: int) -> Indices:
        """The ids of samples [first, last) of a step; in a mixture the ids of a part follow those of the one before."""
        before = (step - 1) * self._samples_per_step
        return self._order.between(before + first, before + last)

    def source_tokens(self, step: int) -> dict[str, int]:
        """Target tokens that a step takes from each part, over all ranks; nothing is read for it."""
        first_targets = self._starts(step, 0, self._samples_per_step) + 1
        below = np.clip(self._borders[:, None] - first_targets, 0, self.context).sum(axis=1)
        return dict(zip(self._names, np.diff(below).tolist(), strict=True))

    def seen(self, step: int) -> dict[str, Seen]:
        """How far each part is after a step; of a mixture of several parts, else empty.

        Without weights all parts are as far as the whole, which `train/tokens` says. O(1), and quick for the step
        that follows the one that was asked for before.
        """
        if self._mixture is None or len(self._names) < 2:
            return {}
        if step == self._seen_step + 1:
            self._seen_tokens = self._seen_tokens + np.array(list(self.source_tokens(step).values()))
        else:
            self._seen_tokens = self._mixture.consumed(step * self._samples_per_step) * self.context
        self._seen_step = step
        epoch_tokens = np.maximum(np.diff(self._first_ids), 1) * self.context
        epochs = self._seen_tokens / epoch_tokens
        pairs = zip(self._seen_tokens.tolist(), epochs.tolist(), strict=True)
        return {name: Seen(*pair) for name, pair in zip(self._names, pairs, strict=True)}

    def _starts(self, step: int, first: int, last: int) -> Indices:
        ids = self.sample_ids(step, first, last)
        part = np.searchsorted(self._first_ids, ids, side="right") - 1
        starts: Indices = self._first_tokens[part] + (ids - self._first_ids[part]) * self.context
        return starts
