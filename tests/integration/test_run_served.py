"""Whatever a job trains, `run` takes it to a service, and proves that with a request of the kind that it is for."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from custom_fixtures import ROOT, job
from harness import free_port

from orchestrator.cluster.connect import Session
from orchestrator.job import JobSpec
from orchestrator.job_file import load_job
from orchestrator.run import Outcome, run
from orchestrator.serve.deployment.deploy import Service
from orchestrator.store import Store

BERT = {"kind": "bert", "layers": 1, "width": 32, "heads": 2, "context": 32}
TRAIN = {"steps": 30, "batch_tokens": 512, "optimizer": {"learning_rate": 3e-3}, "precision": "fp32"}
TEXTS = ["a fine and lovely film", "a dull and awful film"]


def job_of(tmp_path: Path, data: dict[str, Any], train: dict[str, Any] | None = None) -> JobSpec:
    whole = {
        "name": "small",
        "data": {"tokenizer": {"train": "wordpiece", "vocab_size": 300}, "split": {"validation": 0.1}, **data},
        "model": BERT,
        "train": {**TRAIN, "workers": {"min": 1, "max": 1}, "zero": {"stage": 0}, **(train or {})},
        "serve": {"port": free_port(), "probe_prompts": TEXTS},
        "track": {"wandb": {"mode": "disabled"}},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(whole))
    return load_job(path)


def reviews(tmp_path: Path) -> Path:
    rng, path = random.Random(5), tmp_path / "reviews.csv"
    said = {"good": ["fine", "lovely", "warm"], "bad": ["dull", "awful", "cold"]}
    lines = [
        f"a {rng.choice(words)} and {rng.choice(words)} film,{label}"
        for label, words in said.items()
        for _ in range(150)
    ]
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    return path


def whole_way(asked: JobSpec, store: Store, session: Session, path: str, body: dict[str, Any]) -> tuple[Outcome, Any]:
    """The outcome, and what the service answered while it was there."""
    answers: list[httpx.Response] = []

    def look(service: Service, _: Outcome) -> None:
        answers.append(httpx.post(f"{service.url}{path}", json={"model": asked.name, **body}, timeout=30))

    outcome = run(asked, store=store, session=session, until="serve", while_serving=look)
    assert set(outcome.stages.values()) == {"done"}
    (answer,) = answers
    assert answer.status_code == 200, answer.text
    return outcome, answer.json()


def test_a_classifier_says_what_its_texts_are(session: Session, store: Store, tmp_path: Path) -> None:
    source = {"path": str(reviews(tmp_path)), "format": "csv"}
    asked = job_of(tmp_path, {"kind": "classification", "sources": [source]}, {"steps": 60})
    outcome, answer = whole_way(asked, store, session, "/classify", {"input": TEXTS})
    assert [each["label"] for each in answer["data"]] == ["good", "bad"]
    assert [sample["prompt"] for sample in outcome.samples or []] == TEXTS
    for sample, each in zip(outcome.samples or [], answer["data"], strict=True):
        assert sample["completion"] == f"{each['label']} ({each['probabilities'][each['label']]:.0%})"


def test_an_encoder_without_a_head_of_its_own_gives_vectors(
    session: Session, store: Store, tmp_path: Path, corpus: Path
) -> None:
    asked = job_of(tmp_path, {"sources": [{"path": str(corpus), "include": "*.txt", "format": "text"}]})
    outcome, answer = whole_way(asked, store, session, "/embeddings", {"input": TEXTS})
    assert [len(each["embedding"]) for each in answer["data"]] == [32, 32]
    assert [sample["completion"].split(":")[0] for sample in outcome.samples or []] == ["32 numbers"] * 2


def test_a_network_of_ones_own_predicts_rows(session: Session, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    asked = job("transactions", "track.wandb.mode=disabled", "train.steps=5", f"serve.port={free_port()}")
    outcome = run(asked, store=store, session=session, until="serve", while_serving=lambda *_: None)
    assert outcome.stages["serve"] == "done"
    assert 0 < len(outcome.samples or []) <= 3
    assert all("amounts" in sample["prompt"] and float(sample["completion"]) >= 0.0 for sample in outcome.samples or [])
