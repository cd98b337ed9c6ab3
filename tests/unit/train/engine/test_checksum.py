"""One number for many weights: any bit changes it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.train.engine.checksum import checksum_of


@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8]),
    st.integers(1, 40),
    st.integers(0, 2**30),
)
def test_any_flipped_bit_changes_it(dtype: torch.dtype, numbers: int, seed: int) -> None:
    values = (torch.randn(numbers, generator=torch.Generator().manual_seed(seed)) * 50).to(dtype)
    before = checksum_of([torch.ones(3), values])
    assert checksum_of([torch.ones(3), values.clone()]) == before
    raw = values.view(torch.uint8)
    raw[seed % len(raw)] ^= 1 << seed % 8
    assert checksum_of([torch.ones(3), values]) != before


def test_views_and_what_is_empty_count_as_they_are() -> None:
    whole = torch.arange(20.0)
    assert checksum_of([whole[1:8]]) == checksum_of([whole[1:8].clone()])
    assert checksum_of([whole.view(4, 5).t()]) == checksum_of([whole.view(4, 5).t().contiguous()])
    assert checksum_of([]) == checksum_of([torch.zeros(0)]) == 0


@pytest.mark.parametrize("shape", [(), (1,), (3, 3)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    assert checksum_of([torch.full(shape, 2.0)]) != checksum_of([torch.full(shape, 3.0)])
