"""The peak of a step: how it moves with what decides it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.plan.activations import activations, chunk_rows, logits
from orchestrator.plan.memory import memory_of
from orchestrator.plan.network import Case

MakeCase = Callable[..., Case]

sizes = st.sampled_from(["tiny", "gpt2-124m", "gpt2-1b3", "llama-7b", "bert-base"])
precisions = st.sampled_from(["fp32", "bf16"])
stages = st.integers(0, 3)


def drawn(case: MakeCase, size: str, **settings: object) -> Case:
    """A case; an encoder's objective is its own."""
    return case(size, objective="masked-lm" if size == "bert-base" else "causal-lm", **settings)


@given(size=sizes, precision=precisions, stage=stages, micro_batch=st.integers(1, 64), accumulation=st.integers(1, 3))
def test_the_peak_is_between_what_stands_at_once_and_the_sum(
    case: MakeCase, size: str, precision: str, stage: int, micro_batch: int, accumulation: int
) -> None:
    found = drawn(
        case, size, precision=precision, stage=stage, micro_batch=micro_batch, accumulation=accumulation, gpus=0
    )
    m = memory_of(found)
    assert m.peak >= m.weights + m.optimizer + max(m.gradients, m.activations + m.logits)


@given(
    size=sizes, stage=stages, accumulation=st.integers(1, 3), gpus=st.integers(0, 1), micro_batch=st.integers(1, 256)
)
def test_a_larger_micro_batch_never_takes_less(
    case: MakeCase, size: str, stage: int, accumulation: int, gpus: int, micro_batch: int
) -> None:
    small = drawn(case, size, stage=stage, accumulation=accumulation, gpus=gpus, micro_batch=micro_batch)
    large = replace(small, micro_batch=micro_batch + 1)
    less, more = memory_of(small), memory_of(large)
    assert all(getattr(less, name) <= getattr(more, name) for name in type(less).model_fields)
    assert less.activations < more.activations


@given(size=sizes, precision=precisions, stage=stages, workers=st.integers(1, 512), accumulation=st.integers(1, 3))
def test_more_workers_never_need_more_each(
    case: MakeCase, size: str, precision: str, stage: int, workers: int, accumulation: int
) -> None:
    few = drawn(case, size, precision=precision, stage=stage, workers=workers, accumulation=accumulation)
    assert memory_of(replace(few, workers=workers + 1)).peak <= memory_of(few).peak


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", ["gpt2-1b3", "llama-7b"])
def test_a_higher_stage_needs_less_where_models_are_large(
    case: MakeCase, size: str, precision: str, accumulation: int
) -> None:
    """Small ones are another matter: buffers, and under stage 3 what is gathered, are as large as what is saved."""
    peaks = [
        memory_of(case(size, precision=precision, stage=s, accumulation=accumulation, workers=16)).peak
        for s in range(4)
    ]
    assert peaks == sorted(peaks, reverse=True)


def test_checkpointing_keeps_the_input_of_each_layer_and_one_layer(case: MakeCase) -> None:
    plain = case("llama-7b", micro_batch=2)
    kept = case("llama-7b", micro_batch=2, activation_checkpointing=True)
    inputs = 2 * 2048 * 32 * 4096 * 2
    assert inputs < activations(kept) < inputs + activations(plain) / 16
    assert memory_of(kept).peak < memory_of(plain).peak


@pytest.mark.parametrize(
    ("gpus", "vocab_size", "rows"), [(0, 4096, 512), (0, 50257, 128), (1, 50257, 1335), (1, 2**20, 128)]
)
def test_logits_stand_for_a_chunk_of_rows(case: MakeCase, gpus: int, vocab_size: int, rows: int) -> None:
    found = case("gpt2-124m", model_vocab_size=vocab_size, gpus=gpus, micro_batch=8)
    assert chunk_rows(found) == rows
    assert logits(found) == rows * vocab_size * (4 + 4 + 2)
    assert logits(replace(found, micro_batch=64)) == logits(found)


def test_fewer_tokens_than_a_chunk_have_fewer_logits(case: MakeCase) -> None:
    assert logits(case("tiny", micro_batch=2)) == 2 * 64 * 512 * 10


def test_a_head_without_a_vocabulary_has_no_logits(case: MakeCase) -> None:
    labelled = case("bert-base", objective="classification", micro_batch=16)
    masked = case("bert-base", objective="masked-lm", micro_batch=16)
    assert logits(labelled) == 0
    assert logits(masked) > 0
    assert memory_of(labelled).peak < memory_of(masked).peak


def test_a_preference_is_two_rows_and_a_frozen_reference(case: MakeCase) -> None:
    plain = case("gpt2-1b3", stage=3, micro_batch=2)
    pairs = case("gpt2-1b3", stage=3, micro_batch=1, objective="preference")
    assert activations(pairs) == activations(plain)
    assert memory_of(pairs).peak - memory_of(plain).peak == 2 * plain.network.parameters
    lora = case("gpt2-1b3", stage=3, micro_batch=1, objective="preference", lora={})
    assert memory_of(lora).peak < memory_of(pairs).peak
