"""Sizes as people write them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import JobError
from orchestrator.plan import human_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GB", 80_000_000_000),
        ("80GiB", 80 * 2**30),
        ("141GB", 141_000_000_000),
        ("80 gb", 80_000_000_000),
        ("24G", 24_000_000_000),
        ("24Gi", 24 * 2**30),
        ("1.5TiB", 3 * 2**39),
        ("512MB", 512_000_000),
        ("64kb", 64_000),
        ("4096B", 4096),
        (".5 GB", 500_000_000),
    ],
)
def test_a_size_has_a_number_and_a_unit(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "80", "GB", "80XB", "-80GB", "0GB", "80 GB each", "1e9B", "nan GB", "80iB", "8.GB"]
)
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(JobError, match=re.escape(f"--memory {text!r} is no size")) as caught:
        parse_bytes(text, option="--memory")
    assert "--memory 80GB or 80GiB" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (72_100_000_000, "72.1 GB"), (174_600_000_000, "175 GB")],
)
def test_people_read_three_digits(size: int, text: str) -> None:
    assert human_bytes(size) == text


@given(st.integers(1, 10**15))
def test_what_people_read_is_near_to_what_it_was(size: int) -> None:
    assert parse_bytes(human_bytes(size)) == pytest.approx(size, rel=0.006)
