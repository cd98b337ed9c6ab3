"""Entities of tags in all their notations, and their scores."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.objectives.scores.entities import Entity, EntityScores, entities

KINDS = st.sampled_from(["PER", "LOC", "creative-work"])
tag = st.just("O") | st.builds("{}-{}".format, st.sampled_from("BIESLU"), KINDS)
sentences = st.lists(st.lists(st.tuples(tag, tag), min_size=1, max_size=8), min_size=1, max_size=6)
pieces = st.lists(st.tuples(st.none() | KINDS, st.integers(1, 4)), max_size=6)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("", []),
        ("O O", []),
        ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
        ("B-PER B-PER", [("PER", 0, 0), ("PER", 1, 1)]),
        ("I-PER I-PER O I-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
        ("B-PER I-LOC I-LOC", [("PER", 0, 0), ("LOC", 1, 2)]),
        ("I-PER B-PER", [("PER", 0, 0), ("PER", 1, 1)]),
        ("S-PER S-PER I-PER", [("PER", 0, 0), ("PER", 1, 1), ("PER", 2, 2)]),
        ("B-PER E-PER E-PER", [("PER", 0, 1), ("PER", 2, 2)]),
        ("E-PER I-PER E-PER", [("PER", 0, 0), ("PER", 1, 2)]),
        ("I-PER S-PER", [("PER", 0, 0), ("PER", 1, 1)]),
        ("B-PER L-PER B-PER L-PER", [("PER", 0, 1), ("PER", 2, 3)]),
        ("U-PER U-PER", [("PER", 0, 0), ("PER", 1, 1)]),
        ("B-a-b I-a-b I-a", [("a-b", 0, 1), ("a", 2, 2)]),
    ],
)
def test_entities_by_hand(tags: str, found: list[Entity]) -> None:
    assert entities(tags.split()) == found


@pytest.mark.parametrize("end_single", [("I", "B"), ("E", "S"), ("L", "U")], ids=["IOB2", "IOBES", "BILOU"])
@given(pieces=pieces)
def test_every_notation_spells_the_same_entities(
    end_single: tuple[str, str], pieces: list[tuple[str | None, int]]
) -> None:
    end, single = end_single
    tags: list[str] = []
    spelt = []
    for kind, length in pieces:
        if kind is None:
            tags += ["O"] * length
            continue
        spelt.append((kind, len(tags), len(tags) + length - 1))
        roles = [single] if length == 1 else ["B", *["I"] * (length - 2), end]
        tags += [f"{role}-{kind}" for role in roles]
    assert entities(tags) == spelt


@given(st.lists(tag, max_size=12))
def test_entities_cover_all_tokens_but_o_once(tags: list[str]) -> None:
    covered = [i for _, first, last in entities(tags) for i in range(first, last + 1)]
    assert covered == [i for i, name in enumerate(tags) if name != "O"]
    assert all(tags[i].partition("-")[2] == kind for kind, first, last in entities(tags) for i in (first, last))


def test_a_table_by_hand() -> None:
    scores = EntityScores()
    scores.add(
        truth=[["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "I-LOC", "O", "O"]],
        predicted=[["B-PER", "I-PER", "O", "B-PER"], ["B-LOC", "O", "O", "B-ORG"]],
    )
    result = scores.result()
    assert result.metrics == pytest.approx({"precision": 1 / 4, "recall": 1 / 3, "f1": 2 / 7, "token_accuracy": 5 / 8})
    assert result.tables["types"].columns == ("type", "precision", "recall", "f1", "support")
    rows = result.tables["types"].rows
    assert [row[0] for row in rows] == ["LOC", "ORG", "PER"]
    assert [row[1:] for row in rows] == [(0.0, 0.0, 0.0, 2), (0.0, 0.0, 0.0, 0), pytest.approx((0.5, 1, 2 / 3, 1))]


def test_an_entity_does_not_reach_over_two_sentences() -> None:
    scores = EntityScores()
    scores.add([["B-PER"], ["I-PER"]], [["B-PER"], ["B-PER"]])
    assert scores.result().metrics["f1"] == 1.0
    assert scores.result().metrics["token_accuracy"] == 0.5


def test_no_entity_at_all_scores_0() -> None:
    scores = EntityScores()
    scores.add([["O"]], [["O"]])
    assert scores.result().metrics == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "token_accuracy": 1.0}
    assert scores.result().tables["types"].rows == ()


@given(sentences, st.integers(1, 4))
def test_any_number_of_ranks_gives_the_same_scores(pairs: list[list[tuple[str, str]]], num_ranks: int) -> None:
    predicted = [[p for p, _ in sentence] for sentence in pairs]
    truth = [[t for _, t in sentence] for sentence in pairs]
    alone, together = EntityScores(), EntityScores()
    alone.add(predicted, truth)
    for rank in range(num_ranks):
        part = EntityScores()
        part.add(predicted[rank::num_ranks], truth[rank::num_ranks])
        together.merge([part.state()])
    assert together.result() == alone.result()


def test_a_state_does_not_change_when_more_is_added() -> None:
    scores = EntityScores()
    scores.add([["B-PER"]], [["B-PER"]])
    state = scores.state()
    scores.add([["B-PER"]], [["B-PER"]])
    assert state["counts"] == {"PER": [1, 1, 1]}


@pytest.mark.parametrize("name", ["PER", "B", "B-", "X-PER", "", "OO"])
def test_a_tag_that_is_none_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"tag '{name}' is neither O nor"):
        entities(["O", name])


def test_lengths_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match="true tags of a sentence must be as many as each other: they are 1 and 2"):
        EntityScores().add([["O"]], [["O", "O"]])
    with pytest.raises(ValueError, match="true sentences must be as many"):
        EntityScores().add([], [["O"]])
    with pytest.raises(ValueError, match="no tokens to score"):
        EntityScores().result()
