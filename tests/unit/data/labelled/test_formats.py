"""CoNLL and SQuAD files: their sentences and questions, and what is wrong with the others."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from orchestrator.data.labelled.conll import read_conll
from orchestrator.data.labelled.squad import read_squad
from orchestrator.data.values import Rejected, Row, RowError


def conll(text: str) -> list[Row | Rejected]:
    return list(read_conll(io.StringIO(text), "x.conll"))


def test_sentences_end_at_blank_lines_of_any_kind() -> None:
    text = "-DOCSTART- -X- O O\n\nEU NNP B-ORG\nrejects VBZ O\n\t\nPeter\tNNP\tB-PER\n   \n\n\nx\tO\r\n"
    assert conll(text) == [
        Row(1, {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}),
        Row(2, {"tokens": ["Peter"], "tags": ["B-PER"]}),
        Row(3, {"tokens": ["x"], "tags": ["O"]}),
    ]
    assert conll("") == []


def test_spaces_are_part_of_a_token_where_tabs_separate() -> None:
    assert conll("New York\tB-loc\n") == [Row(1, {"tokens": ["New York"], "tags": ["B-loc"]})]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a O\nb\n\nc O\n", "line 2 has one column; a token and its tag are needed"),
        ("a X O\nb O\n\nc O\n", "line 2 has 2 columns, the lines before it 3"),
        ("a\n\nc O", "line 1 has one column"),
    ],
)
def test_a_bad_sentence_is_left_out_alone(text: str, reason: str) -> None:
    bad, good = conll(text)
    assert isinstance(bad, Rejected)
    assert (bad.file, bad.row) == ("x.conll", 1)
    assert reason in bad.reason
    assert good == Row(2, {"tokens": ["c"], "tags": ["O"]})


def squad(value: Any) -> list[Row | Rejected]:
    return list(read_squad(io.StringIO(json.dumps(value)), "x.json"))


def whole(*questions: Any) -> dict[str, Any]:
    return {"data": [{"title": "T", "paragraphs": [{"context": "C", "qas": list(questions)}]}]}


def test_questions_of_both_versions() -> None:
    answers = [{"text": "C", "answer_start": 0}]
    rows = squad(
        whole(
            {"id": "1", "question": "Q", "answers": answers},
            {"id": "2", "question": "Q", "answers": [], "is_impossible": True, "plausible_answers": answers},
        )
    )
    common = {"title": "T", "question": "Q", "context": "C"}
    assert rows == [Row(1, {**common, "id": "1", "answers": answers}), Row(2, {**common, "id": "2", "answers": []})]


def test_a_question_without_answers_must_say_so() -> None:
    bad, odd = squad(whole({"id": "1", "question": "Q", "answers": []}, 3))
    assert bad == Rejected("x.json", 1, "no answers, and is_impossible does not say that there are none")
    assert odd == Rejected("x.json", 2, "a question is not an object")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "the file has no list 'data'"),
        ({"data": [{}]}, "an article has no list 'paragraphs'"),
        ({"data": [{"paragraphs": [{}]}]}, "a paragraph has no list 'qas'"),
    ],
)
def test_another_json_is_refused(value: Any, reason: str) -> None:
    with pytest.raises(RowError, match=f"not SQuAD's JSON: {reason}"):
        squad(value)


def test_what_is_not_json_is_refused() -> None:
    with pytest.raises(RowError, match="not JSON: "):
        list(read_squad(io.StringIO("{"), "x.json"))
