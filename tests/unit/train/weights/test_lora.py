"""Adapters begin as nothing, learn alone, and what leaves is the plain model with them merged in."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from engine_fixtures import keep, whole
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from model.config import HeadConfig, ModelConfig
from model.families import build
from model.gpt import GPT
from orchestrator.errors import JobError
from orchestrator.export.compare import exact_difference, rounded_difference
from orchestrator.job_train import Lora, Optimizer, Train, Zero
from orchestrator.objectives.causal_lm import LOSS, CausalLM, next_token_batch
from orchestrator.train.engine.torch_engine import TorchEngine
from orchestrator.train.group import TorchGroup
from orchestrator.train.weights.lora import LoraLinear, adapters_off, add_adapters, merged_weights

LLAMA = ModelConfig(vocab_size=97, layers=2, width=32, heads=4, kv_heads=2, hidden=64, context=16)
GPT2 = ModelConfig(family="gpt2", vocab_size=97, layers=2, width=32, heads=4, kv_heads=4, hidden=64, context=16)
BERT = ModelConfig(family="bert", vocab_size=97, layers=2, width=32, heads=4, kv_heads=4, hidden=64, context=16)
IDS_BT = torch.randint(0, 97, (3, 12), generator=torch.Generator().manual_seed(0))
ALL = Lora(rank=3, alpha=12.0)


def plain(config: ModelConfig) -> GPT:
    return GPT(config).initialise(0)


def adapted(config: ModelConfig, lora: Lora = ALL) -> nn.Module:
    return add_adapters(plain(config), lora, seed=1)


def trained(model: nn.Module) -> nn.Module:
    """The adapters some steps later."""
    with torch.no_grad():
        for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return model


def learning(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=lambda config: config.family)
def test_it_begins_where_the_model_was(config: ModelConfig) -> None:
    torch.testing.assert_close(adapted(config)(IDS_BT), plain(config)(IDS_BT), rtol=0, atol=0)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=lambda config: config.family)
def test_merged_weights_compute_what_the_adapters_do(config: ModelConfig) -> None:
    model = trained(adapted(config)).eval()
    merged = merged_weights(model, model.state_dict())
    other = plain(config).eval()
    assert merged.keys() == other.state_dict().keys()
    before = other(IDS_BT)
    other.load_state_dict(merged)
    torch.testing.assert_close(other(IDS_BT), model(IDS_BT), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(other(IDS_BT), before, atol=1e-2)


def test_a_layer_is_the_papers() -> None:
    generator = torch.Generator().manual_seed(0)
    base = nn.Linear(6, 4)
    layer = LoraLinear(base, Lora(rank=2, alpha=10.0), generator)
    assert float(layer.down_RI.detach().abs().max()) <= 1 / math.sqrt(6)
    assert float(layer.down_RI.detach().std()) > 0.1
    assert not layer.up_OR.any()
    trained(layer)
    x = torch.randn(5, 6, generator=generator)
    wanted = torch.stack([base.weight @ row + base.bias + 10.0 / 2 * layer.up_OR @ (layer.down_RI @ row) for row in x])
    torch.testing.assert_close(layer(x), wanted)


def test_a_model_without_adapters_has_its_own_weights() -> None:
    state = plain(LLAMA).state_dict()
    merged = merged_weights(plain(LLAMA), state)
    assert merged.keys() == state.keys()
    assert all(merged[name] is state[name] for name in state)


def test_only_adapters_learn() -> None:
    model = adapted(GPT2, Lora(rank=2, targets=["q", "v"]))
    layers = [f"blocks.{i}.attention.{name}" for i in range(2) for name in ("q", "v")]
    assert learning(model) == [f"{layer}.{leaf}" for layer in layers for leaf in ("down_RI", "up_OR")]
    model(IDS_BT).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("config", "names"),
    [(LLAMA, {"q", "k", "v", "out", "gate", "up", "down"}), (GPT2, {"q", "k", "v", "out", "up", "down"})],
)
def test_without_targets_all_linear_layers_of_the_blocks_learn(config: ModelConfig, names: set[str]) -> None:
    owners = {name.rpartition(".")[0] for name in learning(adapted(config))}
    assert owners == {
        f"blocks.{i}.{'attention' if n in ('q', 'k', 'v', 'out') else 'mlp'}.{n}" for i in (0, 1) for n in names
    }


def test_an_untied_projection_is_no_layer_of_a_block() -> None:
    untied = ModelConfig(**{**LLAMA.to_dict(), "tie_embeddings": False})
    assert not any(name.startswith(("head", "embed", "norm")) for name in learning(adapted(untied)))


def test_the_head_of_an_encoder_learns_beside_the_adapters() -> None:
    head = HeadConfig("classification", ("good", "bad"))
    model = add_adapters(build(BERT, head).initialise(0), Lora(rank=2, targets=["q"]), seed=0)
    of_head = ["backbone.pooler.weight", "backbone.pooler.bias", "classify.weight", "classify.bias"]
    assert [name for name in learning(model) if ".attention.q." not in name] == of_head
    trained(model).eval()
    other = build(BERT, head).initialise(0).eval()
    other.load_state_dict(merged_weights(model, model.state_dict()))
    torch.testing.assert_close(other(IDS_BT)["logits"], model(IDS_BT)["logits"], rtol=1e-5, atol=1e-5)


def test_a_layer_that_does_not_exist_is_named() -> None:
    with pytest.raises(JobError, match=r"targets names q_proj, w1; .* are down, gate, k, out, q, up, v"):
        adapted(LLAMA, Lora(targets=["q", "q_proj", "w1"]))


def test_switched_off_it_is_the_model_it_was_and_comes_back() -> None:
    model = trained(adapted(LLAMA, Lora(rank=2, dropout=0.5)))
    model.train()
    with adapters_off(model) as before:
        torch.testing.assert_close(before(IDS_BT), plain(LLAMA)(IDS_BT), rtol=0, atol=0)
    assert model.training
    assert not torch.equal(model(IDS_BT), model(IDS_BT))  # dropout is on again
    with pytest.raises(KeyError), adapters_off(model.eval()):
        raise KeyError
    assert not torch.allclose(model(IDS_BT), plain(LLAMA)(IDS_BT), atol=1e-2)


@given(rank=st.integers(1, 8), alpha=st.floats(0.5, 64.0), seed=st.integers(0, 3))
def test_the_same_seed_draws_the_same_adapters(rank: int, alpha: float, seed: int) -> None:
    first, second = (add_adapters(plain(LLAMA), Lora(rank=rank, alpha=alpha), seed=seed) for _ in range(2))
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert sum(p.numel() for p in first.parameters() if p.requires_grad) == 2 * rank * (
        2 * 32 + 2 * (32 + 16) + 3 * 96 + 64
    )


def settings(precision: str) -> Train:
    optimizer = Optimizer(learning_rate=0.02)
    return Train(steps=8, batch_tokens=48, lora=ALL, optimizer=optimizer, precision=precision, zero=Zero(stage=0))  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_plain_engine_trains_adapters_and_nothing_else(alone: TorchGroup, tmp_path: Path, precision: str) -> None:
    engine = TorchEngine(adapted(LLAMA), CausalLM(), settings(precision), group=alone)
    ids = torch.randint(0, 97, (4, 13), generator=torch.Generator().manual_seed(2)).numpy()
    batch = next_token_batch(ids)
    losses = [engine.step([batch], totals={LOSS: 48.0}, learning_rate=0.02).losses[LOSS] / 48.0 for _ in range(8)]
    assert losses[-1] < losses[0] - 0.1
    keep(engine, tmp_path)
    merged = whole(engine, tmp_path)
    assert merged.keys() == plain(LLAMA).state_dict().keys()
    untouched = {name for name, value in plain(LLAMA).state_dict().items() if torch.equal(merged[name], value)}
    assert untouched == {name for name in merged if ".attention." not in name and ".mlp." not in name}

    exported = plain(LLAMA).eval()
    exported.load_state_dict(merged)
    logits: Tensor = engine.outputs({"input_ids": IDS_BT})["logits"]
    rule = exact_difference if precision == "fp32" else rounded_difference  # what an export must keep to
    assert rule(logits, exported(IDS_BT).detach()) is None

    again = TorchEngine(adapted(LLAMA), CausalLM(), settings(precision), group=alone)
    again.load(tmp_path)
    assert torch.equal(again.outputs({"input_ids": IDS_BT})["logits"], logits)
