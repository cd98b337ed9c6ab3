"""Splits: by content, never empty, and every character in exactly one of them."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.data.splits import TEST, TRAIN, VALIDATION, Documents, SplitDecision, asked_for, by_hash, decide
from orchestrator.errors import DataError
from orchestrator.job_data import Split

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=200)
long_texts = st.text(st.characters(codec="utf-8"), min_size=20, max_size=3000)
shares = st.tuples(st.sampled_from([0.0, 0.01, 0.1, 0.4, 0.7]), st.sampled_from([0.0, 0.01, 0.2, 0.29])).map(
    lambda pair: Split(validation=pair[0], test=pair[1])
)


def digest(text: str) -> bytes:
    return sha256(text.encode()).digest()


def decide_on(documents: list[str], split: Split) -> SplitDecision:
    return decide(Documents({digest(text): len(text.encode()) for text in documents}), split)


def dealt(documents: list[str], split: Split) -> dict[str, list[str]]:
    """The pieces in each split."""
    decision = decide_on(documents, split)
    found: dict[str, list[str]] = {}
    for text in documents:
        for name, piece in decision.pieces(digest(text), text):
            found.setdefault(name, []).append(piece)
    return found


@given(documents=st.lists(long_texts, min_size=1, max_size=3) | st.lists(long_texts, min_size=4, max_size=40), s=shares)
def test_no_split_that_is_asked_for_is_empty(documents: list[str], s: Split) -> None:
    found = dealt(documents, s)
    assert sorted(found) == sorted(asked_for(s))
    assert all(all(pieces) and pieces for pieces in found.values())


@pytest.mark.parametrize("text", ["🚢⚓🌊", "漢🚢🌊", "abc\ndefgh", "\n" * 9])
@pytest.mark.parametrize("share", [0.05, 0.4, 0.49])
def test_the_shortest_text_that_can_be_cut_fills_every_split(text: str, share: float) -> None:
    found = dealt([text], Split(validation=share, test=0.5))
    assert sorted(found) == [TEST, TRAIN, VALIDATION]
    assert all(all(pieces) for pieces in found.values())


@given(documents=st.lists(texts, min_size=1, max_size=5), s=shares)
def test_short_documents_fill_every_split_or_are_refused(documents: list[str], s: Split) -> None:
    try:
        found = dealt(documents, s)
    except DataError:
        assert max(len(text.encode()) for text in documents) <= 8
    else:
        assert sorted(found) == sorted(asked_for(s))
        assert all(all(pieces) and pieces for pieces in found.values())


@given(documents=st.lists(long_texts, min_size=1, max_size=10), s=shares)
def test_the_pieces_of_a_document_join_to_its_text(documents: list[str], s: Split) -> None:
    decision = decide_on(documents, s)
    for text in documents:
        pieces = decision.pieces(digest(text), text)
        assert "".join(piece for _, piece in pieces) == text
        assert len(pieces) == 1 or digest(text) == decision.cut


@given(documents=st.lists(long_texts, min_size=2, max_size=10, unique=True), s=shares)
def test_repeated_text_never_crosses_splits(documents: list[str], s: Split) -> None:
    once, again = dealt(documents, s), dealt([*documents, *documents[::-1]], s)
    assert {name: sorted(set(pieces)) for name, pieces in again.items()} == {
        name: sorted(set(pieces)) for name, pieces in once.items()
    }
    whole = [set(pieces) & set(documents) for pieces in again.values()]
    assert sum(map(len, whole)) == len(set().union(*whole))


@given(documents=st.lists(long_texts, min_size=1, max_size=10, unique=True), s=shares, random=st.randoms())
def test_the_order_of_documents_does_not_matter(documents: list[str], s: Split, random: object) -> None:
    shuffled = list(documents)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert decide_on(shuffled, s) == decide_on(documents, s)


def test_many_documents_fall_as_the_shares_say() -> None:
    documents = [f"document {i} " * (1 + i % 7) for i in range(4000)]
    found = dealt(documents, Split(validation=0.1, test=0.05))
    assert len(found[VALIDATION]) == pytest.approx(400, rel=0.15)
    assert len(found[TEST]) == pytest.approx(200, rel=0.2)
    assert sum(map(len, found.values())) == 4000


def test_a_small_share_takes_the_document_nearest_to_it() -> None:
    everything = [f"{i} " + "x" * (100 * i) for i in range(1, 20)]
    documents = [text for text in everything if by_hash(digest(text), Split(validation=0.3)) == TRAIN]
    wanted = documents[len(documents) // 2]
    split = Split(validation=(len(wanted) + 20) / sum(map(len, documents)))
    assert dealt(documents, split)[VALIDATION] == [wanted]


def test_a_single_document_gives_its_end_at_a_line() -> None:
    text = "".join(f"line {i}\n" for i in range(1000))
    found = dealt([text], Split(validation=0.1, test=0.1))
    for name in (VALIDATION, TEST):
        assert len(found[name][0]) == pytest.approx(0.1 * len(text), rel=0.1)
        assert found[name][0].startswith("line ")
    assert len(found[TRAIN][0]) == pytest.approx(0.8 * len(text), rel=0.1)


def test_a_huge_document_beside_a_tiny_share_is_cut_not_moved() -> None:
    documents = ["a\n" * 50_000, "b\n" * 50_000]
    found = dealt(documents, Split(validation=0.01, test=0.0))
    assert 0 < len(found[VALIDATION][0]) < 5000
    assert sum(map(len, found[TRAIN])) > 190_000


@given(st.sampled_from([0.98, 0.9]))
def test_training_is_filled_too(validation: float) -> None:
    lone = next(t for i in range(100) if by_hash(digest(t := f"text {i} " * 30), Split(validation=validation)) != TRAIN)
    found = dealt([lone], Split(validation=validation))
    assert found[TRAIN]
    assert found[VALIDATION]


@pytest.mark.parametrize(("documents", "split"), [(["ab"], Split(validation=0.1)), ([], Split(validation=0.0))])
def test_too_little_text_is_told(documents: list[str], split: Split) -> None:
    size = sum(map(len, documents))
    said = rf"{len(documents)} document\(s\) with {size} bytes are too little text for the splits asked for"
    with pytest.raises(DataError, match=said) as caught:
        decide_on(documents, split)
    assert "set data.split.validation and data.split.test to 0" in str(caught.value.fix)


@given(st.binary(min_size=32, max_size=32), st.floats(0, 0.9))
def test_a_larger_share_only_adds_documents(hashed: bytes, share: float) -> None:
    assume(by_hash(hashed, Split(validation=share, test=0.0)) == VALIDATION)
    assert by_hash(hashed, Split(validation=min(0.95, share + 0.05), test=0.0)) == VALIDATION
