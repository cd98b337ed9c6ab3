"""Names as Kubernetes takes them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.kubernetes.values import dns_name

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)
_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
"""RFC 1035, and no longer than what KubeRay leaves of a label's 63."""


@given(NAMES)
def test_every_name_of_a_job_has_one(name: str) -> None:
    assert _LABEL.fullmatch(dns_name(name))


@given(NAMES, NAMES)
def test_two_names_stay_two(one: str, other: str) -> None:
    assert (dns_name(one) == dns_name(other)) == (one == other)


@pytest.mark.parametrize("name", ["quickstart", "gpt-124m", "a" * 40])
def test_a_name_that_can_stay_does(name: str) -> None:
    assert dns_name(name) == name


@pytest.mark.parametrize("name", ["GPT-124M", "gpt.124m", "4-layers", "a" * 41, "ends-"])
def test_one_that_cannot_says_what_it_was(name: str) -> None:
    cleaned = name.lower().replace(".", "-").strip("-")[:20]
    assert re.fullmatch(rf"job-{cleaned}.*-[0-9a-f]{{8}}", dns_name(name))
