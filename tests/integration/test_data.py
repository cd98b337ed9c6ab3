"""Preparation through its real parts: what is counted, what is kept, where it is found again."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_fixtures import Prepare, digest_of, job_of, open_in, sentence, texts, write_jsonl
from harness import Result, Runner

from orchestrator.data.dataset import open_dataset
from orchestrator.data.find import find
from orchestrator.data.load.stream import TokenStream, samples_in
from orchestrator.data.reading import read_back
from orchestrator.data.shelf import parts_at_hand
from orchestrator.data.show import sample, show, verify
from orchestrator.errors import DataError
from orchestrator.objectives.order import order
from orchestrator.run import prepare_only, sample_order
from orchestrator.store import Store

Slipway = Callable[..., Result]
NONE = {"quality": 0, "exact_duplicates": 0, "near_duplicates": 0, "contaminated": 0, "personal_data": 0}


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
