"""Columns as batches, and a user's own loss over them: its mean counts each row once, however a step is cut up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from custom_fixtures import job, payments
from encoder_fixtures import mean_loss, read_step, table
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from orchestrator.errors import JobError
from orchestrator.objectives.custom import ColumnExamples, ColumnFeed, ColumnRows, Custom, make_module

COLUMNS = ("amounts", "merchants", "hour", "fraud")
OBJECTIVE = Custom("examples.transactions:Fraud")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> ColumnRows:
    columns = {name: tensor.numpy() for name, tensor in payments(10).items()}
    columns["score"] = np.arange(10, dtype=np.float32) / 3
    return ColumnRows(table(tmp_path_factory.mktemp("rows"), [columns]), COLUMNS)


def test_rows_are_tensors_by_column_in_their_types(tmp_path: Path) -> None:
    given_rows = payments(4) | {"score": torch.arange(4) / 3}
    made = ColumnRows(table(tmp_path, [{k: t.numpy() for k, t in given_rows.items()}]), list(given_rows))
    batch = made.collate(np.array([2, 0]))
    found = OBJECTIVE.inputs(batch.tensors)
    assert found.keys() == given_rows.keys()
    for name, tensor in found.items():
        assert tensor.dtype == given_rows[name].dtype
        assert torch.equal(tensor, given_rows[name][[2, 0]])
    assert (batch.counts, batch.tokens) == ({"loss": 2}, 2)


@given(num_ranks=st.integers(1, 4), accumulation=st.integers(1, 4), step=st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_a_steps_loss_is_its_rows_mean_however_it_is_cut(
    rows: ColumnRows, num_ranks: int, accumulation: int, step: int
) -> None:
    network = make_module(job().model, seed=0)
    feed = ColumnFeed(rows, samples_per_step=7, seed=3)
    whole = mean_loss(OBJECTIVE, network, [feed.read(step, 0, 7)])
    cut = mean_loss(OBJECTIVE, network, read_step(feed, step, num_ranks=num_ranks, accumulation=accumulation))
    torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-6)


def test_a_rank_without_rows_adds_nothing_to_the_gradient(rows: ColumnRows) -> None:
    network = make_module(job().model, seed=0)
    OBJECTIVE.losses(network, ColumnExamples(rows).read(3, 3).tensors)["loss"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in network.parameters())


def test_each_row_comes_once_an_epoch(rows: ColumnRows) -> None:
    feed = ColumnFeed(rows, samples_per_step=5, seed=3)
    amounts = torch.cat([feed.read(step, 0, 5).tensors["amounts"] for step in (1, 2)])
    assert {tuple(row) for row in amounts.tolist()} == {tuple(row) for row in payments(10)["amounts"].tolist()}


def test_the_score_is_the_mean_over_rows_of_all_ranks(rows: ColumnRows) -> None:
    examples, scorers = ColumnExamples(rows), [OBJECTIVE.scorer() for _ in range(2)]
    for scorer, (first, last), loss in zip(scorers, ((0, 4), (4, 5)), (2.0, 3.0), strict=True):
        scorer.add(examples.read(first, last), {"loss": loss}, {})
    assert scorers[0].result([scorer.state() for scorer in scorers]).metrics == {"loss": 1.0}


class Answers(nn.Module):
    """Returns what it was made with."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, columns: dict[str, Tensor]) -> object:
        return self.answer(columns) if callable(self.answer) else self.answer


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"predictions": torch.zeros(2)}, "returned no loss, but NoneType"),
        ({"loss": 1.0}, "returned no loss, but float"),
        ({"loss": torch.zeros(2)}, r"returned no loss, but a tensor \[2\]"),
        (torch.zeros(()), "returned Tensor, not a dictionary"),
        (lambda columns: columns["shop"], "asks for the column shop; there are amounts, merchants, hour, fraud"),
    ],
)
def test_what_is_no_loss_is_named(rows: ColumnRows, answer: object, told: str) -> None:
    with pytest.raises(JobError, match=f"model.class examples.transactions:Fraud {told}"):
        OBJECTIVE.losses(Answers(answer), rows.collate(np.arange(2)).tensors)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"loss": torch.zeros(())}, "NoneType"),
        ({"predictions": torch.zeros(3)}, r"torch.float32 \[3\]"),
        ({"predictions": torch.zeros(2, dtype=torch.int64)}, r"torch.int64 \[2\]"),
        ({"predictions": torch.zeros(())}, r"torch.float32 \[\]"),
    ],
)
def test_what_is_no_prediction_is_named(rows: ColumnRows, answer: object, told: str) -> None:
    with pytest.raises(JobError, match=rf"returned no predictions for 2 row\(s\), but {told}"):
        OBJECTIVE.outputs(Answers(answer), rows.collate(np.arange(2)).tensors)


def test_no_rows_is_said(tmp_path: Path) -> None:
    empty = ColumnRows(table(tmp_path, []), COLUMNS)
    with pytest.raises(JobError, match="the training split has no rows"):
        ColumnFeed(empty, samples_per_step=4, seed=0)
