"""Weights, gradients and optimizer state: against sums by hand, and in how they change."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from model.config import LABELLED, HeadConfig
from model.families import build
from orchestrator.job_train import Lora
from orchestrator.plan.network import Case
from orchestrator.plan.states import States, copied_bytes, states
from orchestrator.train.weights.lora import add_adapters

MakeCase = Callable[..., Case]

GPT2, GPT2_1B3, LLAMA = 124_439_808, 1_313_626_112, 6_738_415_616
"""Parameters of GPT-2 (Radford et al. 2019, as Hugging Face counts them), of its form at 1.3 billion, of Llama 2 7B."""

BUCKETS = 2 * 50_000_000 * 2
"""Two reduce buckets in bf16 on a GPU."""


@pytest.mark.parametrize(("size", "parameters"), [("gpt2-124m", GPT2), ("gpt2-1b3", GPT2_1B3), ("llama-7b", LLAMA)])
def test_the_networks_have_the_parameters_of_their_papers(case: MakeCase, size: str, parameters: int) -> None:
    assert case(size).network.parameters == parameters


@pytest.mark.parametrize(("size", "p"), [("gpt2-124m", GPT2), ("gpt2-1b3", GPT2_1B3), ("llama-7b", LLAMA)])
def test_bf16_on_eight_gpus_with_accumulation(case: MakeCase, size: str, p: int) -> None:
    """By hand, from Rajbhandari et al. 2020: 2 + 2 + 12 bytes a parameter, divided by 8 from the stage that shards."""
    eighth = p // 8  # all three are multiples of 8
    gathered = 2 * min(p, 550_000_000)
    found = [states(case(size, stage=stage, accumulation=4)) for stage in range(4)]
    assert [s.weights for s in found] == [2 * p, 2 * p, 2 * p, 2 * eighth]
    assert [s.gathered for s in found] == [0, 0, 0, gathered]
    assert [s.optimizer for s in found] == [12 * p, 12 * eighth, 12 * eighth, 12 * eighth]
    assert [s.standing for s in found] == [6 * p, 2 * p, 2 * eighth, 2 * eighth + BUCKETS]
    assert [s.reduced for s in found] == [
        6 * p,  # bf16, and the fp32 sum over micro-batches
        2 * p + 2 * eighth + BUCKETS,
        4 * eighth + BUCKETS,
        2 * eighth + 2 * BUCKETS,
    ]
    assert found[2].stepping == (2 + 2 + 4) * eighth


def test_seven_billion_parameters_in_plain_numbers(case: MakeCase) -> None:
    """What people know: 108 GB of weights and state for one GPU without ZeRO, 13.5 GB of them on each of eight."""
    whole, cut = (states(case("llama-7b", stage=stage)) for stage in (0, 3))
    assert round((whole.weights + whole.optimizer) / 1e9) == 94  # and 13.5 GB of bf16 gradients
    assert (cut.weights + cut.optimizer) / 1e9 == pytest.approx(11.8, abs=0.1)


@pytest.mark.parametrize(
    ("precision", "stage", "expected"),
    [
        ("fp32", 0, (4, 8, 4)),
        ("fp32", 1, (4, 12 / 4, 0)),  # DeepSpeed copies weights that are fp32 already
        ("bf16", 0, (2, 12, 6)),
        ("bf16", 1, (2, 12 / 4, 0)),
        ("bf16", 2, (2, 12 / 4, 0)),
        ("bf16", 3, (2 / 4, 12 / 4, 2 / 4)),
    ],
)
def test_bytes_a_parameter_on_four_cpu_workers(
    case: MakeCase, precision: str, stage: int, expected: tuple[float, ...]
) -> None:
    found = case("gpt2-1b3", precision=precision, stage=stage, workers=4, gpus=0)
    p, s = found.network.parameters, states(found)
    bucket = found.compute_bytes * 50_000_000 if stage == 3 else 0
    assert (s.weights / p, s.optimizer / p, (s.standing - bucket) / p) == pytest.approx(expected)


@pytest.mark.parametrize(("name", "moments"), [("adamw", 2), ("sgd", 1), ("adagrad", 1), ("lion", 1)])
def test_an_optimizer_keeps_its_moments(case: MakeCase, name: str, moments: int) -> None:
    found = case("gpt2-124m", optimizer={"name": name}, precision="fp32")
    assert states(found).optimizer == 4 * moments * GPT2


def test_muon_keeps_one_moment_of_the_matrices_and_adamw_two_of_the_rest(case: MakeCase) -> None:
    found = case("gpt2-124m", optimizer={"name": "muon"}, precision="fp32")
    matrices = 12 * (4 + 8) * 768 * 768
    assert states(found).optimizer == 4 * (matrices + 2 * (GPT2 - matrices))


def test_lora_trains_its_adapters_alone(case: MakeCase) -> None:
    plain, lora = case("llama-7b", stage=2), case("llama-7b", stage=2, lora={"rank": 16, "targets": ["q", "v"]})
    adapters = 32 * 2 * 16 * (4096 + 4096)
    assert lora.network.trained == adapters
    assert states(lora).weights == 2 * (LLAMA + adapters)
    assert states(lora).optimizer == 12 * adapters // 8
    assert states(lora).optimizer < states(plain).optimizer / 500
    every = case("llama-7b", lora={"rank": 1}).network.trained
    assert every == 32 * (4 * (4096 + 4096) + 3 * (4096 + 11008))


@pytest.mark.parametrize("objective", ["masked-lm", "classification", "token-classification", "question-answering"])
def test_lora_of_an_encoder_trains_what_the_engine_trains(case: MakeCase, objective: str) -> None:
    sizes = {"model_layers": 2, "model_width": 32, "model_heads": 2, "model_hidden": 64, "model_vocab_size": 99}
    planned = case("bert-base", objective=objective, lora={"rank": 4}, **sizes).network
    labels = ("a", "b") if planned.head in LABELLED else ()
    model = add_adapters(build(planned.config, HeadConfig(planned.head, labels)), Lora(rank=4), seed=0)
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (planned.trained, planned.parameters) == (learning, sum(p.numel() for p in model.parameters()))


def test_an_average_of_the_weights_is_a_copy_in_fp32(case: MakeCase) -> None:
    without, having = (states(case("gpt2-124m", ema=ema)).optimizer for ema in (None, 0.999))
    assert having - without == 4 * GPT2


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_average_is_cut_up_with_the_weights_that_it_is_of(case: MakeCase, stage: int) -> None:
    without, having = (case("gpt2-124m", stage=stage, ema=ema) for ema in (None, 0.999))
    part = 4 * -(-having.network.trained // having.workers)
    assert states(having).optimizer - states(without).optimizer == part
    assert copied_bytes(having) - copied_bytes(without) == part


def test_offload_moves_state_to_the_host(case: MakeCase) -> None:
    kept = states(case("llama-7b", stage=3))
    to_cpu = {"stage": 3, "offload": {"optimizer": "cpu", "parameters": "cpu"}}
    moved = states(case("llama-7b", stage=3, zero=to_cpu))
    eighth = LLAMA // 8
    assert (moved.weights, moved.optimizer) == (0, 0)
    assert moved.host == (12 + 4 + 2) * eighth + kept.weights
    assert moved.gathered == kept.gathered
    on_nvme = {"stage": 3, "offload": {"optimizer": "nvme", "nvme_path": "/nvme"}}
    disk = states(case("llama-7b", stage=3, zero=on_nvme))
    assert (disk.optimizer, disk.weights) == (0, kept.weights)
    assert states(case("llama-7b", stage=3, gpus=0, zero=to_cpu)).optimizer == kept.optimizer  # a CPU is the host


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("size", ["tiny", "gpt2-1b3"])
def test_more_workers_never_hold_more_each(case: MakeCase, size: str, stage: int, accumulation: int) -> None:
    found = [
        states(case(size, stage=stage, workers=workers, accumulation=accumulation, gpus=0))
        for workers in (1, 2, 3, 8, 64)
    ]
    for fewer, more in pairwise(found):
        for name in States.__dataclass_fields__:
            assert getattr(more, name) <= getattr(fewer, name)
