"""Lion and Adagrad: the papers' arithmetic, number by number."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.train.elementwise import Adagrad, Lion


def test_lion_is_the_papers_algorithm_number_by_number() -> None:
    rng = torch.Generator().manual_seed(3)
    weights = [nn.Parameter(torch.randn(5, 3, generator=rng, dtype=torch.float64)) for _ in range(2)]
    expected = [p.detach().flatten().tolist() for p in weights]
    momenta = [[0.0] * 15, [0.0] * 15]
    rate, (beta1, beta2), decays = 0.02, (0.9, 0.99), (0.3, 0.0)
    groups = [{"params": [p], "weight_decay": d} for p, d in zip(weights, decays, strict=True)]
    optimizer = Lion(groups, lr=rate, betas=(beta1, beta2))
    for _ in range(6):
        for p, w, m, decay in zip(weights, expected, momenta, decays, strict=True):
            p.grad = torch.randn(5, 3, generator=rng, dtype=torch.float64)
            for i, g in enumerate(p.grad.flatten().tolist()):
                direction = math.copysign(1.0, beta1 * m[i] + (1 - beta1) * g)
                w[i] -= rate * (direction + decay * w[i])
                m[i] = beta2 * m[i] + (1 - beta2) * g
        optimizer.step()
    for p, w in zip(weights, expected, strict=True):
        assert p.flatten().tolist() == pytest.approx(w, rel=1e-12)


def test_it_passes_over_what_has_no_gradient() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = Lion([weight], lr=0.1, betas=(0.9, 0.99), weight_decay=1.0)
    optimizer.step()
    assert torch.equal(weight, torch.ones(3))


def test_adagrad_is_the_papers_algorithm_number_by_number() -> None:
    rng = torch.Generator().manual_seed(4)
    weights = [nn.Parameter(torch.randn(5, 3, generator=rng, dtype=torch.float64)) for _ in range(2)]
    expected = [p.detach().flatten().tolist() for p in weights]
    sums = [[0.0] * 15, [0.0] * 15]
    rate, eps, decays = 0.1, 1e-3, (0.3, 0.0)
    groups = [{"params": [p], "weight_decay": d} for p, d in zip(weights, decays, strict=True)]
    optimizer = Adagrad(groups, lr=rate, eps=eps)
    for _ in range(6):
        for p, w, s, decay in zip(weights, expected, sums, decays, strict=True):
            p.grad = torch.randn(5, 3, generator=rng, dtype=torch.float64)
            for i, g in enumerate(p.grad.flatten().tolist()):
                decayed = g + decay * w[i]
                s[i] += decayed**2
                w[i] -= rate * decayed / (math.sqrt(s[i]) + eps)
        optimizer.step()
    for p, w in zip(weights, expected, strict=True):
        assert p.flatten().tolist() == pytest.approx(w, rel=1e-12)


MAKERS = [
    lambda groups: Lion(groups, lr=0.1, betas=(0.9, 0.99)),
    lambda groups: Adagrad(groups, lr=0.1, eps=1e-8),
]


@pytest.mark.parametrize("make", MAKERS)
def test_gradients_stay_as_they_are(make: Any) -> None:
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), 2.0)
    make([{"params": [weight], "weight_decay": 0.5}]).step()
    assert torch.equal(weight.grad, torch.full((3,), 2.0))


@pytest.mark.parametrize("make", MAKERS)
def test_where_memory_runs_out_nothing_is_updated(make: Any) -> None:
    first = nn.Parameter(torch.ones(3))
    first.grad = torch.ones(3)
    # As a view of one number it is there, but nothing of its size can be made.
    vast = nn.Parameter(torch.ones(1).expand(1 << 58))
    vast.grad = vast.detach()
    optimizer = make([{"params": [first], "weight_decay": 0.1}, {"params": [vast], "weight_decay": 0.0}])
    optimizer.state[vast][optimizer.state_name] = vast.detach()
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        optimizer.step()
    assert torch.equal(first, torch.ones(3))
    assert not any(torch.count_nonzero(value) for value in optimizer.state[first].values())
