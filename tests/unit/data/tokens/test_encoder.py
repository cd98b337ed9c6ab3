"""What is known beside the ids: sentences, words, offsets, continuations."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.tokens.tokenizer import Encoder, continuations, load, sentence_ends, train_bpe, train_tokenizer
from orchestrator.job_data import Tokenizer as Settings

TEXTS = ["The ship sails. It's late! Is it? Yes.\nThe crew waits in the harbour\n", "漢字。かな！ naïve café\n"] * 10
BPE = train_bpe(TEXTS, 400)
WORDPIECE = train_tokenizer(TEXTS, Settings(train="wordpiece", vocab_size=300, lowercase=True))
PLAIN = json.dumps({**json.loads(BPE), "normalizer": {"type": "NFC"}})  # has no table of words
ENCODERS = {"bpe": Encoder(BPE), "wordpiece": Encoder(WORDPIECE), "library": Encoder(PLAIN)}
by_name = pytest.mark.parametrize("name", list(ENCODERS))


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", " Two!", " Three?"]),
        ('He said "No." Then left.', ['He said "No."', " Then left."]),
        ("Pi is 3.14, see example.org now", ["Pi is 3.14, see example.org now"]),
        ("漢字。かな！ 終", ["漢字。", "かな！", " 終"]),
        ("Heading\n\nText here", ["Heading", "\n\nText here"]),
        ("Well... yes", ["Well...", " yes"]),
        ("a\r\nb", ["a", "\r\nb"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    ends = sentence_ends(text)
    assert [text[a:b] for a, b in zip([0, *ends], ends, strict=False)] == sentences


@given(st.text(max_size=80))
def test_sentences_end_in_order_after_something_visible(text: str) -> None:
    ends = sentence_ends(text)
    assert ends == sorted(set(ends))
    assert all(not text[end - 1].isspace() for end in ends)
    assert (ends[-1] if ends else 0) == len(text.rstrip())


def test_a_long_line_of_dots_takes_no_time() -> None:
    assert sentence_ends("." * 300_000 + "x") == [300_001]


@by_name
def test_sentences_in_tokens(name: str) -> None:
    encoder = ENCODERS[name]
    documents = ["The ship sails. It's late! Is it? Yes.\nThe crew waits", "", "no end", "漢字。かな！ 漢"]
    found = encoder.encode_with_sentences(documents)
    for document, (ids, ends), alone in zip(documents, found, encoder.encode(documents), strict=True):
        assert np.array_equal(ids, alone)
        assert ends.dtype == np.int32
        cuts = [document[a:b] for a, b in zip([0, *sentence_ends(document)], sentence_ends(document), strict=False)]
        firsts = [0, *ends.tolist()]
        decoded = [encoder.decode(ids[a:b]).strip() for a, b in zip(firsts, ends.tolist(), strict=False)]
        assert decoded == [encoder.decode(encoder.ids([cut])[0]).strip() for cut in cuts]


@given(st.lists(st.sampled_from(["One", ".", " ", "\n", "!", '"', "漢", "。", "𝐀", "x.y", "\u0301"]), max_size=12))
def test_sentence_positions_rise_and_the_ids_stay(pieces: list[str]) -> None:
    text = "".join(pieces)
    for encoder in ENCODERS.values():
        ((ids, ends),) = encoder.encode_with_sentences([text])
        assert np.array_equal(ids, encoder.encode([text])[0])
        assert (np.diff(ends) > 0).all()
        assert ends.size == 0 or (ends[0] > 0 and ends[-1] <= len(ids) - 1)


@by_name
def test_words_have_the_ids_of_the_text_they_make(name: str) -> None:
    encoder = ENCODERS[name]
    rows = [["The", "crew's", "ship", "sails", "."], ["Yes"], [], ["@user", "naïve", "漢字", "The"]]
    for row, (ids, starts) in zip(rows, encoder.word_ids(rows), strict=True):
        assert ids.tolist() == encoder.ids([" ".join(row)])[0].tolist()
        assert len(starts) == len(row)
        parts = [encoder.decode(part).replace(" ", "").replace("##", "") for part in np.split(ids, starts[1:]) if row]
        wanted = [encoder.decode(encoder.ids([word])[0]).replace(" ", "").replace("##", "") for word in row]
        assert parts == wanted


def test_a_word_that_the_tokenizer_drops_still_has_a_place() -> None:
    encoder = ENCODERS["wordpiece"]
    ((ids, starts),) = encoder.word_ids([["The", "\u200b", "ship"]])
    assert len(starts) == 3
    assert ids[starts[1]] == encoder.facts.unk_token_id


@pytest.mark.parametrize("name", ["bpe", "wordpiece"])
def test_offsets_give_the_text_of_each_token(name: str) -> None:
    text = "The ship sails. It's late!"
    ((ids, offsets),) = ENCODERS[name].ids_with_offsets([text])
    assert ids.tolist() == ENCODERS[name].ids([text])[0].tolist()
    assert offsets.shape == (len(ids), 2)
    spelled = [ENCODERS[name].decode(i).strip() for i in ids.reshape(-1, 1)]
    assert [text[a:b].strip().lower() for a, b in offsets] == [s.replace("##", "").lower() for s in spelled]


def test_continuations_of_wordpiece_have_the_prefix() -> None:
    goes_on = continuations(WORDPIECE)
    vocabulary = load(WORDPIECE).get_vocab()
    assert all(goes_on[i] == token.startswith("##") for token, i in vocabulary.items())
    assert goes_on.any()


def test_continuations_of_bytes_are_letters_without_a_space() -> None:
    goes_on = continuations(BPE)
    vocabulary = load(BPE).get_vocab()
    known = {"a": True, "7": True, "Ã": True, "Ġ": False, "Ċ": False, "ĉ": False, ".": False, "Ġs": False}
    assert {token: bool(goes_on[vocabulary[token]]) for token in known} == known
    assert not goes_on[ENCODERS["bpe"].facts.eos_token_id]
    ids = ENCODERS["bpe"].ids(["The ship sails."])[0]
    words = np.split(ids, np.flatnonzero(~goes_on[ids[1:]]) + 1)  # the first token begins a word, whatever it is
    assert [ENCODERS["bpe"].decode(word) for word in words] == ["The", " ship", " sails", "."]
