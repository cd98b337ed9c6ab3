"""Sampling, log-probabilities and generation. Shapes: V vocabulary, T tokens."""

from functools import partial
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from model.config import ModelConfig
from model.generate import generate, prompt_logprobs, sample, token_logprobs
from model.gpt import GPT
from model.huggingface import to_hf_config, to_hf_state
from model.logprob import TokenLogprob

CONFIG = ModelConfig(vocab_size=67, layers=2, width=48, heads=6, kv_heads=2, hidden=80, context=24)
LOGITS_V = torch.tensor([0.0, 2.0, 1.0, -1.0, 3.0])
greedy = partial(sample, temperature=0, top_p=1, generator=None, allowed_size=67)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def draws(count, **changes):
    defaults = {"temperature": 1.0, "top_p": 1.0, "generator": seeded(0), "allowed_size": 5}
    return [sample(LOGITS_V, **{**defaults, **changes}) for _ in range(count)]


def test_temperature_zero_takes_the_likeliest():
    assert draws(3, temperature=0) == [4, 4, 4]


def test_ids_beyond_the_allowed_size_are_never_drawn():
    assert draws(1, temperature=0, allowed_size=4) == [1]
    assert set(draws(300, temperature=100.0, allowed_size=3)) == {0, 1, 2}


def test_a_seed_decides_the_draws():
    assert draws(50, generator=seeded(1)) == draws(50, generator=seeded(1))
    assert draws(50, generator=seeded(1)) != draws(50, generator=seeded(2))


@pytest.mark.parametrize("temperature", [1e-300, 1.5e-180, 1e-45, 1e-38, 1e-6])
@pytest.mark.parametrize("top_p", [0.5, 1.0])
def test_a_temperature_near_zero_takes_the_likeliest(temperature, top_p):
    assert draws(3, temperature=temperature, top_p=top_p) == [4, 4, 4]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax_of_logits_over_temperature(temperature):
    counts_V = torch.bincount(torch.tensor(draws(4000, temperature=temperature)), minlength=5)
    expected_V = torch.softmax(LOGITS_V / temperature, -1)
    assert float((counts_V / 4000 - expected_V).abs().max()) < 0.03


def test_a_tiny_temperature_is_greedy_and_not_nan():
    token = sample(100 * LOGITS_V, temperature=1e-37, top_p=1, generator=seeded(0), allowed_size=5)
    assert token == 4


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.floats(0.01, 1.0), st.integers(0, 99))
def test_top_p_draws_from_the_fewest_tokens_that_reach_it(logits, top_p, seed):
    logits_V = torch.tensor(logits)
    probabilities_V = torch.softmax(logits_V, -1)
    token = sample(logits_V, temperature=1.0, top_p=top_p, generator=seeded(seed), allowed_size=len(logits))
    likelier = float(probabilities_V[probabilities_V > probabilities_V[token]].sum())
    assert likelier <= top_p + 1e-5


def test_a_small_top_p_is_greedy():
    assert set(draws(20, top_p=1e-6)) == {4}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1 is negative"),
        ({"top_p": 0.0}, "top_p 0.0 is not above 0"),
        ({"top_p": 1.1}, "top_p 1.1 is not above 0 and at most 1"),
        ({"allowed_size": 0}, "allowed_size 0 is not between 1 and the vocabulary's 5"),
        ({"allowed_size": 6}, "allowed_size 6 is not between"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting, message):
    with pytest.raises(ValueError, match=message):
        draws(1, **setting)


def test_a_token_has_the_log_of_its_softmax_and_the_likeliest_in_its_place():
    logits_TV = torch.stack([LOGITS_V, -LOGITS_V])
    want_TV = logits_TV.log_softmax(-1)
    first, second = token_logprobs(logits_TV, [1, 1], top=2, allowed_size=5)
    assert (first.token, [token for token, _ in first.top], [token for token, _ in second.top]) == (1, [4, 1], [3, 0])
    assert [first.logprob, *dict(first.top).values()] == pytest.approx(want_TV[0, [1, 4, 1]].tolist(), abs=1e-6)
    assert [second.logprob, *dict(second.top).values()] == pytest.approx(want_TV[1, [1, 3, 0]].tolist(), abs=1e-6)
    assert dict(first.top)[1] == first.logprob  # to the bit: whoever asks whether it was the likeliest compares them


def test_padding_counts_in_the_softmax_and_is_no_alternative():
    (found,) = token_logprobs(LOGITS_V[None], [0], top=5, allowed_size=3)
    assert found.logprob == pytest.approx(float(LOGITS_V.log_softmax(-1)[0]), abs=1e-6)
    assert [token for token, _ in found.top] == [1, 2, 0]
    assert token_logprobs(LOGITS_V[None], [0], top=0, allowed_size=3) == [TokenLogprob(0, found.logprob)]


@torch.inference_mode()
@pytest.mark.parametrize("tokens", [1, 2, 256, 257, 258, 600])
def test_a_prompt_is_scored_in_parts_as_by_one_forward(tokens):
    config = ModelConfig(**{**CONFIG.to_dict(), "context": 600, "tie_embeddings": False})
    model = GPT(config).initialise(0).eval()
    ids_T = torch.randint(0, 67, (tokens,), generator=seeded(tokens)).tolist()
    x_TD = model.hidden(torch.tensor([ids_T]))[0]
    want_TV = model.logits(x_TD).log_softmax(-1)
    rows = []
    model.head.register_forward_hook(lambda module, given, logits_TV: rows.append(len(logits_TV)))
    first, *rest = prompt_logprobs(model, x_TD, ids_T, top=3, allowed_size=67)
    assert first == TokenLogprob(ids_T[0], None)
    assert [each.token for each in rest] == ids_T[1:]
    want = want_TV[range(tokens - 1), ids_T[1:]].tolist()
    assert [each.logprob for each in rest] == pytest.approx(want, abs=1e-5)
    best = want_TV[:-1].topk(3).values.tolist()
    assert [[value for _, value in each.top] for each in rest] == [pytest.approx(row, abs=1e-5) for row in best]
    assert sum(rows) == tokens - 1
    assert max(rows, default=0) <= 256


@pytest.mark.parametrize("tie", [True, False])
def test_greedy_generation_equals_that_of_transformers(tie):
    config = ModelConfig(**{**CONFIG.to_dict(), "tie_embeddings": tie})
    data = to_hf_config(config, bos_token_id=None, eos_token_id=None, dtype="float32")
    theirs = LlamaForCausalLM(LlamaConfig(**data)).eval()
    ours = GPT(config).initialise(0).eval()
    theirs.load_state_dict(to_hf_state(ours.state_dict(), ours.config), strict=not tie)
    prompt_T = [5, 1, 60, 7]
    expected_1T = theirs.generate(torch.tensor([prompt_T]), max_new_tokens=20, do_sample=False)
    assert list(islice(generate(ours, prompt_T, pick=greedy), 20)) == expected_1T[0, 4:].tolist()


def test_generation_ends_when_the_context_is_full():
    model = GPT(CONFIG).initialise(0).eval()
    assert len(list(generate(model, [1] * 20, pick=greedy))) == 5
    assert len(list(generate(model, [1] * 24, pick=greedy))) == 1


@pytest.mark.parametrize(("prompt_T", "message"), [([], "prompt is empty"), ([1] * 25, "exceed the context of 24")])
def test_prompts_that_cannot_be_continued_are_refused(prompt_T, message):
    with pytest.raises(ValueError, match=message):
        next(generate(GPT(CONFIG), prompt_T, pick=greedy))
