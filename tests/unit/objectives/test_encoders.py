"""From a job and a prepared dataset to losses and scores, for each objective of encoders."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from data_fixtures import job_of
from encoder_fixtures import mean_loss, read_step, score

from model.families import build
from orchestrator.data.dataset import Dataset
from orchestrator.data.labelled.kinds import labelled_kind
from orchestrator.data.labelled.shards import write_rows
from orchestrator.data.shards import write_shard
from orchestrator.data.tokens.encoder import Encoder
from orchestrator.data.tokens.facts import load
from orchestrator.data.tokens.train import train_tokenizer
from orchestrator.data.values import Record
from orchestrator.errors import DataError, JobError
from orchestrator.job import JobSpec
from orchestrator.job_data import Source
from orchestrator.objectives.encoders import encoder_examples, encoder_feed, encoder_task
from orchestrator.objectives.question_answering import candidate

SENTENCES = [
    f"the {who} {does} at {place} ."
    for who in ("ship", "crew")
    for does in ("sails", "sings")
    for place in ("Dover", "dawn")
]
TEXT = " ".join(SENTENCES + ["a crewsings , a shipdawn and sailscrew ."] * 3)
"""Words that the tokenizer has not met among those that it has."""
ROWS: dict[str, list[dict[str, Any]]] = {
    "classification": [{"text": s, "label": "good" if "sings" in s else "bad"} for s in SENTENCES],
    "token-classification": [
        {"tokens": s.split(), "tags": ["B-place" if word == "Dover" else "O" for word in s.split()]} for s in SENTENCES
    ],
    "question-answering": [
        {
            "question": "where to ?",
            "context": " ".join(SENTENCES[i:] + SENTENCES[:i]),
            "answers": {"text": ["Dover"], "answer_start": [(SENTENCES[i:] + SENTENCES[:i])[0].find("Dover")]},
        }
        for i in range(0, 8, 2)
    ],
}
Made = tuple[JobSpec, Dataset]


def made(folder: Path, kind: str, *, tokenizer: dict[str, Any] | None = None, context: int = 32, **train: Any) -> Made:
    """A job, and the dataset that `slipway prepare` would make for it: one split in both roles."""
    source = Source(path=str(folder))
    job = job_of(
        {
            "kind": kind,
            "sources": [{"path": str(folder)}],
            "tokenizer": {"train": "wordpiece", "vocab_size": 300} | (tokenizer or {}),
            **({"sentence_ends": True} if kind == "text" else {}),
        },
        folder,
        model={"kind": "bert", "layers": 1, "width": 16, "heads": 2, "context": context},
        train={"steps": 1, "batch_tokens": 4 * context, **train},
    )
    text = train_tokenizer(SENTENCES * 4, job.data.tokenizer)
    encoder = Encoder(text)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    labels: list[str] = []
    if kind == "text":
        documents = [encoder.encode_with_sentences([TEXT])[0] for _ in range(6)]
        tokens, rows = write_shard(folder / "0.arrow", [ids for ids, _ in documents], [ends for _, ends in documents])
    else:
        one = labelled_kind(job.data)
        records: list[Record] = [one.record(row, source) for row in ROWS[kind]]
        labels = sorted({label for record in records for label in one.labels_of(record)})
        columns = one.encode(records, encoder, labels)
        tokens, rows = int(one.lengths(columns).sum()), write_rows(folder / "0.arrow", columns, {"kind": kind})
    shard = {"path": "0.arrow", "tokens": tokens, "documents": rows, "source": 0}
    split = {"tokens": tokens, "shards": [shard]}
    facts = encoder.facts
    manifest = {
        "kind": kind,
        "vocab_size": facts.vocab_size,
        "tokenizer": asdict(facts),
        "labels": labels,
        "splits": {"train": split, "validation": split},
    }
    return job, Dataset(folder, manifest)


@pytest.mark.parametrize(
    ("kind", "train", "metrics"),
    [
        ("classification", {}, {"accuracy", "macro_f1"}),
        ("token-classification", {}, {"precision", "recall", "f1", "token_accuracy"}),
        ("question-answering", {}, {"exact_match", "f1"}),
        ("text", {}, {"perplexity", "masked_loss", "masked_accuracy"}),
        (
            "text",
            {"masking": {"next_sentence": True}},
            {"perplexity", "masked_loss", "masked_accuracy", "next_sentence_loss", "next_sentence_accuracy"},
        ),
    ],
)
def test_a_job_trains_and_is_scored(tmp_path: Path, kind: str, train: dict[str, Any], metrics: set[str]) -> None:
    job, dataset = made(tmp_path, kind, **train)
    objective, head = encoder_task(job, dataset)
    model = build(job.model.config(dataset.vocab_size), head).initialise(0)
    with contextlib.ExitStack() as leases:
        feed = encoder_feed(job, dataset, leases)
        examples = encoder_examples(job, dataset, "validation", leases)
        assert examples is not None
        assert encoder_examples(job, dataset, "test", leases) is None
        loss = mean_loss(objective, model, read_step(feed, 1, num_ranks=2))
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        found = score(objective, model.eval(), [[examples.read(0, 3)], [examples.read(3, examples.count)]])
        assert set(found.metrics) == metrics | {"loss"}
        probe = objective.inputs(feed.read(1, 0, 2).tensors)
        outputs = objective.outputs(model, {name: tensor[:, :8].clone() for name, tensor in probe.items()})
        assert outputs["logits"].shape[0] == 2
        assert feed.bytes_read > 0


def test_the_true_places_give_the_true_answers(tmp_path: Path) -> None:
    job, dataset = made(tmp_path, "question-answering", context=20)
    objective, _ = encoder_task(job, dataset)
    scorer = objective.scorer()
    with contextlib.ExitStack() as leases:
        examples = encoder_examples(job, dataset, "validation", leases)
        assert examples is not None
        assert examples.count > 4
        batch = examples.read(0, examples.count)
        logits = torch.nn.functional.one_hot(batch.tensors["targets"], batch.tensors["input_ids"].shape[1])
        logits = logits.transpose(1, 2).float() * 9
        logits[(batch.tensors["targets"] == 0).all(1)] = 0.0
        assert {candidate(w, own.numpy()).text for w, own in zip(batch.rows, logits, strict=True) if own.any()} == {
            "Dover"
        }
        scorer.add(batch, {"loss": 1.0}, {"logits": logits})
        assert scorer.result([scorer.state()]).metrics["exact_match"] == 1.0


def test_whole_words_are_hidden(tmp_path: Path) -> None:
    job, dataset = made(tmp_path, "text", masking={"share": 0.4})
    with contextlib.ExitStack() as leases:
        batch = encoder_feed(job, dataset, leases).read(1, 0, 4)
    vocabulary = load(dataset.tokenizer_path.read_text(encoding="utf-8")).get_vocab()
    goes_on = {number for token, number in vocabulary.items() if token.startswith("##")}
    pieces = 0
    for ids, places, targets in zip(
        *(batch.tensors[n] for n in ("input_ids", "masked_positions", "targets")), strict=True
    ):
        row, hidden = ids.clone(), set(places[targets != -100].tolist())
        row[places[targets != -100]] = targets[targets != -100]
        inside = [t for t in range(1, len(row)) if row[t].item() in goes_on and row[t - 1] > 4]
        assert all((t in hidden) == (t - 1 in hidden) for t in inside)
        pieces += len(inside)
    assert pieces > 4


def test_at_most_so_many_rows_are_scored(tmp_path: Path) -> None:
    job, dataset = made(tmp_path, "classification")
    with contextlib.ExitStack() as leases:
        examples = encoder_examples(job, dataset, "validation", leases, most=3)
        assert examples is not None
        assert sorted(examples.read(0, examples.count).rows) == [0, 1, 2]


def test_scores_hide_the_same_tokens_whatever_the_seed_of_the_training(tmp_path: Path) -> None:
    scored, trained = [], []
    for seed in (1, 2):
        job, dataset = made(tmp_path, "text", seed=seed)
        with contextlib.ExitStack() as leases:
            examples = encoder_examples(job, dataset, "validation", leases)
            assert examples is not None
            scored.append(examples.read(0, examples.count).tensors["masked_positions"].tolist())
            trained.append(encoder_feed(job, dataset, leases).read(1, 0, 4).tensors["masked_positions"].tolist())
    assert scored[0] == scored[1]
    assert trained[0] != trained[1]


def refusal(call: Callable[[], object], kind: type[Exception], match: str) -> str:
    with pytest.raises(kind, match=match) as caught:
        call()
    return str(getattr(caught.value, "fix", ""))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    leases = contextlib.ExitStack()
    job, dataset = made(tmp_path, "classification", tokenizer={"train": "bpe"})
    fix = refusal(lambda: encoder_feed(job, dataset, leases), JobError, r"classification needs .*\[CLS\]")
    assert "data.tokenizer.train: wordpiece" in fix
    dataset.manifest["labels"] = ["good"]
    refusal(lambda: encoder_task(job, dataset), DataError, "the dataset has 1: good")
    narrow, dataset = made(tmp_path, "classification", context=4)
    fix = refusal(lambda: encoder_feed(narrow, dataset, leases), JobError, "model.context is 4")
    assert "at least 5" in fix
    wide, dataset = made(tmp_path, "text", context=4096)
    refusal(lambda: encoder_feed(wide, dataset, leases), JobError, "model.context is 4096, but the training split has")
