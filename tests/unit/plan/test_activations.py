"""The formulas of activations, against what autograd saves in the real networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.bert import Bert
from model.config import ModelConfig
from model.gpt import GPT
from model.loss import default_chunk_rows
from orchestrator.plan.activations import activations, chunk_rows
from orchestrator.plan.network import Case

MakeCase = Callable[..., Case]

BATCH = 3
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"model_layers": 3, "model_width": 96, "model_heads": 6, "model_context": 80},
    "grouped": {"model_layers": 2, "model_width": 96, "model_heads": 6, "model_kv_heads": 2, "model_context": 80},
    "wide": {"model_layers": 2, "model_width": 64, "model_heads": 2, "model_hidden": 512, "model_context": 64},
    "gpt2": {"model_family": "gpt2", "model_layers": 3, "model_width": 96, "model_heads": 6, "model_context": 80},
    "bert": {
        **{"model_family": "bert", "model_layers": 3, "model_width": 96, "model_heads": 6, "model_context": 80},
        "objective": "masked-lm",
    },
}


def network_of(config: ModelConfig) -> nn.Module:
    """Up to the head."""
    return GPT(config) if config.is_decoder else Bert(config, pooler=False)


def saved_bytes(model: nn.Module, run: Callable[[], Tensor]) -> int:
    """Of the storages that autograd keeps of a pass, without the weights, and of the result."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    kept[result.untyped_storage().data_ptr()] = result
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_formula_counts_what_autograd_saves(case: MakeCase, shape: str, precision: str, dropout: float) -> None:
    found = case(**SHAPES[shape], model_dropout=dropout, precision=precision, micro_batch=BATCH, gpus=0)
    model = network_of(found.config)
    model.to(torch.bfloat16 if precision == "bf16" else torch.float32).train()
    ids_BT = torch.randint(0, found.config.vocab_size, (BATCH, found.config.context))
    really = saved_bytes(model, lambda: model.hidden(ids_BT))
    assert activations(found) == pytest.approx(really, rel=0.04)


@pytest.mark.parametrize("vocab_size", [300, 4096, 50257, 2**20])
def test_the_chunks_are_those_of_the_loss(case: MakeCase, vocab_size: int) -> None:
    for gpus, device in ((0, "cpu"), (1, "cuda")):
        found = case(model_vocab_size=vocab_size, gpus=gpus)
        assert chunk_rows(found) == default_chunk_rows(device, vocab_size)
