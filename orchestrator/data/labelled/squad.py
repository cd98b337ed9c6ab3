"""SQuAD's JSON, versions 1.1 and 2.0: articles, paragraphs, questions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TextIO

from orchestrator.data.values import Rejected, Row, RowError


def read_squad(text: TextIO, file: str) -> Iterator[Row | Rejected]:
    """Questions as rows of `id`, `title`, `question`, `context` and `answers`, numbered from 1.

    The file is one JSON value, so it is held in memory. A question that cannot be answered has no answers; the
    plausible ones that version 2 lists beside it are left out.

    Raises:
        RowError: the file is not JSON, or not SQuAD's.
    """
    try:
        whole = json.load(text)
    except ValueError as error:
        raise RowError(f"not JSON: {error}") from None
    except RecursionError:
        raise RowError("not SQuAD's JSON: lists and objects are nested too deep") from None
    number = 0
    for article in _list(whole, "data", "the file"):
        for paragraph in _list(article, "paragraphs", "an article"):
            for question in _list(paragraph, "qas", "a paragraph"):
                number += 1
                yield _row(article, paragraph, question, file, number)


def _list(value: Any, name: str, what: str) -> list[Any]:
    if not isinstance(value, dict) or not isinstance(value.get(name), list):
        raise RowError(f"not SQuAD's JSON: {what} has no list {name!r}")
    return list(value[name])


def _row(article: Any, paragraph: Any, question: Any, file: str, number: int) -> Row | Rejected:
    if not isinstance(question, dict):
        return Rejected(file, number, "a question is not an object")
    impossible = bool(question.get("is_impossible"))
    if not impossible and not question.get("answers"):
        return Rejected(file, number, "no answers, and is_impossible does not say that there are none")
    fields = {
        "id": str(question.get("id", number)),
        "title": str(article.get("title", "")),
        "question": question.get("question"),
        "context": paragraph.get("context"),
        "answers": [] if impossible else question["answers"],
    }
    return Row(number, fields)
