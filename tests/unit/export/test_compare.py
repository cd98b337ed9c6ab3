"""The probe's rules, as tables."""

from __future__ import annotations

import pytest
import torch

from orchestrator.export.compare import Difference, comparable, exact_difference, rounded_difference

NAN, INF = float("nan"), float("inf")


def logits(scale: float = 1.0) -> torch.Tensor:
    """[2 prompts, 3 positions, 5 tokens]; every position leads by 0.5 with token (p + t) % 5."""
    want = torch.arange(30.0).reshape(2, 3, 5).remainder(0.1)
    for p in range(2):
        for t in range(3):
            want[p, t, (p + t) % 5] = want[p, t].max() + 0.5
    return want * scale


def changed(by: float, at: tuple[int, int, int] = (1, 2, 4), scale: float = 1.0) -> torch.Tensor:
    got = logits(scale)
    got[at] += by
    return got


@pytest.mark.parametrize(
    ("got", "scale", "agrees"),
    [
        (changed(0.0), 1.0, True),
        (changed(0.9e-4), 1.0, True),
        (changed(1.5e-4), 1.0, False),
        (changed(-1.5e-4), 1.0, False),
        (changed(1.5e-4, scale=10.0), 10.0, True),  # relative to the largest logit, which is above 1 here
        (changed(9e-4, scale=10.0), 10.0, False),
        (changed(NAN), 1.0, False),
        (changed(INF), 1.0, False),
        (changed(-INF), 1.0, False),
    ],
)
def test_fp32_against_fp32(got: torch.Tensor, scale: float, agrees: bool) -> None:
    difference = exact_difference(got, logits(scale))
    assert (difference is None) == agrees
    if difference is not None:
        assert (difference.prompt, difference.position) == (1, 2)


def test_the_message_has_the_size_and_the_limit() -> None:
    difference = exact_difference(changed(0.25, at=(0, 1, 3)), logits())
    assert difference == Difference(0, 1, "a logit differs by 0.25, allowed is 0.0001")


@pytest.mark.parametrize("rule", [exact_difference, rounded_difference])
def test_nan_on_the_recorded_side_fails_too(rule: type[exact_difference]) -> None:
    assert rule(logits(), changed(NAN)) is not None
    assert rule(changed(NAN), changed(NAN)) is not None


@pytest.mark.parametrize("rule", [exact_difference, rounded_difference])
def test_another_shape_is_named(rule: type[exact_difference]) -> None:
    difference = rule(logits()[:, :2], logits())
    assert difference is not None
    assert difference.detail == "logits of shape [2, 2, 5], recorded are [2, 3, 5]"


@pytest.mark.parametrize(
    ("at", "by", "detail"),
    [
        ((1, 2, 3), -0.1, None),  # the leader still leads
        ((1, 2, 3), -0.6, "the likeliest one differs, where it leads by 0.5"),
        ((0, 0, 1), 0.01, None),
        ((0, 0, 1), 0.4, "log-probabilities differ by 0.0"),  # no flip, and yet too much in the mean
        ((0, 0, 1), NAN, "the likeliest one differs"),
    ],
)
def test_another_type_against_fp32(at: tuple[int, int, int], by: float, detail: str | None) -> None:
    difference = rounded_difference(changed(by, at), logits())
    if detail is None:
        assert difference is None
    else:
        assert difference is not None
        assert difference.detail.startswith(detail)
        assert (difference.prompt, difference.position) == at[:2]


def test_a_flip_without_a_clear_leader_is_rounding() -> None:
    want = torch.zeros(1, 1, 4)
    want[..., 0] = 0.01
    got = torch.zeros(1, 1, 4)
    got[..., 1] = 0.01
    assert rounded_difference(got, want) is None


@pytest.mark.parametrize(("largest", "agrees"), [(1.0, False), (16.0, False), (64.0, True)])
def test_both_limits_grow_with_large_logits(largest: float, agrees: bool) -> None:
    want = torch.zeros(1, 2, 4)
    want[0, 0, 0] = largest
    want[0, 1, 1] = 0.3  # leads by more than 0.2, and by less than 0.2 x 64 / 16
    got = want.clone()
    got[0, 1, 1] = -0.01
    got[0, 1, 2] = 0.01
    assert (rounded_difference(got, want) is None) == agrees


def test_bf16_of_the_same_logits_agrees() -> None:
    want = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0)) * 3
    assert rounded_difference(want.bfloat16(), want) is None


def test_logits_of_any_rank_are_compared() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    assert exact_difference(rows + 5e-5, rows) is None
    assert exact_difference(rows + torch.tensor([[0.0, 0.0], [0.0, 0.5]]), rows) == Difference(
        1, None, "a logit differs by 0.5, allowed is 0.0003"
    )
    ends = torch.zeros(2, 3, 4, 5)
    found = exact_difference(
        ends.index_put((torch.tensor(1), torch.tensor(2), torch.tensor(3)), torch.tensor(1.0)), ends
    )
    assert found is not None
    assert (found.prompt, found.position) == (1, 3)


def test_the_message_of_one_prediction_a_prompt_has_no_position() -> None:
    assert Difference(1, None, "off").told("'a text'") == "prompt 'a text': off"
    assert Difference(1, 3, "off").told("'a text'") == "prompt 'a text', position 3: off"


@pytest.mark.parametrize(("by", "agrees"), [(0.05, True), (0.5, False)])
def test_a_mean_of_few_predictions_has_more_room(by: float, agrees: bool) -> None:
    want = torch.tensor([[2.0, -2.0], [-1.5, 1.5]])
    assert (rounded_difference(want + torch.tensor([0.0, by]), want) is None) == agrees
    assert rounded_difference((want + torch.tensor([0.0, by]))[:, None], want[:, None]) is not None


def test_an_answers_ends_are_chosen_among_the_positions() -> None:
    want = torch.zeros(1, 4, 2)
    want[0, 1, 0] = want[0, 2, 1] = 5.0
    got = want.clone()
    got[0, 1, 0], got[0, 3, 0] = 0.0, 5.0  # the beginning moves, and is still above the end at every position
    found = rounded_difference(comparable(got, "question-answering"), comparable(want, "question-answering"))
    assert found is not None
    assert found.detail == "the likeliest one differs, where it leads by 5"
    assert comparable(want, "lm") is want
