"""What a decoder writes while it is trained: what it would write by itself, at every rank's same number of passes."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_fixtures import settings
from evaluation_fixtures import job_file, lay_out_dataset
from export_fixtures import tiny_tokenizer
from tokenizers import Tokenizer

from model.config import ModelConfig
from model.generate import generate
from model.gpt import GPT
from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.data.tokens.chat import CHATML
from orchestrator.data.tokens.facts import facts
from orchestrator.errors import JobError
from orchestrator.job import JobSpec
from orchestrator.job_file import load_job
from orchestrator.objectives.causal_lm import CausalLM
from orchestrator.objectives.protocol import Tensors
from orchestrator.store import Store
from orchestrator.train.continuations import (
    continued,
    encoded_prompt,
    ends_of_text,
    make_continuations,
    picker,
    until,
)
from orchestrator.train.engine.torch_engine import TorchEngine
from orchestrator.train.group import TorchGroup

CONFIG = ModelConfig(vocab_size=300, layers=2, width=32, heads=4, kv_heads=2, hidden=64, context=16)


@pytest.fixture
def model() -> GPT:
    return GPT(CONFIG).initialise(3)


@pytest.fixture
def engine(model: GPT, alone: TorchGroup) -> TorchEngine:
    return TorchEngine(model, CausalLM(), settings(), group=alone)


@pytest.fixture
def job(tmp_path: Path) -> JobSpec:
    return load_job(job_file(tmp_path))


@pytest.fixture
def dataset(tmp_path: Path, job: JobSpec) -> Dataset:
    return open_dataset(lay_out_dataset(Store(tmp_path / "store"), job))


def with_prompts(job: JobSpec, *prompts: str) -> JobSpec:
    return job.model_copy(update={"serve": job.serve.model_copy(update={"probe_prompts": list(prompts)})})


def test_it_is_what_the_model_writes_with_a_cache(engine: TorchEngine, model: GPT, job: JobSpec) -> None:
    prompts = [[5, 6, 7], [8], list(range(20, 40))]
    found = continued(engine, prompts, context=16, picks=[picker(job, 300) for _ in prompts])
    for prompt, written in zip(prompts, found, strict=True):
        want = itertools.islice(generate(model.eval(), prompt[-8:], pick=picker(job, 300)), 8)
        assert written == list(want)


def test_a_text_does_not_depend_on_its_neighbours(engine: TorchEngine, job: JobSpec) -> None:
    def write(*prompts: list[int]) -> list[list[int]]:
        return continued(engine, prompts, context=16, picks=[picker(job, 300) for _ in prompts])

    assert write([5, 6, 7], [8]) == [*write([5, 6, 7]), *write([8])] == write([8], [5, 6, 7])[::-1]


class Counting:
    """Predicts the end of the text, always."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def outputs(self, tensors: Tensors) -> Tensors:
        shape = tuple(tensors["input_ids"].shape)
        self.shapes.append(shape)
        return {"logits": torch.nn.functional.one_hot(torch.zeros(shape, dtype=torch.int64), 300).float()}


@pytest.mark.parametrize(("context", "width"), [(1, 1), (2, 2), (5, 4), (16, 16), (1024, 64)])
@pytest.mark.parametrize("prompts", [1, 2, 3])
def test_every_rank_makes_the_same_passes_whatever_is_written(context: int, width: int, prompts: int) -> None:
    engine: Any = Counting()
    picks = [lambda logits_V: int(logits_V.argmax())] * prompts
    found = continued(engine, [[7] * 3] * prompts, context=context, picks=picks)
    passes = width // 2 * -(-prompts // 2)
    assert engine.shapes == [(2, width)] * passes
    assert found == [[0] * (width // 2)] * prompts
    assert until(found[0], {0}) == []


def test_training_is_not_disturbed(engine: TorchEngine, job: JobSpec, dataset: Dataset) -> None:
    write = make_continuations(job, dataset, engine)
    assert write is not None
    before = torch.get_rng_state()
    first = write()
    assert torch.equal(torch.get_rng_state(), before)
    assert write() == first
    assert first.columns == ("prompt", "text")
    assert [row[0] for row in first.rows] == ["def add(", "class"]
    assert json.dumps(first.to_json())


def test_who_writes_nothing(engine: TorchEngine, job: JobSpec, dataset: Dataset) -> None:
    assert make_continuations(with_prompts(job), dataset, engine) is None
    encoder = job.model_copy(update={"model": job.model.model_copy(update={"kind": "bert"})})
    assert make_continuations(encoder, dataset, engine) is None


def test_few_prompts_are_enough(engine: TorchEngine, job: JobSpec, dataset: Dataset) -> None:
    write = make_continuations(with_prompts(job, *"abcdefg"), dataset, engine)
    assert write is not None
    assert [row[0] for row in write().rows] == list("abcd")


@pytest.fixture
def chats(job: JobSpec) -> tuple[JobSpec, dict[str, Any], Tokenizer]:
    """A job of chats, with its tokenizer and the facts about it."""
    text = tiny_tokenizer(chat=True)
    train = job.training.model_copy(update={"objective": "chat"})
    return job.model_copy(update={"train": train}), asdict(facts(text, chat_template=CHATML)), Tokenizer.from_str(text)


def test_a_prompt_of_a_chat_is_a_users_turn(chats: tuple[JobSpec, dict[str, Any], Tokenizer], job: JobSpec) -> None:
    teaching, known, tokenizer = chats
    turn = tokenizer.decode(encoded_prompt("hello", teaching, tokenizer, known), skip_special_tokens=False)
    assert turn.startswith("<|im_start|>user\nhello<|im_end|>")
    assert turn.endswith("<|im_start|>assistant\n")
    end = tokenizer.token_to_id("<|im_end|>")
    assert end in ends_of_text(known)
    assert end not in encoded_prompt("<|im_end|>", job, tokenizer, known), "a plain prompt's markers are letters"
    assert encoded_prompt("", job, tokenizer, known) == [known["eos_token_id"]]


def test_a_prompt_that_no_chat_may_hold_is_said_and_costs_no_training(
    chats: tuple[JobSpec, dict[str, Any], Tokenizer], dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    teaching, known, tokenizer = chats
    forged = with_prompts(teaching, "<|im_end|>")
    with pytest.raises(JobError, match=r"serve\.probe_prompts '<\|im_end\|>'"):
        encoded_prompt("<|im_end|>", forged, tokenizer, known)
    manifest = {**dataset.manifest, "tokenizer": known}
    engine: Any = Counting()
    assert make_continuations(forged, replace(dataset, manifest=manifest), engine) is None
    assert "no texts are generated in training: serve.probe_prompts" in capsys.readouterr().err
