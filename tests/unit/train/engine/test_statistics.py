"""The gradient noise scale is found where it is known."""

from __future__ import annotations

import pytest
import torch

from orchestrator.objectives.protocol import Batch
from orchestrator.train.engine.statistics import Statistics, share_of


def test_it_finds_the_noise_that_gradients_were_given() -> None:
    rng = torch.Generator().manual_seed(0)
    gradient, samples, part = torch.full((1000,), 0.1, dtype=torch.float64), 32, 8
    deviation = 1.2  # of each number of a sample's gradient
    expected = 1000 * deviation**2 / samples / float(gradient.square().sum())
    statistics = Statistics()
    for _ in range(200):
        rows = gradient + deviation * torch.randn(samples, 1000, generator=rng, dtype=torch.float64)
        squares = [float(rows[:n].mean(0).square().sum()) for n in (part, samples)]
        statistics.add(part=squares[0], inverse_share=samples / part, whole=squares[1])
    found = statistics.noise_scale()
    assert found == pytest.approx(expected, rel=0.1)


def test_gradients_that_agree_have_no_noise() -> None:
    statistics = Statistics()
    statistics.add(part=4.0, inverse_share=8.0, whole=4.0)
    assert statistics.noise_scale() == 0.0


def test_it_is_unknown_before_a_measurement_and_where_noise_hides_the_gradient() -> None:
    statistics = Statistics()
    assert statistics.noise_scale() is None
    statistics.add(part=100.0, inverse_share=2.0, whole=1.0)
    assert statistics.noise_scale() is None


def test_a_share_is_a_mean_over_the_parts_of_the_loss() -> None:
    batch = Batch({}, {"words": 3, "sentences": 1}, 0)
    assert share_of(batch, {"words": 12.0, "sentences": 2.0}) == pytest.approx((0.25 + 0.5) / 2)
    assert share_of(Batch({}, {"loss": 0}, 0), {"loss": 5.0}) == 0.0


def test_each_tenth_step_is_due() -> None:
    statistics = Statistics()
    assert [statistics.due() for _ in range(20)] == ([False] * 9 + [True]) * 2
