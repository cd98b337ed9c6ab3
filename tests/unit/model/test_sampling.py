"""Drawing for many rows at once. Shapes: N rows, A ids."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.sampling import Choice, Penalties, draw, penalise

CHOICES = st.builds(
    Choice,
    temperature=st.sampled_from([1e-300, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 400]),
    min_p=st.sampled_from([0.0, 0.1, 1.0]),
)
CHANCES = st.floats(0, 1, exclude_max=True)
WIDE_NA = 2 * torch.randn(12, 700, generator=torch.Generator().manual_seed(0))
FLAT_NA = torch.zeros(1, 700)


def allowed(logits_A, choice):
    """The ids that may be drawn, by the definitions, one after the other."""
    shares = sorted(enumerate(torch.softmax(logits_A.double() / choice.temperature, -1).tolist()), key=lambda x: -x[1])
    shares = shares[: choice.top_k or None]
    total, before, kept = sum(share for _, share in shares), 0.0, set()
    for id, share in shares:
        if before / total < choice.top_p + 1e-6 and share >= (choice.min_p - 1e-6) * shares[0][1]:
            kept.add(id)
        before += share
    return kept


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(CHOICES, CHANCES), min_size=1, max_size=12))
def test_a_row_draws_what_it_would_draw_alone_and_only_what_is_allowed(rows):
    choices, chances = zip(*rows, strict=True)
    drawn = draw(WIDE_NA[: len(rows)], choices, chances)
    for n, (id, choice, chance) in enumerate(zip(drawn, choices, chances, strict=True)):
        assert [id] == draw(WIDE_NA[n : n + 1], [choice], [chance])
        if choice.temperature > 0.1:
            assert id in allowed(WIDE_NA[n], choice)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax_of_logits_over_temperature(temperature):
    logits_A = torch.tensor([0.0, 2.0, 1.0, -1.0, 3.0])
    chances = [(n + 0.5) / 4000 for n in range(4000)]
    drawn = draw(logits_A.expand(4000, 5), [Choice(temperature=temperature)] * 4000, chances)
    shares_A = torch.bincount(torch.tensor(drawn), minlength=5) / 4000
    assert float((shares_A - torch.softmax(logits_A / temperature, -1)).abs().max()) < 1e-3


@pytest.mark.parametrize(
    "choice",
    [Choice(temperature=1.0, top_p=0.9), Choice(temperature=1.0, min_p=1.0), Choice(temperature=1.0, top_k=3)],
)
def test_those_that_are_as_likely_as_the_last_one_may_be_drawn_too(choice):
    assert {draw(FLAT_NA, [choice], [n / 700])[0] for n in range(700)} == set(range(700))


@pytest.mark.parametrize("chance", [0.0, 0.3, math.nextafter(1.0, 0.0)])
def test_what_is_impossible_is_never_drawn(chance):
    logits_NA = torch.full((1, 9), -math.inf)
    logits_NA[0, [2, 5]] = 0.0
    assert draw(logits_NA, [Choice(temperature=1.0)], [chance])[0] in (2, 5)
    assert draw(logits_NA, [Choice(temperature=1.0, top_p=0.9)], [chance])[0] in (2, 5)


def test_penalties_are_as_defined():
    logits_A = torch.tensor([2.0, -2.0, 1.0, 1.0, 1.0, 1.0])
    penalties = Penalties(presence=0.5, frequency=0.25, repetition=2.0, bias={4: 3.0, 99: 1.0})
    penalise(logits_A, penalties, read={0, 1, 80}, made=Counter([2, 2]), barred={5, 77})
    assert logits_A.tolist() == [1.0, -4.0, 0.5 - 0.5 - 0.5, 1.0, 4.0, -math.inf]


def test_no_penalties_change_nothing():
    assert Penalties(bias={}).none
    assert not Penalties(bias={1: 0.0}).none


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1 is not"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p 0.0"),
        ({"temperature": 1.0, "top_k": -2}, "top_k -2"),
        ({"temperature": 1.0, "min_p": 1.5}, "min_p 1.5"),
    ],
)
def test_choices_out_of_range_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        Choice(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repetition": 0.0}, "repetition_penalty 0.0"),
        ({"presence": math.inf}, "presence_penalty inf"),
        ({"bias": {7: math.nan}}, "logit_bias of 7 nan"),
    ],
)
def test_penalties_out_of_range_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        Penalties(**{"bias": {}, **settings})
