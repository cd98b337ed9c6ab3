"""Whole published sets: their counts, and that labels still point at what they are for."""

from __future__ import annotations

import csv
import gzip
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.data.labelled.conll import read_conll
from orchestrator.data.labelled.kinds import labelled_kind
from orchestrator.data.labelled.squad import read_squad
from orchestrator.data.tokens.tokenizer import Encoder, train_tokenizer
from orchestrator.data.values import Record, Row
from orchestrator.job_data import Data, Source
from orchestrator.job_data import Tokenizer as Settings

SHARED = os.environ.get("SLIPWAY_TEST_DATA")
pytestmark = pytest.mark.skipif(not SHARED, reason="SLIPWAY_TEST_DATA names no folder of data sets")
SOURCE = Source(path="x")


def opened(name: str) -> Any:
    return gzip.open(Path(str(SHARED)) / name, "rt", encoding="utf-8", newline="")


def numbered(lines: Any) -> Any:
    return ((at, line.rstrip("\n").encode()) for at, line in enumerate(lines, 1))


def records(kind: str, rows: Any, **settings: Any) -> list[Record]:
    made = labelled_kind(Data(kind=kind, sources=[SOURCE], **settings))
    return [made.record(row.fields, SOURCE) for row in rows if isinstance(row, Row)]


def encoder_for(found: list[Record], algorithm: Any) -> Encoder:
    texts = [record.text for record in found]
    return Encoder(
        train_tokenizer(texts, Settings(train=algorithm, vocab_size=2000, lowercase=algorithm == "wordpiece"))
    )


@pytest.mark.parametrize(
    ("split", "sentences", "tokens"), [("train", 3394, 62730), ("dev", 1009, 15733), ("test", 1287, 23394)]
)
def test_wnut17_has_the_published_counts(split: str, sentences: int, tokens: int) -> None:
    with opened(f"wnut17/{split}.conll.gz") as lines:
        rows = list(read_conll(numbered(lines), split))
    assert all(isinstance(row, Row) for row in rows)
    found = records("token-classification", rows)
    assert (len(found), sum(len(r.labels["words"]) for r in found)) == (sentences, tokens)
    names = {tag.partition("-")[2] for r in found for tag in r.labels["tags"]} - {""}
    assert names == {"person", "location", "group", "corporation", "product", "creative-work"}


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece"])
def test_wnut17_words_keep_their_tags(algorithm: str) -> None:
    with opened("wnut17/dev.conll.gz") as lines:
        found = records("token-classification", read_conll(numbered(lines), "dev"))
    kind = labelled_kind(Data(kind="token-classification", sources=[SOURCE]))
    labels = sorted({label for record in found for label in kind.labels_of(record)})
    columns = kind.encode(found, encoder_for(found, algorithm), labels)
    for record, ids, starts, tags in zip(
        found, columns["input_ids"], columns["word_starts"], columns["tags"], strict=True
    ):
        assert [labels[tag] for tag in tags] == record.labels["tags"]
        assert len(starts) == len(tags)
        assert (np.diff([*starts, len(ids)]) > 0).all()


def test_sst2_has_the_published_counts() -> None:
    with opened("sst2/dev.tsv.gz") as file:
        table = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = [Row(i, {"sentence": s, "label": label}) for i, (s, label) in enumerate(table, 1)]
    found = records("classification", rows, labels=["negative", "positive"])
    assert Counter(record.labels["label"] for record in found) == {"positive": 444, "negative": 428}


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece"])
@pytest.mark.parametrize(("split", "questions"), [("train", 1013), ("dev", 177)])
def test_squad_answers_are_found_again_in_tokens(split: str, questions: int, algorithm: str) -> None:
    with opened(f"squad-sample/{split}.json.gz") as file:
        found = records("question-answering", read_squad(file, split))
    assert len(found) == questions
    encoder = encoder_for(found, algorithm)
    columns = labelled_kind(Data(kind="question-answering", sources=[SOURCE])).encode(found, encoder, ())
    for record, ids, flat, spans in zip(
        found, columns["context_ids"], columns["offsets"], columns["answer_spans"], strict=True
    ):
        ((start, text),) = record.labels["answers"]
        (first, last), offsets = spans, flat.reshape(-1, 2)
        assert offsets[first][0] <= start
        assert offsets[last][1] >= start + len(text)
        if algorithm == "bpe":
            assert text in encoder.decode(ids[first : last + 1])
