"""CoNLL and SQuAD files: their sentences and questions, and what is wrong with the others."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from orchestrator.data.labelled.conll import read_conll
from orchestrator.data.labelled.squad import read_squad
from orchestrator.data.values import Rejected, Row, RowError


def conll(text: str | bytes) -> list[Row | Rejected]:
    raw = text.encode() if isinstance(text, str) else text
    return list(read_conll(enumerate(raw.split(b"\n"), 1), "x.conll"))


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


def test_a_damaged_line_takes_its_sentence_only() -> None:
    assert conll(b"a O\n\nb O\n\xff O\nc O\n\nd O\n") == [
        Row(1, {"tokens": ["a"], "tags": ["O"]}),
        Rejected("x.conll", 2, "line 4 is not UTF-8 at byte 0"),
        Row(3, {"tokens": ["d"], "tags": ["O"]}),
    ]
    found = list(read_conll([(1, b"a O"), (2, None), (3, b""), (4, b"b O")], "x.conll"))
    assert found == [Rejected("x.conll", 1, "line 2 is too long"), Row(2, {"tokens": ["b"], "tags": ["O"]})]


def test_a_byte_order_mark_and_line_ends_of_all_systems() -> None:
    one, two = Row(1, {"tokens": ["a"], "tags": ["O"]}), Row(2, {"tokens": ["b"], "tags": ["X"]})
    for end in ("\n", "\r\n", "\r"):
        assert conll(f"\ufeffa O{end}{end}b X{end}") == [one, two]


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


def test_json_that_is_nested_too_deep_is_refused() -> None:
    with pytest.raises(RowError, match="not SQuAD's JSON: lists and objects are nested too deep"):
        list(read_squad(io.StringIO("[" * 1_000_000), "x.json"))
