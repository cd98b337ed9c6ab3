"""Records to columns, through a shard and back: what the columns say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.labelled.kinds import labelled_kind
from orchestrator.data.labelled.protocol import LabelledKind
from orchestrator.data.labelled.shards import open_rows, write_rows
from orchestrator.data.tokens.chat import CHATML
from orchestrator.data.tokens.tokenizer import Encoder, facts, train_bpe, train_tokenizer
from orchestrator.data.values import RowError
from orchestrator.errors import DataError
from orchestrator.job_data import Data, Source
from orchestrator.job_data import Tokenizer as Settings

TEXTS = ["The ship sails to Oslo in May.", "Who sails? The crew. assistant user system", "漢字 naïve"] * 10
TOKENIZER = train_tokenizer(TEXTS, Settings(train="bpe", vocab_size=350), chat=True)
ENCODER = Encoder(TOKENIZER)


def kind_of(name: str, **settings: Any) -> LabelledKind:
    return labelled_kind(Data(kind=name, sources=[Source(path="x")], **settings))


def source(**fields: str) -> Source:
    return Source(path="x", fields=fields)


def decode(ids: Any) -> str:
    return ENCODER.decode(ids)


CHAT = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]}
QA = {"question": "Where?", "context": "They sail to Oslo in May."}


def through_a_file(kind: LabelledKind, rows: list[dict[str, Any]], tmp_path: Any, labels: Any = ()) -> Any:
    """The columns as they come back from a shard, checked against the schema."""
    records = [kind.record(row, source()) for row in rows]
    columns = kind.encode(records, ENCODER, labels)
    assert len(kind.lengths(columns)) == len(rows)
    write_rows(tmp_path / "rows.arrow", columns, {})
    shard = open_rows(tmp_path / "rows.arrow")
    assert shard.columns == [name for name, _ in kind.schema()]
    return shard


def test_classification_columns(tmp_path: Any) -> None:
    kind = kind_of("classification", labels=["down", "up"])
    rows = [{"text": "The ship", "label": 1}, {"text": "Oslo", "text_pair": "in May", "label": "down"}]
    shard = through_a_file(kind, rows, tmp_path, ["down", "up"])
    assert shard.values("label").tolist() == [1, 0]
    assert [decode(shard.row("input_ids", i)) for i in range(2)] == ["The ship", "Oslo"]
    assert [decode(shard.row("pair_ids", i)) for i in range(2)] == ["", "in May"]
    with pytest.raises(DataError, match=r"the rows hold the label\(s\) up, which are not among down"):
        kind.encode([kind.record(row, source()) for row in rows], ENCODER, ["down"])


def test_token_classification_columns(tmp_path: Any) -> None:
    kind = kind_of("token-classification")
    rows = [{"tokens": ["The", "Titanic", "sails"], "tags": ["O", "B-ship", "O"]}, {"tokens": ["漢字"], "tags": ["O"]}]
    assert set(kind.labels_of(kind.record(rows[0], source()))) == {"O", "B-ship"}
    shard = through_a_file(kind, rows, tmp_path, ["B-ship", "O"])
    assert shard.row("words", 0) == ["The", "Titanic", "sails"]
    assert shard.row("tags", 0).tolist() == [1, 0, 1]
    starts = shard.row("word_starts", 0)
    assert [decode(part) for part in np.split(shard.row("input_ids", 0), starts[1:])] == ["The", " Titanic", " sails"]


def test_question_answering_columns(tmp_path: Any) -> None:
    rows = [
        {**QA, "answers": {"text": ["Oslo", "sail to Oslo"], "answer_start": [13, 5]}, "id": "q"},
        {**QA, "answers": []},
        {"question": "?", "context": "The Osloer", "answer": "Oslo"},
    ]
    shard = through_a_file(kind_of("question-answering"), rows, tmp_path)
    spans = shard.row("answer_spans", 0).reshape(-1, 2)
    found = [decode(shard.row("context_ids", 0)[a : b + 1]) for a, b in spans]
    assert [text.strip() for text in found] == ["Oslo", "sail to Oslo"]
    assert shard.row("answer_spans", 1).size == 0
    assert shard.row("answers", 0) == ["Oslo", "sail to Oslo"]
    assert (shard.row("context", 0), shard.row("id", 0), shard.row("id", 1)) == (QA["context"], "q", "")
    offsets = shard.row("offsets", 0).reshape(-1, 2)
    assert QA["context"][offsets[spans[0][0]][0] : offsets[spans[0][1]][1]].strip() == "Oslo"
    first, last = shard.row("answer_spans", 2)
    assert "Oslo" in decode(shard.row("context_ids", 2)[first : last + 1])


def test_chat_columns(tmp_path: Any) -> None:
    shard = through_a_file(kind_of("chat"), [CHAT, {"prompt": "漢?", "response": "\n\n 字"}], tmp_path)
    assert (
        decode(shard.row("input_ids", 0)) == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nMe.<|im_end|>\n"
    )
    for row, answer in enumerate(("Me.", "\n\n 字")):
        ids, mask = shard.row("input_ids", row), shard.row("loss_mask", row)
        assert mask.dtype == np.uint8
        assert decode(ids[mask == 1]) == f"{answer}<|im_end|>"
        assert ids[mask == 1][-1] == ENCODER.facts.special_tokens["<|im_end|>"]


CONTENT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=15).filter(
    lambda text: text.strip() and "<" not in text and "＜" not in text
)


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), CONTENT), max_size=4), CONTENT)
def test_the_mask_is_exactly_the_assistants_turns(turns: list[tuple[str, str]], last: str) -> None:
    turns = [*turns, ("assistant", last)]
    kind = kind_of("chat")
    made = kind.record({"messages": [{"role": r, "content": c} for r, c in turns]}, source())
    columns = kind.encode([made], ENCODER, ())
    (ids,), (mask,) = columns["input_ids"], columns["loss_mask"]
    runs = np.split(ids, np.flatnonzero(np.diff(mask)) + 1)
    learned = [decode(run) for run, on in zip(runs, mask[np.cumsum([0, *map(len, runs)])[:-1]], strict=True) if on]
    assert learned == [f"{content}<|im_end|>" for role, content in turns if role == "assistant"]
    assert decode(ids) == "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)


def test_a_chat_row_can_be_refused_before_it_is_encoded() -> None:
    strict = CHATML.replace(
        "{% for", "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for", 1
    )
    data = Data(kind="chat", sources=[Source(path="x")])
    kind = labelled_kind(data, facts(TOKENIZER, chat_template=strict))
    row = {"system": "S", "prompt": "Who?", "response": "Me."}
    with pytest.raises(RowError, match="the chat template refuses the chat: no system"):
        kind.record(row, source())
    late = labelled_kind(data)
    with pytest.raises(DataError, match="a chat that begins 'S' cannot be rendered: the chat template refuses"):
        late.encode([late.record(row, source())], Encoder(TOKENIZER, facts(TOKENIZER, chat_template=strict)), ())


def test_chatml_needs_its_tokens() -> None:
    kind = kind_of("chat")
    with pytest.raises(DataError, match=r"chatml needs the special token\(s\) <\|im_start\|>, <\|im_end\|>"):
        kind.encode([kind.record(CHAT, source())], Encoder(train_bpe(TEXTS, 300)), ())


def test_preference_columns(tmp_path: Any) -> None:
    other = [CHAT["messages"][0], {"role": "assistant", "content": "You."}]
    rows = [
        {"prompt": "Who? ", "chosen": "Me.", "rejected": "<|im_end|>"},
        {"chosen": CHAT["messages"], "rejected": other},
        {"prompt": "A", "chosen": "B", "rejected": "C"},
    ]
    shard = through_a_file(kind_of("preference"), rows, tmp_path)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    assert [[decode(shard.row(name, i)) for name in names] for i in range(3)] == [
        ["Who? ", "Me.<|endoftext|>", "<|im_end|><|endoftext|>"],
        ["<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n", "Me.<|im_end|>", "You.<|im_end|>"],
        ["A", "B<|endoftext|>", "C<|endoftext|>"],
    ]
    # A plain text that spells a special token is letters, also to the last one.
    assert ENCODER.facts.special_tokens["<|im_end|>"] not in shard.row("rejected_ids", 0)


COLUMNS = {"pixels": "float32[4]", "label": "int64", "weight": "float32"}


def test_columns(tmp_path: Any) -> None:
    rows = [
        {"pixels": [[0.5, 1], [2, 3]], "label": 7, "weight": "0.25", "other": "x"},
        {"pixels": ["1", 2, 3, 4.5], "label": "-3", "weight": 1},
    ]
    shard = through_a_file(kind_of("columns", columns=COLUMNS), rows, tmp_path)
    assert shard.values("pixels").dtype == np.float32
    assert shard.values("pixels").tolist() == [[0.5, 1, 2, 3], [1, 2, 3, 4.5]]
    assert shard.values("label").tolist() == [7, -3]
    assert (shard.row("weight", 0), shard.row("label", 1)) == (0.25, -3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pixels": [1, 2, 3]}, "pixels holds 3 numbers, not 4"),
        ({"pixels": [1, 2, 3, float("nan")]}, r"pixels\[3\] is nan: not a finite number of 32 bits"),
        ({"pixels": [1, 2, 3, 1e39]}, r"pixels\[3\] is 1e\+39: not a finite"),
        ({"pixels": [1, None, 3, 4]}, r"pixels\[1\] is 'None', not a number"),
        ({"pixels": 3}, "pixels is a number, not a list of 4"),
        ({"label": 1.5}, "label is '1.5', not a whole number of 64 bits"),
        ({"label": 1 << 63}, "label is '9223372036854775808', not a whole number"),
        ({"label": True}, "label is 'True', not a whole number"),
        ({"weight": "heavy"}, "weight is 'heavy', not a number"),
        ({"weight": float("inf")}, "weight is inf: not a finite"),
        ({"weight": None}, "no field weight; the row has pixels, label, weight"),
    ],
)
def test_a_bad_number_is_named(change: dict[str, Any], reason: str) -> None:
    row = {"pixels": [1, 2, 3, 4], "label": 1, "weight": 1.0, **change}
    with pytest.raises(RowError, match=reason):
        kind_of("columns", columns=COLUMNS).record(row, source())
