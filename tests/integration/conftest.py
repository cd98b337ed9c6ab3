"""One Ray for all integration tests, and small text."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_fixtures import Prepare, job_of
from harness import Runner

from orchestrator.cluster.connect import Session
from orchestrator.run import prepare_only
from orchestrator.store import Store

WORDS = ["the", "ship", "sails", "at", "dawn", "and", "crew", "sings", "of", "storms,", "ropes,", "gulls", "home"]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty small documents, the same on every machine."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(7)
    for i in range(60):
        lines = (" ".join(rng.choices(WORDS, k=9)) for _ in range(rng.randint(20, 60)))
        (folder / f"doc-{i:02d}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def job_file(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job in the quickstart's shape, in small: fp32, so that losses can be compared to the last bit."""
    path = tmp_path_factory.mktemp("jobs") / "tiny.yaml"
    path.write_text(
        f"""\
name: tiny
data:
  sources: [{{path: {corpus}, include: "*.txt", format: text}}]
  tokenizer: {{train: bpe, vocab_size: 320}}
  split: {{validation: 0.05, test: 0.05}}
model: {{kind: gpt, layers: 2, width: 32, heads: 2, kv_heads: 1, context: 32, dropout: 0.1}}
train:
  steps: 40
  batch_tokens: 320
  optimizer: {{learning_rate: 3.0e-3}}
  schedule: {{name: cosine, warmup_steps: 2}}
  precision: fp32
  zero: {{stage: 2}}
  workers: {{min: 1, max: 2}}
  checkpoint: {{every_steps: 4}}
  evaluate: {{every_steps: 20}}
  seed: 3
serve: {{probe_prompts: ["the ship "], max_tokens: 32}}
track: {{wandb: {{mode: offline}}}}
"""
    )
    return path


@pytest.fixture(scope="session")
def session() -> Iterator[Session]:
    """A real local Ray with two workers' worth of CPUs, started when the first test needs it."""
    with Session() as shared:
        yield shared


@pytest.fixture
def runner(job_file: Path, session: Session) -> Runner:
    return Runner(job_file, session)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def prepare(runner: Runner, store: Store, tmp_path: Path) -> Prepare:
    """Prepares a data section; returns the document of `prepare --json`."""

    def run(data: dict[str, Any], *, into: Store = store, **rest: Any) -> dict[str, Any]:
        return prepare_only(job_of(data, tmp_path, **rest), store=into, session=runner.session)

    return run
