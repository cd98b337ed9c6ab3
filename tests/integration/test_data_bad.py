"""What is wrong with data: named and counted, or the stage stops; nothing is lost without a word."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from data_fixtures import Prepare, open_in, sentence, texts, write_jsonl

from orchestrator.data.show import verify
from orchestrator.errors import DataError
from orchestrator.store import Store


def test_rejected_rows_are_named_and_too_many_stop_the_stage(prepare: Prepare, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good one"}\nbroken\n{"txt": 1}\n{"text": "another good one"}\n')
    (tmp_path / "empty.txt").touch()
    (tmp_path / "out.txt").symlink_to("/etc/hostname")
    sources = [{"path": str(path)}, {"path": str(tmp_path), "include": "*.txt"}]
    made = prepare({"sources": sources, "split": {"validation": 0}, "max_rejected": 4})
    assert made["rejected"] == 4
    rows = (store.root / made["dataset"] / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(row) for row in rows] == [
        {"file": "out.txt", "row": None, "reason": "a link that leads out of the source folder"},
        {"file": "a.jsonl", "row": 2, "reason": "not JSON"},
        {"file": "a.jsonl", "row": 3, "reason": "no text in the field 'text'"},
        {"file": "empty.txt", "row": None, "reason": "empty"},
    ]
    with pytest.raises(DataError, match=r"[34] rows or files hold no document, over data.max_rejected 2: out.txt \(a"):
        prepare({"sources": sources, "max_rejected": 2}, into=Store(tmp_path / "other"))
    assert not [p for p in (tmp_path / "other" / "datasets").iterdir() if not p.name.startswith(".")]


def test_more_rows_may_be_rejected_at_the_next_try_and_all_are_named(prepare: Prepare, tmp_path: Path) -> None:
    rows = [*(f"row {i}: {sentence(random.Random(i))}" for i in range(30))]
    write_jsonl(tmp_path / "a.jsonl", rows)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("broken\n" * 20)
    data = {"sources": [{"path": str(tmp_path / "a.jsonl")}]}
    again, fresh = Store(tmp_path / "again"), Store(tmp_path / "fresh")
    with pytest.raises(DataError, match=r"20 rows or files hold no document, over data\.max_rejected 3"):
        prepare({**data, "max_rejected": 3}, into=again)
    made = [prepare({**data, "max_rejected": 50}, into=store) for store in (again, fresh)]
    named = [(s.root / m["dataset"] / "rejected.jsonl").read_text() for s, m in zip((again, fresh), made, strict=True)]
    assert named[0] == named[1]
    assert len(named[0].splitlines()) == made[0]["rejected"] == 20


def test_a_long_text_file_is_kept_whole_in_pieces(prepare: Prepare, store: Store, tmp_path: Path) -> None:
    rng = random.Random(12)
    text = "".join(sentence(rng, 12) + "\n" for _ in range(1500))
    (tmp_path / "long.txt").write_text(text)
    data = {"sources": [{"path": str(tmp_path / "long.txt")}], "max_document_bytes": 4096, "split": {"validation": 0}}
    made = prepare(data)
    assert made["rejected"] == 0
    assert "".join(texts(open_in(store, made))) == text


@pytest.mark.parametrize(
    ("raw", "field", "said"),
    [
        ("not json\n", None, r"exam.jsonl:1 \(not JSON\)"),
        ('{"text": "a b c"}\n', "question", r"exam.jsonl:1 \(no text in the field 'question'\)"),
        ("", None, r"exam.jsonl \(no rows\)"),
    ],
)
def test_an_evaluation_set_that_cannot_be_read_stops_the_stage(
    prepare: Prepare, tmp_path: Path, raw: str, field: str | None, said: str
) -> None:
    write_jsonl(tmp_path / "a.jsonl", [sentence(random.Random(1))])
    (tmp_path / "exam.jsonl").write_text(raw)
    against = [{"path": str(tmp_path / "exam.jsonl"), **({"text": field} if field else {})}]
    with pytest.raises(DataError, match=rf"cannot be kept out of the data: {said}"):
        prepare({"sources": [{"path": str(tmp_path / "a.jsonl")}], "deduplicate": {"against": against}})


def test_nothing_left_is_an_error_with_the_reason(prepare: Prepare, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["short", "also short"])
    with pytest.raises(DataError, match="no document is left of 2 that were read; 0 rows or files held none"):
        prepare({"sources": [{"path": str(tmp_path / "a.jsonl")}], "clean": {"quality": "gopher"}})
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(DataError, match=r"1 rows or files held none: a.jsonl \(no rows\)"):
        prepare({"sources": [{"path": str(tmp_path / "a.jsonl")}]})


def test_one_flipped_byte_is_named_before_anything_starts(prepare: Prepare, store: Store, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [sentence(random.Random(i)) for i in range(20)])
    made = prepare({"sources": [{"path": str(tmp_path / "a.jsonl")}]})
    folder = store.root / made["dataset"]
    assert verify(folder)["tokens"] == made["tokens"]
    shard = sorted((folder / "shards").iterdir())[0]
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(DataError, match=rf"{shard.name} was altered"):
        verify(folder)
    with pytest.raises(DataError, match=rf"{shard.name} was altered"):  # a run of the same job
        prepare({"sources": [{"path": str(tmp_path / "a.jsonl")}]})


def test_a_small_sample_still_trains_a_tokenizer(prepare: Prepare, store: Store, tmp_path: Path) -> None:
    rng = random.Random(13)
    write_jsonl(tmp_path / "a.jsonl", [sentence(rng, 2000) for _ in range(5)])
    tokenizer = {"train": "wordpiece", "vocab_size": 300, "sample_bytes": 2000}
    made = prepare({"sources": [{"path": str(tmp_path / "a.jsonl")}], "tokenizer": tokenizer})
    assert open_in(store, made).vocab_size > 50
