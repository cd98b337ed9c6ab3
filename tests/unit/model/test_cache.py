"""A cached pass gives the logits of a full pass. Shapes: B rows, T tokens, V vocabulary."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from model.cache import KVCache
from model.config import ModelConfig
from model.gpt import GPT

CONFIG = ModelConfig(vocab_size=67, layers=2, width=48, heads=6, kv_heads=2, hidden=80, context=24)
GPT2 = ModelConfig(vocab_size=67, layers=2, width=48, heads=6, kv_heads=6, hidden=80, context=24, family="gpt2")
MODEL = GPT(CONFIG).initialise(0).eval()
FORMS = {
    "llama": MODEL,
    "gpt2": GPT(GPT2).initialise(0).eval(),
    "sinusoids": GPT(replace(GPT2, positions="sinusoidal")).initialise(0).eval(),
}
IDS_BT = torch.randint(67, (3, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def empty_cache(rows, config=CONFIG):
    return KVCache.empty(config, rows=rows, dtype=torch.float32, device="cpu")


def assert_same(actual, expected):
    assert_close(actual, expected, atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(list(FORMS)), st.sets(st.integers(1, 23)))
def test_any_split_of_the_tokens_gives_the_logits_of_one_pass(form, cuts):
    model = FORMS[form]
    cache = empty_cache(3, model.config)
    bounds = [0, *sorted(cuts), 24]
    parts = [model(IDS_BT[:, a:b], cache) for a, b in pairwise(bounds)]
    assert_same(torch.cat(parts, 1), model(IDS_BT))
    assert cache.lengths_B.tolist() == [24, 24, 24]


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(list(FORMS)), st.lists(st.integers(1, 16), min_size=3, max_size=3))
def test_padded_prompts_of_any_lengths_decode_side_by_side(form, lengths):
    model = FORMS[form]
    cache = empty_cache(3, model.config)
    model(IDS_BT[:, : max(lengths)], cache)
    cache.lengths_B.copy_(torch.tensor(lengths))
    rows = torch.arange(3)
    for _ in range(8):
        positions_B = cache.lengths_B.clone()
        logits_BV = model(IDS_BT[rows, positions_B][:, None], cache)[:, 0]
        assert_same(logits_BV, model(IDS_BT)[rows, positions_B])


def test_a_row_is_given_to_another_request_while_the_others_wait():
    cache = empty_cache(2)
    MODEL(IDS_BT[:2, :9], cache)
    cache.lengths_B[1] = 0
    prefill_1TV = MODEL(IDS_BT[2:, :4], cache.row(1))
    assert_same(prefill_1TV, MODEL(IDS_BT[2:, :4]))
    assert cache.lengths_B.tolist() == [9, 4]
    logits_B1V = MODEL(torch.stack([IDS_BT[0, 9:10], IDS_BT[2, 4:5]]), cache)
    assert_same(logits_B1V[0], MODEL(IDS_BT[:1])[0, 9:10])
    assert_same(logits_B1V[1], MODEL(IDS_BT[2:])[0, 4:5])


def test_tokens_taken_back_are_forgotten():
    cache = empty_cache(3)
    MODEL(IDS_BT.flip(1), cache)
    cache.lengths_B.zero_()
    MODEL(IDS_BT[:, :10], cache)
    assert_same(MODEL(IDS_BT[:, 10:], cache), MODEL(IDS_BT)[:, 10:])


def test_growing_beyond_the_context_is_refused_and_changes_nothing():
    cache = empty_cache(3)
    MODEL(IDS_BT[:, :20], cache)
    with pytest.raises(ValueError, match="20 tokens in the cache and 5 new ones exceed the context of 24"):
        MODEL(IDS_BT[:, :5], cache)
    assert cache.lengths_B.tolist() == [20, 20, 20]


def test_positions_and_masks_of_a_caller_do_not_go_with_a_cache():
    with pytest.raises(ValueError, match="positions and a mask are for passes without a cache"):
        MODEL(IDS_BT[:, :2], empty_cache(3), positions_BT=torch.zeros(3, 2, dtype=torch.int64))
