"""A run of a tiny decoder, laid out as training leaves it, with a dataset of its own."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from export_fixtures import LM, TEXTS, tiny_checkpoint, tiny_tokenizer
from tokenizers import Tokenizer

from model.config import HeadConfig, ModelConfig
from orchestrator.checkpoint.layout import Progress
from orchestrator.data.dataset import FORMAT
from orchestrator.data.labelled.kinds import labelled_kind
from orchestrator.data.labelled.shards import write_rows
from orchestrator.data.shards import write_shard
from orchestrator.data.sources.listing import list_sources
from orchestrator.data.tokens.encoder import Encoder
from orchestrator.data.tokens.facts import facts
from orchestrator.identity import run_hash
from orchestrator.job import JobSpec
from orchestrator.job_file import job_to_yaml, load_job
from orchestrator.status import dataset_identity
from orchestrator.store import MARKER, Store, commit, read_manifest, write_json, writing

CONTEXT = 16
CLASSIFIED = [{"text": text, "label": ("good", "so so", "bad")[i % 3]} for i, text in enumerate(TEXTS)]
SIZES = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "hidden": 64, "context": CONTEXT}


def job_file(folder: Path, name: str = "tiny", **model: int) -> Path:
    source = folder / "text" / "a.txt"
    if not source.exists():
        source.parent.mkdir()
        source.write_text("".join(TEXTS), encoding="utf-8")
    document = {
        "name": name,
        "data": {
            "sources": [{"path": str(folder / "text"), "include": "*.txt"}],
            "tokenizer": {"vocab_size": 300},
            "split": {"validation": 0.2, "test": 0.2},
        },
        "model": {**SIZES, **model},
        "train": {"steps": 20, "batch_tokens": 64, "micro_batch": 3, "precision": "fp32"},
        "serve": {"probe_prompts": ["def add(", "class"]},
        "track": {"wandb": {"mode": "disabled"}},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(document))
    return path


def lay_out_dataset(store: Store, job: JobSpec, *, text: str | None = None) -> Path:
    """Committed shards of the three splits; the test split has no document."""
    identity = dataset_identity(job, list_sources(job.data, {}), store)
    text = text or tiny_tokenizer()
    known = facts(text)
    tokenizer = Tokenizer.from_str(text)
    final = store.datasets / f"{job.name}-{identity}"
    with writing(final) as tmp:
        (tmp / "tokenizer.json").write_text(text, encoding="utf-8")
        splits = {"test": {"tokens": 0, "documents": 0, "shards": []}}
        for name, count in (("train", 8), ("validation", 4)):
            ids = [[*tokenizer.encode(t).ids, known.eos_token_id] for t in TEXTS[:count]]
            tokens, documents = write_shard(tmp / f"{name}.arrow", [np.array(d, dtype=np.uint16) for d in ids])
            row = {"path": f"{name}.arrow", "tokens": tokens, "documents": documents, "source": 0}
            splits[name] = {"tokens": tokens, "documents": documents, "shards": [row]}
        about = {
            "format": FORMAT,
            "hash": identity,
            "kind": "text",
            "vocab_size": known.vocab_size,
            "tokenizer": asdict(known),
            "labels": [],
            "splits": splits,
            "sources": {"names": ["text"], "files": 1, "bytes": 400},
            "counts": {},
        }
        commit(tmp, final, about)
    return final


def lay_out_run(
    store: Store, job: JobSpec, dataset: Path, *, config: ModelConfig | None = None, head: HeadConfig = LM
) -> Path:
    """With checkpoints of steps 10 and 20."""
    folder = store.run(job.name, run_hash(job, dataset.name.rpartition("-")[2]))
    folder.mkdir(parents=True)
    (folder / "job.yaml").write_text(job_to_yaml(job))
    write_json(folder / "run.json", {"format": 1, "hash": "x", "dataset": f"../../datasets/{dataset.name}"})
    for step in (10, 20):
        lay_out_checkpoint(folder, step, config or job.model.config(300), head=head)
    return folder


def lay_out_classified(store: Store, folder: Path) -> Path:
    """A run of a classifier with three labels."""
    return lay_out_labelled(store, folder, "classification", CLASSIFIED, {"kind": "bert", "hidden": 64})


def lay_out_labelled(store: Store, folder: Path, kind: str, rows: list[dict[str, Any]], model: dict[str, Any]) -> Path:
    """A run on labelled rows, all of which are in both splits."""
    source, path = folder / f"{kind}.jsonl", folder / f"{kind}.yaml"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train: Literal["bpe", "wordpiece"] = "wordpiece" if model["kind"] == "bert" else "bpe"
    document = {
        "name": kind,
        "data": {"kind": kind, "sources": [{"path": str(source)}], "tokenizer": {"train": train, "vocab_size": 300}},
        "model": {"layers": 2, "width": 32, "heads": 4, "context": 64, **model},
        "train": {"steps": 20, "batch_tokens": 64, "micro_batch": 5, "precision": "fp32"},
        "track": {"wandb": {"mode": "disabled"}},
    }
    path.write_text(json.dumps(document))
    job = load_job(path)
    encoder, reader = Encoder(tiny_tokenizer(train)), labelled_kind(job.data)
    records = [reader.record(row, job.data.sources[0]) for row in rows]
    labels = sorted({label for record in records for label in reader.labels_of(record)})
    columns = reader.encode(records, encoder, labels)
    final = store.datasets / f"{kind}-0123456789ab"
    with writing(final) as tmp:
        (tmp / "tokenizer.json").write_text(tiny_tokenizer(train), encoding="utf-8")
        count = write_rows(tmp / "0.arrow", columns, {"kind": kind})
        tokens = int(reader.lengths(columns).sum())
        shard = {"path": "0.arrow", "tokens": tokens, "documents": count, "source": 0}
        split = {"tokens": tokens, "documents": count, "shards": [shard]}
        about = {
            "format": FORMAT,
            "hash": "0123456789ab",
            "kind": kind,
            "vocab_size": encoder.facts.vocab_size,
            "tokenizer": asdict(encoder.facts),
            "labels": labels,
            "splits": {"train": split, "validation": split},
            "sources": {"names": ["rows"], "files": 1, "bytes": 400},
            "counts": {},
        }
        commit(tmp, final, about)
    head = HeadConfig("classification", tuple(labels)) if labels else LM
    return lay_out_run(store, job, final, config=job.model.config(encoder.facts.vocab_size), head=head)


def lay_out_checkpoint(
    run: Path, step: int, config: ModelConfig, *, head: HeadConfig = LM, best_step: int | None = None
) -> Path:
    folder = tiny_checkpoint(run / "checkpoints" / f"step-{step:08d}", config=config, head=head)
    manifest = read_manifest(folder)
    aside = folder.rename(run / "aside")
    (aside / MARKER).unlink()
    (aside / "manifest.json").unlink()
    progress = Progress(step=step, samples=step * 4, tokens=step * 64, train_loss=2.0, best_step=best_step)
    write_json(aside / "progress.json", json.loads(progress.model_dump_json()))
    (run / "checkpoints").mkdir(exist_ok=True)
    versions = {"torch": "2.13.0"}
    commit(aside, folder, {**{k: v for k, v in manifest.items() if k != "files"}, "step": step, "versions": versions})
    return folder
