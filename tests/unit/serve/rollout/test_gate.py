"""A gate lets through what it says, and nothing that is not known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import JobError
from orchestrator.serve.rollout.gate import parse_gate, refusal

NUMBERS = st.floats(-1e6, 1e6)


@given(NUMBERS, NUMBERS, st.floats(0.0, 10.0))
def test_against_the_current_version(new: float, current: float, by: float) -> None:
    gate = f"validation_loss <= current + {by!r}"
    why = refusal(gate, {"validation_loss": new}, {"validation_loss": current})
    assert (why is None) == (new <= current + by)


@pytest.mark.parametrize(
    ("gate", "new", "current", "met"),
    [
        ("validation_loss < 3.2", {"validation_loss": 3.1}, None, True),
        ("validation_loss < 3.2", {"validation_loss": 3.2}, None, False),
        ("accuracy >= current - 0.02 and loss <= 1e1", {"accuracy": 0.9, "loss": 2.0}, {"accuracy": 0.91}, True),
        ("accuracy >= current - 0.02 and loss <= 1e1", {"accuracy": 0.9, "loss": 20.0}, {"accuracy": 0.91}, False),
        ("perplexity <= current * 1.05", {"perplexity": 10.4}, {"perplexity": 10.0}, True),
        ("perplexity<=current", {"perplexity": 10.4}, {"perplexity": 10.0}, False),
        ("loss <= current + 0.01", {"loss": 99.0}, None, True),  # nothing is served yet
        ("loss <= 9", {"loss": float("nan")}, None, False),
        ("loss <= current", {"loss": float("nan")}, {"loss": float("nan")}, False),
        ("loss <= 9", {}, None, False),
        ("loss <= current", {"loss": 1.0}, {}, False),
    ],
)
def test_gates(gate: str, new: dict[str, float], current: dict[str, float] | None, met: bool) -> None:
    assert (refusal(gate, new, current) is None) == met


def test_a_refusal_says_what_was_found() -> None:
    why = refusal("loss <= current + 0.01", {"loss": 2.5}, {"loss": 2.0})
    assert why == "the gate 'loss <= current + 0.01' is not met: loss is 2.5, the limit 2.01"
    assert refusal(None, {}, {}) is None


@pytest.mark.parametrize("text", ["", "loss", "loss <= ", "loss = 3", "loss <= current ^ 2", "loss <= 1e", "3 < loss"])
def test_what_is_no_gate_is_named(text: str) -> None:
    with pytest.raises(JobError, match=r"serve\.gate"):
        parse_gate(text)
