"""The gradient of a step is the same however its samples are dealt: shares, micro-batches and weights together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.config import ModelConfig
from model.gpt import GPT
from orchestrator.data.load.loader import TrainLoader
from orchestrator.data.load.mixture import Part
from orchestrator.data.load.order import deal, micro_batches
from orchestrator.data.shards import write_shard
from orchestrator.objectives.causal_lm import LOSS, CausalLM, TokenFeed, next_token_batch

CONFIG = ModelConfig(vocab_size=61, layers=2, width=32, heads=4, kv_heads=2, hidden=64, context=8)
Gradient = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for i, size in enumerate((90, 3, 200)):
        write_shard(folder / f"{i}.arrow", [rng.integers(0, 61, size, dtype=np.uint16)])
    return sorted(folder.iterdir())


def step_gradient(loader: TrainLoader, *, samples: int, num_ranks: int, micro_batch: int) -> tuple[float, Gradient]:
    """Loss and gradient of step 2, summed over ranks that each work on their share alone."""
    accumulation = -(-max(1, -(-samples // num_ranks)) // micro_batch)
    loss_sum, sums = 0.0, {}
    feed, objective = TokenFeed(loader, samples_per_step=samples), CausalLM()
    for rank in range(num_ranks):
        model = GPT(CONFIG).initialise(1)
        for first, last in micro_batches(*deal(samples, rank, num_ranks), accumulation):
            batch = feed.read(2, first, last)
            loss = objective.losses(model, batch.tensors)[LOSS] / feed.totals(2)[LOSS]
            loss.backward()
            loss_sum += float(loss.detach())
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            sums[name] = sums.get(name, 0) + parameter.grad
    return loss_sum, sums


@pytest.mark.parametrize("samples", [7, 8, 13])
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_any_number_of_workers_gives_one_workers_gradient(shards: list[Path], samples: int, micro_batch: int) -> None:
    loader = TrainLoader([Part("all", None, shards)], context=8, samples_per_step=samples, seed=0)
    # What it must be: the mean over the step's tokens, in one pass.
    model = GPT(CONFIG).initialise(1)
    ids = torch.from_numpy(loader.read(2, 0, samples))
    plain = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    plain.backward()
    for num_ranks in (1, 2, 3, 7):
        loss, gradient = step_gradient(loader, samples=samples, num_ranks=num_ranks, micro_batch=micro_batch)
        assert loss == pytest.approx(float(plain.detach()), rel=1e-6)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-4, atol=1e-7, msg=f"{num_ranks} {name}")


def test_shares_that_count_alike_would_not_do(shards: list[Path]) -> None:
    # The test above could not fail if uneven shares gave the same loss as means of means.
    loader = TrainLoader([Part("all", None, shards)], context=8, samples_per_step=7, seed=0)
    feed = TokenFeed(loader, samples_per_step=7)
    model = GPT(CONFIG).initialise(1)
    batches = [feed.read(2, *deal(7, rank, 3)) for rank in range(3)]
    sums = [float(CausalLM().losses(model, batch.tensors)[LOSS].detach()) for batch in batches]
    means = [total / batch.counts[LOSS] for total, batch in zip(sums, batches, strict=True)]
    assert sum(means) / 3 != pytest.approx(sum(sums) / 56, rel=1e-6)


def test_views_teach_what_copies_teach_to_the_bit(shards: list[Path]) -> None:
    ids = TrainLoader([Part("all", None, shards)], context=8, samples_per_step=7, seed=0).read(1, 0, 7)
    views = next_token_batch(ids).tensors
    assert np.shares_memory(views["input_ids"].numpy(), ids)
    gradients = []
    for tensors in (views, {name: tensor.contiguous() for name, tensor in views.items()}):
        model = GPT(CONFIG).initialise(1)
        CausalLM().losses(model, tensors)[LOSS].backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
