"""Both decoders read paged sequences as one forward pass of the network does. Shapes: as in `model.paged`."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from model.config import ModelConfig
from model.decode_native import NativeDecoder
from model.decode_torch import TorchDecoder
from model.gpt import GPT
from model.native.build import build, compiler
from model.paged import PAGE_TOKENS, PagedCache, Pass

CONTEXT = 72
LLAMA = ModelConfig(vocab_size=67, layers=2, width=48, heads=6, kv_heads=2, hidden=80, context=CONTEXT)
GPT2 = replace(LLAMA, kv_heads=6, family="gpt2", positions="learned")
FORMS = {
    "llama": LLAMA,
    "untied": replace(LLAMA, tie_embeddings=False, rope_theta=500.0),
    "wide heads": replace(LLAMA, width=160, heads=2, kv_heads=1, hidden=37),
    "narrow heads": replace(LLAMA, width=40, heads=10, kv_heads=5),
    "gpt2": GPT2,
    "sinusoids": replace(GPT2, positions="sinusoidal", width=36, heads=4, kv_heads=4, hidden=50),
}
KINDS = ["torch", pytest.param("native", marks=pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler"))]
MODELS = {}


def model_of(form, dtype=torch.float32):
    if (form, dtype) not in MODELS:
        model = GPT(FORMS[form])
        generator = torch.Generator().manual_seed(7)
        for parameter in model.parameters():
            parameter.data.copy_(torch.normal(0.0, 0.2, parameter.shape, generator=generator))
            if parameter.dim() == 1:
                parameter.data += 0.5
        MODELS[form, dtype] = model.eval().to(dtype)
    return MODELS[form, dtype]


def decoder_of(kind, model, *, threads=1, int8=False):
    if kind == "torch":
        return TorchDecoder(model)
    return NativeDecoder(build(), model, threads=threads, most_tokens=256, int8=int8)


def cache_of(model, slots=3, fill=0.0):
    """Pages in an order of no meaning; what was in them before is `fill`."""
    weights = model.embed.weight
    longest = -(-CONTEXT // PAGE_TOKENS)
    cache = PagedCache.empty(model.config, pages=slots * longest, slots=slots, dtype=weights.dtype, device="cpu")
    order = torch.randperm(slots * longest, generator=torch.Generator().manual_seed(3)).tolist()
    for slot in range(slots):
        cache.assign(slot, order[slot * longest : (slot + 1) * longest])
    cache.keys_LAGKS.fill_(fill)
    cache.values_LAGSW.fill_(fill)
    return cache


IDS_RT = torch.randint(67, (3, CONTEXT), generator=torch.Generator().manual_seed(0))


def read(decoder, cache, cuts):
    """Logits of all three sequences, [R, T, V], read in passes: `cuts` are how many tokens of each a pass has."""
    at, rows = [0, 0, 0], [[], [], []]
    for wanted in cuts:
        counts = [min(count, CONTEXT - begin) for count, begin in zip(wanted, at, strict=True)]
        ids, positions, slots = [], [], []
        for slot, count in enumerate(counts):
            ids += IDS_RT[slot, at[slot] : at[slot] + count].tolist()
            positions += range(at[slot], at[slot] + count)
            slots += [slot] * count
        if not ids:
            continue
        logits_NV = decoder.logits(decoder.hidden(Pass.of(ids, positions, slots), cache))
        for slot, part in enumerate(logits_NV.split(counts)):
            rows[slot].append(part)
        at = [begin + count for begin, count in zip(at, counts, strict=True)]
    return [torch.cat(parts) if parts else None for parts in rows]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(list(FORMS)),
    st.lists(st.tuples(*(st.sampled_from([0, 1, 1, 1, 2, 5, 17, 40]) for _ in range(3))), min_size=1, max_size=12),
)
@torch.inference_mode()
def test_however_tokens_are_cut_into_passes_logits_are_those_of_one_forward(kind, form, cuts):
    model = model_of(form)
    # What stands beyond a sequence may be anything to the compiled one; zero or finite to torch's.
    found = read(decoder_of(kind, model), cache_of(model, fill=float("nan") if kind == "native" else 3.0), cuts)
    want_RTV = model(IDS_RT)
    for got_TV, want_TV in zip(found, want_RTV, strict=True):
        if got_TV is not None:
            assert_close(got_TV, want_TV[: len(got_TV)], atol=2e-4, rtol=1e-4)


needs_compiler = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
WHOLE = [(CONTEXT, CONTEXT, CONTEXT)]


@needs_compiler
@pytest.mark.parametrize("int8", [False, True])
@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(["llama", "gpt2"]),
    st.lists(st.tuples(*(st.sampled_from([0, 1, 1, 2, 13, 30]) for _ in range(3))), min_size=1, max_size=12),
    st.integers(1, 3),
)
@torch.inference_mode()
def test_to_the_bit_nothing_depends_on_the_rest_of_the_pass_nor_on_threads(int8, form, cuts, threads):
    model = model_of(form, torch.bfloat16)
    want = read(decoder_of("native", model, int8=int8), cache_of(model), WHOLE)
    found = read(decoder_of("native", model, int8=int8, threads=threads), cache_of(model), cuts)
    for got_TV, want_TV in zip(found, want, strict=True):
        assert got_TV is None or torch.equal(got_TV, want_TV[: len(got_TV)])


@needs_compiler
@pytest.mark.parametrize("form", ["llama", "gpt2"])
@torch.inference_mode()
def test_bf16_is_as_near_to_fp32_as_torchs(form):
    exact_RTV = model_of(form)(IDS_RT)
    rounded = model_of(form, torch.bfloat16)
    ours_RTV = torch.stack(read(decoder_of("native", rounded), cache_of(rounded), WHOLE))
    apart, torchs = ((x.float() - exact_RTV).square().mean().sqrt() for x in (ours_RTV, rounded(IDS_RT)))
    assert float(apart) <= 1.1 * float(torchs)


@needs_compiler
@torch.inference_mode()
def test_8_bits_are_near_to_bf16():
    model = model_of("llama", torch.bfloat16)
    plain, small = (
        torch.stack(read(decoder_of("native", model, int8=int8), cache_of(model), WHOLE)) for int8 in (False, True)
    )
    assert 0 < float((plain - small).square().mean().sqrt()) < 0.05 * float(plain.std())


@pytest.mark.parametrize("kind", KINDS)
def test_the_likeliest_is_the_first_of_the_largest_that_are_allowed(kind):
    decoder = decoder_of(kind, model_of("llama"))
    logits_NV = torch.randn(5, 67).clamp(max=1.5)
    logits_NV[0, 60] = 9.0
    ids_N, values_N = decoder.best(logits_NV, 41)
    assert ids_N.tolist() == [int(row[:41].argmax()) for row in logits_NV]
    assert values_N.tolist() == logits_NV[:, :41].amax(-1).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [0, 15, 33, 40])
def test_what_is_no_number_is_told(kind, strange, at):
    logits_NV = torch.zeros(3, 67)
    logits_NV[1, at] = strange
    assert decoder_of(kind, model_of("llama")).best(logits_NV, 41)[1].isfinite().tolist() == [True, False, True]


@needs_compiler
def test_more_tokens_than_it_was_made_for_are_refused():
    model = model_of("llama")
    with pytest.raises(ValueError, match="257 tokens in a pass of at most 256"):
        decoder_of("native", model).hidden(Pass.of([1] * 257, [0] * 257, [0] * 257), cache_of(model))


@needs_compiler
def test_a_cache_of_another_type_is_refused():
    cache = cache_of(model_of("llama", torch.bfloat16))
    with pytest.raises(ValueError, match=r"a cache of torch\.bfloat16 for a decoder of torch\.float32"):
        decoder_of("native", model_of("llama")).hidden(Pass.of([1], [0], [0]), cache)
