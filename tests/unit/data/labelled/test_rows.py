"""Rows to records: what is taken, and what is refused and why."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.data.labelled.kinds import labelled_kind
from orchestrator.data.labelled.protocol import LabelledKind
from orchestrator.data.values import Record, RowError
from orchestrator.errors import DataError
from orchestrator.job_data import Data, Source


def kind_of(name: str, **settings: Any) -> LabelledKind:
    return labelled_kind(Data(kind=name, sources=[Source(path="x")], **settings))


def source(**fields: str) -> Source:
    return Source(path="x", fields=fields)


def record(name: str, row: dict[str, Any], given_fields: dict[str, str] | None = None, **settings: Any) -> Record:
    return kind_of(name, **settings).record(row, source(**(given_fields or {})))


CHAT = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]}
PAIR = ("Who?", "Me.")


@pytest.mark.parametrize(
    ("kind", "row", "texts", "labels"),
    [
        ("classification", {"text": "good", "label": "up"}, ("good",), {"label": "up"}),
        ("classification", {"sentence": "good", "label": 1}, ("good",), {"label": "1"}),
        ("classification", {"sentence1": "a", "sentence2": "b", "label": "0"}, ("a", "b"), {"label": "0"}),
        ("classification", {"text": "a", "text_pair": None, "label": "0"}, ("a",), {"label": "0"}),
        (
            "token-classification",
            {"words": ["Oslo"], "ner_tags": ["B-x"]},
            ("Oslo",),
            {"words": ["Oslo"], "tags": ["B-x"]},
        ),
        (
            "token-classification",
            {"tokens": ["I", "go"], "labels": [3, 4]},
            ("I go",),
            {"words": ["I", "go"], "tags": ["3", "4"]},
        ),
        ("chat", CHAT, PAIR, {"roles": ["user", "assistant"]}),
        (
            "chat",
            {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]},
            PAIR,
            {"roles": ["user", "assistant"]},
        ),
        (
            "chat",
            {"instruction": "Add", "input": "1 2", "output": "3"},
            ("Add\n\n1 2", "3"),
            {"roles": ["user", "assistant"]},
        ),
        ("chat", {"instruction": "Add", "input": "", "output": "3"}, ("Add", "3"), {"roles": ["user", "assistant"]}),
        (
            "chat",
            {"system": "S", "prompt": "Who?", "response": "Me."},
            ("S", *PAIR),
            {"roles": ["system", "user", "assistant"]},
        ),
        ("preference", {"prompt": "Who?", "chosen": "Me.", "rejected": "You."}, ("Who?", "Me.", "You."), {"roles": []}),
        (
            "preference",
            {"chosen": CHAT["messages"], "rejected": [CHAT["messages"][0], {"role": "assistant", "content": "You."}]},
            ("Who?", "Me.", "You."),
            {"roles": ["user"]},
        ),
        (
            "preference",
            {"prompt": "Who?", "chosen": [CHAT["messages"][1]], "rejected": [{"role": "assistant", "content": "You."}]},
            ("Who?", "Me.", "You."),
            {"roles": ["user"]},
        ),
    ],
)
def test_rows_in_the_layouts_that_people_use(kind: str, row: dict[str, Any], texts: Any, labels: Any) -> None:
    assert record(kind, row) == Record(texts, labels)


QA = {"question": "Where?", "context": "They sail to Oslo in May."}


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        ({"answers": {"text": ["Oslo", "May"], "answer_start": [13, 21]}}, [[13, "Oslo"], [21, "May"]]),
        ({"answers": [{"text": "Oslo", "answer_start": 13}]}, [[13, "Oslo"]]),
        ({"answer": "Oslo", "answer_start": "13"}, [[13, "Oslo"]]),
        ({"answer": "Oslo"}, [[13, "Oslo"]]),
        ({"answers": {"text": [], "answer_start": []}}, []),
        ({"answers": []}, []),
        ({}, []),
    ],
)
def test_answers_in_the_layouts_that_people_use(answers: dict[str, Any], wanted: Any) -> None:
    made = record("question-answering", {**QA, "id": 7, **answers})
    assert made == Record(("Where?", "They sail to Oslo in May."), {"answers": wanted, "id": "7"})


def test_the_source_says_where_the_parts_stand() -> None:
    row = {"body": "good", "polarity": 1, "text": "not this"}
    assert record("classification", row, {"text": "body", "label": "polarity"}).texts == ("good",)
    with pytest.raises(DataError, match="fields name sentence; the parts of a row are text, text_pair, label"):
        record("classification", row, {"sentence": "body"})
    with pytest.raises(RowError, match="no field body; the row has text, label"):
        record("classification", {"text": "x", "label": 1}, {"text": "body"})


@pytest.mark.parametrize(("label", "name"), [(0, "down"), (1, "up"), ("1", "up"), ("down", "down")])
def test_numbers_count_off_the_labels(label: Any, name: str) -> None:
    made = record("classification", {"text": "x", "label": label}, labels=["down", "up"])
    assert made.labels == {"label": name}


def test_labels_that_are_numbers_are_names_first() -> None:
    assert record("classification", {"text": "x", "label": 2}, labels=["1", "2", "3"]).labels == {"label": "2"}


LIST = {"labels": ["down", "up"]}
TAGS = {"labels": ["O", "B-x", "I-x"]}
BAD = [
    ("classification", {"text": "x"}, {}, "no field label or labels; the row has text"),
    ("classification", {"text": 3, "label": 1}, {}, "text is a number, not text"),
    ("classification", {"text": " \n", "label": 1}, {}, "text is empty"),
    ("classification", {"text": "a\ud800", "label": 1}, {}, r"text holds a lone surrogate, U\+D800"),
    ("classification", {"text": "x", "label": "left"}, LIST, "the label 'left' is not one of down, up"),
    ("classification", {"text": "x", "label": 2}, LIST, "the label '2' is not one of down, up"),
    ("classification", {"text": "x", "label": -1}, LIST, "the label '-1' is not one of down, up"),
    ("classification", {"text": "x", "label": 0.5}, {}, "the label is a number, not a name or a whole number"),
    ("classification", {"text": "x", "label": True}, {}, "the label is a truth value"),
    ("token-classification", {"tokens": ["a", "b"], "tags": ["O"]}, {}, "2 tokens but 1 tags"),
    ("token-classification", {"tokens": [], "tags": []}, {}, "no tokens"),
    ("token-classification", {"tokens": "a b", "tags": ["O"]}, {}, "tokens is text, not a list"),
    ("token-classification", {"tokens": ["a", ""], "tags": ["O", "O"]}, {}, "token 2 is empty"),
    ("token-classification", {"tokens": ["a", "b"], "tags": ["O", "person"]}, {}, "tag 2 'person' is not O, nor B-"),
    ("token-classification", {"tokens": ["a", "b"], "tags": ["B-x", "B-"]}, {}, "tag 2 'B-' is not O"),
    ("token-classification", {"tokens": ["a"], "tags": ["B-y"]}, TAGS, "tag 1 'B-y' is not one of O, B-x, I-x"),
    ("token-classification", {"tokens": ["a"], "tags": [3]}, TAGS, "tag 1 '3' is not one of"),
    ("question-answering", {**QA, "id": "a\udc00"}, {}, r"id holds a lone surrogate, U\+DC00"),
    ("question-answering", {**QA, "answer": "Rome"}, {}, "the answer 'Rome' is not in its context"),
    (
        "question-answering",
        {**QA, "answer": "Oslo", "answer_start": 10},
        {},
        "'Oslo' is not at character 10 of its context: there stands 'to O'$",
    ),
    (
        "question-answering",
        {**QA, "answer": "Rome", "answer_start": 13},
        {},
        "there stands 'Oslo'; it is nowhere in the context",
    ),
    ("question-answering", {**QA, "answer": "Oslo", "answer_start": 99}, {}, "the context has 25 characters"),
    ("question-answering", {**QA, "answer": "Oslo", "answer_start": -12}, {}, "is not at character -12"),
    (
        "question-answering",
        {**QA, "answer": "Oslo", "answer_start": "x"},
        {},
        "answer_start is 'x', not a whole number",
    ),
    (
        "question-answering",
        {**QA, "answers": {"text": ["a"], "answer_start": []}},
        {},
        "1 texts of answers but 0 starts",
    ),
    ("question-answering", {"question": "Where?", "answers": []}, {}, "no field context"),
    (
        "chat",
        {"messages": [{"role": "user", "content": "Who?"}]},
        {},
        "no turn of the assistant: there is nothing to learn",
    ),
    (
        "chat",
        {"messages": [*CHAT["messages"], {"role": "user", "content": "So?"}]},
        {},
        "the chat ends on a turn of the user",
    ),
    (
        "chat",
        {"messages": [{"role": "pirate", "content": "Arr"}]},
        {},
        "message 1 of messages has the role 'pirate'; known are system, user, assistant",
    ),
    (
        "chat",
        {"messages": [{"role": "user", "content": None}]},
        {},
        r"message 1 of messages \(user\) is null, not text",
    ),
    ("chat", {"messages": []}, {}, "messages is empty"),
    ("chat", {"messages": ["hi"]}, {}, "message 1 of messages is text, not an object"),
    (
        "chat",
        {"prompt": "x<|im_end|>", "response": "y"},
        {},
        r"message 1 \(user\) spells the special token <\|im_end\|>",
    ),
    ("chat", {"text": "x"}, {}, "no field messages or conversations or conversation; the row has text"),
    ("preference", {"prompt": "Who?", "chosen": "Me.", "rejected": "Me."}, {}, "chosen and rejected are the same"),
    ("preference", {"prompt": "Who?", "chosen": "Me.", "rejected": ["x"]}, {}, "rejected is a list, not text"),
    (
        "preference",
        {"chosen": CHAT["messages"], "rejected": [{"role": "user", "content": "x"}, CHAT["messages"][1]]},
        {},
        "chosen and rejected answer different prompts",
    ),
    (
        "preference",
        {"chosen": CHAT["messages"][:1], "rejected": CHAT["messages"][:1]},
        {},
        "chosen ends on a turn of the user",
    ),
]


@pytest.mark.parametrize(("kind", "row", "settings", "reason"), BAD, ids=[f"{b[0]}: {b[3]}" for b in BAD])
def test_a_bad_row_says_what_is_wrong(kind: str, row: dict[str, Any], settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        record(kind, row, **settings)
