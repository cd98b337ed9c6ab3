"""What `slipway data order` says is what each rank reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from encoder_fixtures import FRAME, ids, read_step, table

from orchestrator.objectives.classification import ClassificationRows
from orchestrator.objectives.order import dealt
from orchestrator.objectives.rows import RowFeed

ROWS, BATCH = 22, 8


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_each_rank_reads_what_it_is_dealt(tmp_path: Path, workers: int) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 14, ROWS)
    columns = {
        "input_ids": [ids(rng, n) for n in lengths],
        "pair_ids": [np.zeros(0, np.uint16)] * ROWS,
        "label": (np.arange(ROWS) % 3).astype(np.int32),
    }
    feed = RowFeed(ClassificationRows(table(tmp_path, [columns]), FRAME, context=12), samples_per_step=BATCH, seed=0)
    sizes = []
    for step in range(1, 7):  # two epochs: each ends in a batch of 6
        shares = dealt(feed, step, workers)
        assert [list(batch.rows) for batch in read_step(feed, step, num_ranks=workers)] == shares
        sizes.append(sum(map(len, shares)))
    assert sorted(sizes) == [6, 6, 8, 8, 8, 8]
