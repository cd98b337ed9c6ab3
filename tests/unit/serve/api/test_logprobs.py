"""How OpenAI's completions show tokens: as text or as bytes, and where they begin."""

from __future__ import annotations

import pytest
from export_fixtures import TEXTS
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from model.logprob import TokenLogprob
from orchestrator.data.tokens.tokenizer import train_bpe
from orchestrator.serve.api.logprobs import LogprobShaper, TokenTexts
from orchestrator.serve.engine.protocol import Piece

BYTES = Tokenizer.from_str(train_bpe(TEXTS, 257))
"""A tokenizer with hardly a merge: every byte of a character is a token of its own."""


def with_fallback() -> Tokenizer:
    """A vocabulary of characters, as SentencePiece makes them: bytes have a spelling, spaces are letters."""
    spellings = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "\ufffd"]
    tokenizer = Tokenizer(
        models.BPE({spelling: i for i, spelling in enumerate(spellings)}, [("▁", "a")], byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    replaced = decoders.Replace("▁", " ")
    tokenizer.decoder = decoders.Sequence(
        [replaced, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    return tokenizer


def bytes_of(text: str) -> bytes:
    """What a client makes of a token."""
    if not text.startswith("bytes:"):
        return text.encode()
    return text.removeprefix("bytes:").encode().decode("unicode_escape").encode("latin-1")


@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_the_tokens_of_a_text_make_the_text(text: str) -> None:
    texts = TokenTexts(BYTES)
    tokens = [texts[token] for token in BYTES.encode(text, add_special_tokens=False).ids]
    assert b"".join(map(bytes_of, tokens)).decode() == text


@pytest.mark.parametrize("tokenizer", [BYTES, with_fallback()], ids=["byte level", "byte fallback"])
def test_half_a_character_is_shown_as_its_bytes(tokenizer: Tokenizer) -> None:
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode("🚢", add_special_tokens=False).ids
    assert [texts[token] for token in ids[-4:]] == [r"bytes:\xf0", r"bytes:\x9f", r"bytes:\x9a", r"bytes:\xa2"]


def test_a_word_keeps_the_space_before_it() -> None:
    tokenizer = with_fallback()
    newline, word = 1 + 0x0A, 259
    assert (tokenizer.id_to_token(newline), tokenizer.id_to_token(word)) == ("<0x0A>", "▁a")
    assert tokenizer.decode([word]) == "a"  # at the beginning of a text
    assert (TokenTexts(tokenizer)[word], TokenTexts(tokenizer)[newline]) == (" a", "\n")


def test_a_replacement_character_of_the_text_is_no_broken_one() -> None:
    assert TokenTexts(with_fallback())[260] == "\ufffd"
    merged = Tokenizer(models.BPE({"ï": 0, "¿": 1, "½": 2, "ï¿": 3, "ï¿½": 4}, [("ï", "¿"), ("ï¿", "½")]))
    merged.decoder = decoders.ByteLevel()
    assert [TokenTexts(merged)[token] for token in (3, 4)] == [r"bytes:\xef\xbf", "\ufffd"]


def test_ascii_beside_broken_bytes_is_shown_as_it_is() -> None:
    tokenizer = Tokenizer(models.BPE({"Ġâ": 0, "\\â": 1}, []))
    tokenizer.decoder = decoders.ByteLevel()
    assert [TokenTexts(tokenizer)[token] for token in (0, 1)] == [r"bytes: \xe2", r"bytes:\x5c\xe2"]


def test_special_tokens_have_their_name_and_unknown_ids_nothing() -> None:
    texts = TokenTexts(BYTES)
    assert (texts[0], texts[5000]) == ("<|endoftext|>", "")


def test_a_piece_is_shaped_with_offsets_from_the_beginning_of_the_prompt() -> None:
    ids = BYTES.encode("a🚢b", add_special_tokens=False).ids
    (a, *_), b = ids, ids[-1]
    prompt = (TokenLogprob(0, None), *(TokenLogprob(token, -0.5, ((b, -0.25), (a, -2.0))) for token in ids))
    shaper = LogprobShaper(TokenTexts(BYTES), BYTES, prompt_characters=16)
    first = shaper.shape(Piece("a", 1, logprobs=prompt[1:2], prompt_logprobs=prompt))
    assert first.tokens[:3] == ["<|endoftext|>", "a", r"bytes:\xf0"]
    assert first.token_logprobs == [None, *[-0.5] * 7]
    assert first.text_offset == [0, 13, 14, 14, 14, 14, 15, 16]
    assert first.top_logprobs[0] is None
    assert first.top_logprobs[1] == {"b": -0.25, "a": -0.5}
    assert first.top_logprobs[2] == {"b": -0.25, "a": -2.0, r"bytes:\xf0": -0.5}
    second = shaper.shape(Piece("🚢b", 5, "length", logprobs=prompt[2:]))
    assert second.tokens == [r"bytes:\xf0", r"bytes:\x9f", r"bytes:\x9a", r"bytes:\xa2", "b"]
    assert second.text_offset == [17, 17, 17, 17, 18]
