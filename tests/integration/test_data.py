"""Preparation through its real parts: what is counted, what is kept, where it is found again."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness import Result, Runner

from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.data.find import find
from orchestrator.data.load.stream import TokenStream, samples_in
from orchestrator.data.reading import read_back
from orchestrator.data.shelf import parts_at_hand
from orchestrator.data.show import order, sample, show, verify
from orchestrator.errors import DataError
from orchestrator.job import JobSpec
from orchestrator.job_file import load_job
from orchestrator.run import prepare_only, sample_order
from orchestrator.store import Store

Slipway = Callable[..., Result]
Prepare = Callable[..., dict[str, Any]]
NONE = {"quality": 0, "exact_duplicates": 0, "near_duplicates": 0, "contaminated": 0, "personal_data": 0}


def sentence(rng: random.Random, words: int = 40) -> str:
    return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(words))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def prepare(runner: Runner, store: Store, tmp_path: Path) -> Prepare:
    """Prepares a data section; returns the document of `prepare --json`."""

    def run(data: dict[str, Any], *, into: Store = store, **rest: Any) -> dict[str, Any]:
        return prepare_only(job_of(data, tmp_path, **rest), store=into, session=runner.session)

    return run


def job_of(data: dict[str, Any], folder: Path, **rest: Any) -> JobSpec:
    document = {"name": "data", "data": {"tokenizer": {"vocab_size": 300}, **data}, **rest}
    path = folder / "job.yaml"
    path.write_text(json.dumps(document))
    return load_job(path)


def open_in(store: Store, document: dict[str, Any]) -> Dataset:
    return open_dataset(store.root / document["dataset"])


def texts(dataset: Dataset, split: str | None = None) -> list[str]:
    splits = [split] if split else list(dataset.manifest["splits"])
    return [d.text for s in splits for row in dataset.shard_rows(s) for d in read_back(dataset, row)]


def write_jsonl(path: Path, rows: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def digest_of(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_each_stage_counts_what_it_removes(prepare: Prepare, store: Store, tmp_path: Path) -> None:
    rng = random.Random(1)
    unique = [sentence(rng) for _ in range(40)]
    words = unique[3].split()
    near = " ".join([*words[:20], "changed", *words[21:]])
    exam = sentence(rng, 30)
    leaked = f"{sentence(rng, 10)} {' '.join(exam.split()[4:20])} {sentence(rng, 10)}"
    mail = f"{sentence(rng)} write to jane.doe@mail.example.org or call +44 20 7946 0958"
    write_jsonl(tmp_path / "a.jsonl", [*unique, f"  {unique[0]}\n\t", near, leaked, mail])
    write_jsonl(tmp_path / "b.jsonl", [unique[1], "e\u0301t\u00e9 " + unique[5], "\u00e9t\u00e9 " + unique[5], "x"])
    write_jsonl(tmp_path / "exam.jsonl", [exam])
    made = prepare(
        {
            "sources": [{"path": str(tmp_path / "a.jsonl")}, {"path": str(tmp_path / "b.jsonl")}],
            "clean": {"rules": {"min_words": 3}},
            "deduplicate": {"against": [str(tmp_path / "exam.jsonl")], "near": {"similarity": 0.7}},
            "split": {"validation": 0.1},
        }
    )
    assert made["state"] == "done"
    assert made["removed"] == {
        "quality": 1,  # x
        "exact_duplicates": 3,  # white space, another source, another Unicode form
        "near_duplicates": 2,  # one word changed, one word more
        "contaminated": 1,
        "personal_data": 0,
    }
    assert made["documents"] == 48 - 7
    assert (made["personal_data"]["email"], made["personal_data"]["phone"], made["rejected"]) == (1, 1, 0)
    dataset = open_in(store, made)
    kept = texts(dataset)
    assert len(kept) == made["documents"]
    assert set(unique) <= set(kept)
    assert sum("<EMAIL>" in text and "<PHONE>" in text for text in kept) == 1
    assert not any("jane.doe" in text or text in (near, leaked) for text in kept)
    report = json.loads(Path(made["report"]).read_text())
    assert report["removed_by_rule"]["near_duplicate"]["samples"][0]["file"] == "a.jsonl"
    assert report["removed_by_rule"]["min_words"]["documents"] == 1
    assert [s["documents_read"] for s in report["sources"]] == [44, 4]


def test_stages_that_are_off_remove_nothing(prepare: Prepare, store: Store, tmp_path: Path) -> None:
    rows = ["mail me at a@b.example.com", "mail me at a@b.example.com", "caf\u0065\u0301 \x07 bell"] * 3
    write_jsonl(tmp_path / "a.jsonl", rows)
    made = prepare(
        {
            "sources": [{"path": str(tmp_path / "a.jsonl")}],
            "clean": {"unicode": "off", "control_characters": False},
            "deduplicate": {"exact": False, "near": False},
            "privacy": {"action": "off"},
            "split": {"validation": 0},
        }
    )
    assert (made["documents"], made["removed"], made["personal_data"]) == (9, NONE, {})
    assert texts(open_in(store, made)) == rows


def test_documents_with_personal_data_can_go(prepare: Prepare, store: Store, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["nothing to see here", "mail me at jane.doe@mail.example.org"])
    made = prepare(
        {"sources": [{"path": str(tmp_path / "a.jsonl")}], "privacy": {"action": "drop"}, "split": {"validation": 0}}
    )
    assert (made["documents"], made["removed"]["personal_data"], made["personal_data"]["email"]) == (1, 1, 1)
    assert texts(open_in(store, made)) == ["nothing to see here"]
    assert "jane.doe" not in Path(made["report"]).read_text()


def test_every_format_gives_the_same_documents(prepare: Prepare, tmp_path: Path) -> None:
    rng = random.Random(2)
    rows = [f"{sentence(rng)}\n{sentence(rng)}" for _ in range(50)]
    table = pa.table({"id": list(range(50)), "text": rows})
    for name in ("jsonl", "jsonl.gz", "csv", "parquet", "arrow", "txt"):
        (tmp_path / name).mkdir()
    raw = "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()
    (tmp_path / "jsonl" / "a.jsonl").write_bytes(raw)
    (tmp_path / "jsonl.gz" / "a.jsonl.gz").write_bytes(gzip.compress(raw))
    (tmp_path / "csv" / "a.csv").write_text("id,text\n" + "".join(f'{i},"{row}"\n' for i, row in enumerate(rows)))
    pq.write_table(table, tmp_path / "parquet" / "a.parquet")
    with pa.OSFile(str(tmp_path / "arrow" / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    for i, row in enumerate(rows):
        (tmp_path / "txt" / f"{i:03d}.txt").write_text(row)
    shards = set()
    for name in ("jsonl", "jsonl.gz", "csv", "parquet", "arrow", "txt"):
        store = Store(tmp_path / "stores" / name)
        made = prepare({"sources": [{"path": str(tmp_path / name)}]}, into=store)
        assert made["documents"] == 50
        shards.add(json.dumps(digest_of(store.root / made["dataset"] / "shards")))
    assert len(shards) == 1


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


def test_a_small_sample_still_trains_a_tokenizer(prepare: Prepare, store: Store, tmp_path: Path) -> None:
    rng = random.Random(13)
    write_jsonl(tmp_path / "a.jsonl", [sentence(rng, 2000) for _ in range(5)])
    tokenizer = {"train": "wordpiece", "vocab_size": 300, "sample_bytes": 2000}
    made = prepare({"sources": [{"path": str(tmp_path / "a.jsonl")}], "tokenizer": tokenizer})
    assert open_in(store, made).vocab_size > 50


def test_a_labelled_text_stands_on_one_side(prepare: Prepare, store: Store, tmp_path: Path) -> None:
    rng = random.Random(14)
    rows = [sentence(rng, 6) for _ in range(120)]
    with (tmp_path / "a.jsonl").open("w") as file:
        for row in rows:
            file.writelines(json.dumps({"text": row, "label": label}) + "\n" for label in ("good", "bad"))
    data = {"kind": "classification", "sources": [{"path": str(tmp_path / "a.jsonl")}], "split": {"validation": 0.3}}
    made = prepare(data)
    assert made["documents"] == 240
    dataset = open_in(store, made)
    sides = [
        {d.shown()["input_text"] for row in dataset.shard_rows(name) for d in read_back(dataset, row)}
        for name in ("train", "validation")
    ]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 120
    (kept, also) = find(store, rows[5])["matches"]
    assert kept["id"] == also["id"]


def test_nothing_left_is_an_error_with_the_reason(prepare: Prepare, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["short", "also short"])
    with pytest.raises(DataError, match="no document is left of 2 that were read; 0 rows or files held none"):
        prepare({"sources": [{"path": str(tmp_path / "a.jsonl")}], "clean": {"quality": "gopher"}})
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(DataError, match=r"1 rows or files held none: a.jsonl \(no rows\)"):
        prepare({"sources": [{"path": str(tmp_path / "a.jsonl")}]})


def test_a_document_is_found_by_text_id_and_piece(prepare: Prepare, store: Store, tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = [sentence(rng) for _ in range(20)]
    mail = f"{rows[7]} jane.doe@mail.example.org"
    write_jsonl(tmp_path / "a.jsonl", [*rows[:7], mail, *rows[8:], f" {rows[2]} "])
    made = prepare({"sources": [{"path": str(tmp_path / "a.jsonl")}], "split": {"validation": 0}})
    dataset = open_in(store, made)
    (match,) = find(store, mail)["matches"]  # as it was in the source, before redaction
    assert (match["state"], match["split"], match["row"], match["match"]) == ("kept", "train", 8, "document")
    shard = next(row for row in dataset.shard_rows("train") if row["path"].endswith(match["shard"]))
    stored = list(read_back(dataset, shard))[match["position"]]
    assert stored.text == f"{rows[7]} <EMAIL>"
    assert find(store, match["id"])["matches"] == [match]
    assert find(store, match["id"][:12])["matches"] == [match]
    (piece,) = find(store, rows[7][20:60])["matches"]
    assert {**piece, "match": "document"} == match
    kept, gone = sorted(find(store, rows[2])["matches"], key=lambda m: m["row"])
    assert (kept["state"], gone["state"], gone["kept_as"]) == ("kept", "exact_duplicate", kept["id"])
    assert find(store, "a text that is nowhere at all")["matches"] == []


def test_runs_that_trained_on_a_document_are_named(
    runner: Runner, slipway: Slipway, corpus: Path, store: Store
) -> None:
    outcome = runner(store.root, "train.steps=2", "train.schedule.warmup_steps=1")
    result = slipway("data", "find", (corpus / "doc-03.txt").read_text(), "--store", store.root, "--json")
    assert result.code == 0, result.stderr
    (match,) = result.document["matches"]
    assert match["runs"] == ([outcome.run] if match["split"] == "train" else [])
    assert match["dataset"] == outcome.dataset


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


def test_what_people_see(prepare: Prepare, store: Store, slipway: Slipway, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [sentence(random.Random(i)) for i in range(30)])
    made = prepare({"sources": [{"path": str(tmp_path / "a.jsonl"), "name": "letters"}]})
    name = Path(made["dataset"]).name
    shown = slipway("data", "show", name, "--store", store.root)
    assert all(word in shown.stdout for word in ("letters", "documents by length in tokens", "█", "30"))
    assert slipway("data", "show", name, "--store", store.root, "--json").document["documents"] == 30
    assert name in slipway("data", "list", "--store", store.root, COLUMNS="200").stdout
    drawn = slipway("data", "sample", name, "--store", store.root, "--count", "2", "--json").document["samples"]
    assert len({s["text"] for s in drawn} & {sentence(random.Random(i)) for i in range(30)}) == 2
    assert slipway("data", "verify", name, "--store", store.root, "--json").document["verified"] is True
    missing = slipway("data", "show", "none", "--store", store.root)
    assert (missing.code, "there is no dataset 'none'" in missing.stderr) == (6, True)


def test_the_order_is_the_same_on_any_number_of_workers(runner: Runner, store: Store, slipway: Slipway) -> None:
    job = runner.job()
    with pytest.raises(DataError, match="is not prepared"):
        sample_order(job, store=store, steps="0:2", workers=1)
    prepare_only(job, store=store, session=runner.session)
    whole = sample_order(job, store=store, steps="0:30", workers=1)
    ids = [i for row in whole for i in row["ranks"][0]]
    for workers in (2, 3, 7):
        dealt = sample_order(job, store=store, steps="0:30", workers=workers)
        assert [len(row["ranks"]) for row in dealt] == [workers] * 30
        assert [i for row in dealt for rank in row["ranks"] for i in rank] == ids
    assert sample_order(job, store=store, steps="20:30", workers=1) == whole[20:]
    printed = slipway(
        "data", "order", runner.job_file, "--steps", "0:2", "--workers", "3", "--store", store.root, "--json"
    )
    assert json.loads(printed.stdout) == sample_order(job, store=store, steps="0:2", workers=3)


def test_weights_share_out_the_samples(prepare: Prepare, store: Store, tmp_path: Path) -> None:
    for name, count in (("a", 300), ("b", 60)):
        rng = random.Random(name)
        write_jsonl(tmp_path / f"{name}.jsonl", [f"{name} {sentence(rng)}" for _ in range(count)])
    data = {
        "sources": [
            {"path": str(tmp_path / "a.jsonl"), "name": "a", "weight": 1},
            {"path": str(tmp_path / "b.jsonl"), "name": "b", "weight": 3},
        ],
        "curriculum": [{"until_step": 40, "weights": {"b": 1}}, {"weights": {"a": 1, "b": 3}}],
    }
    rest = {"model": {"context": 16}, "train": {"steps": 100, "batch_tokens": 320}}
    made = prepare(data, **rest)
    dataset = open_in(store, made)
    job = job_of(data, tmp_path, **rest)
    rows = list(order(job, dataset, first=0, last=100, workers=2))
    with parts_at_hand(dataset, "train", job.data) as parts:
        assert [part.name for part in parts] == ["a", "b"]
        border = samples_in(len(TokenStream(parts[0].shard_paths)), 16)
    shares = [sum(i >= border for rank in row["ranks"] for i in rank) / 20 for row in rows]
    assert shares[:40] == [1.0] * 40
    assert sum(shares[40:]) / 60 == pytest.approx(0.75, abs=0.01)


def test_datasets_are_mixed_without_being_written_again(prepare: Prepare, store: Store, tmp_path: Path) -> None:
    rng = random.Random(5)
    write_jsonl(tmp_path / "a.jsonl", [sentence(rng) for _ in range(60)])
    write_jsonl(tmp_path / "b.jsonl", [sentence(rng) for _ in range(40)])
    a = prepare({"sources": [{"path": str(tmp_path / "a.jsonl")}]})
    tokenizer = {"path": str(store.root / a["dataset"] / "tokenizer.json")}
    b = prepare({"sources": [{"path": str(tmp_path / "b.jsonl")}], "tokenizer": tokenizer})
    mixture = {
        "datasets": [
            {"dataset": Path(a["dataset"]).name, "name": "a", "weight": 1},
            {"dataset": b["dataset"], "name": "b", "weight": 1},
        ]
    }
    mixed = prepare(mixture)
    assert mixed["documents"] == 100
    assert mixed["tokens"] == a["tokens"] + b["tokens"]
    folder = store.root / mixed["dataset"]
    assert not (folder / "shards").exists()
    assert prepare(mixture)["state"] == "reused"
    assert verify(folder)["tokens"] == mixed["tokens"]
    assert len(sample(open_dataset(folder), split="train", count=3, seed=0)) == 3
    assert show(open_dataset(folder), store)["details"]["mixture"][0]["name"] == "a"
    other = prepare({"sources": [{"path": str(tmp_path / "b.jsonl")}], "tokenizer": {"vocab_size": 280}})
    with pytest.raises(DataError, match="has another tokenizer than"):
        prepare({"datasets": [{"dataset": a["dataset"]}, {"dataset": other["dataset"]}]})
    shard = next((store.root / b["dataset"] / "shards").iterdir())
    os.truncate(shard, 100)
    with pytest.raises(DataError, match=rf"{shard.name} has 100 bytes"):
        open_dataset(folder)


def test_a_source_may_name_its_split(prepare: Prepare, store: Store, tmp_path: Path) -> None:
    rng = random.Random(6)
    rows = [sentence(rng) for _ in range(30)]
    write_jsonl(tmp_path / "train.jsonl", rows[:25])
    write_jsonl(tmp_path / "test.jsonl", [*rows[25:], rows[0]])
    made = prepare(
        {
            "sources": [
                {"path": str(tmp_path / "train.jsonl"), "split": "train"},
                {"path": str(tmp_path / "test.jsonl"), "split": "test"},
            ]
        }
    )
    dataset = open_in(store, made)
    assert sorted(texts(dataset, "test")) == sorted([*rows[25:], rows[0]])  # what is measured with stays
    assert sorted(texts(dataset, "train")) == sorted(rows[1:25])
    assert made["removed"]["exact_duplicates"] == 1
