"""What may stand in a job: closed, frozen, strict, in range, and the fields that depend on each other."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from orchestrator import job as job_module
from orchestrator import job_data
from orchestrator.errors import JobError
from orchestrator.job import Canary, JobSpec, Serve
from orchestrator.job_data import Data
from orchestrator.job_section import Section

MakeJob = Callable[..., JobSpec]
SECTIONS = [
    found
    for found in {**vars(job_module), **vars(job_data)}.values()
    if isinstance(found, type) and issubclass(found, Section) and found is not Section
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.__name__)
def test_every_section_is_closed_and_frozen(section: type[BaseModel]) -> None:
    assert section.model_config["extra"] == "forbid"
    assert section.model_config["frozen"]


def test_a_job_is_frozen_at_every_depth(tiny_job: MakeJob) -> None:
    job = tiny_job()
    with pytest.raises(ValidationError, match="frozen"):
        job.name = "other"
    with pytest.raises(ValidationError, match="frozen"):
        job.training.zero.stage = 3
    assert job.training.zero.stage == 2


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ('train.steps="3"', 'train.steps = "3": input should be a valid integer'),
        ("train.steps=true", "train.steps = true: input should be a valid integer"),
        ("train.steps=1.5", "train.steps = 1.5: input should be a valid integer"),
        ("name=7", "name = 7: input should be a valid string"),
        ("name=yes", "name = true: input should be a valid string"),
        ('data.split.test="0.1"', 'data.split.test = "0.1": input should be a valid number'),
        ("model.tie_embeddings=1", "model.tie_embeddings = 1: input should be a valid boolean"),
        ("data.sources={path: x}", 'data.sources = {"path": "x"}: input should be a valid array'),
        ("serve=fast", 'serve = "fast": input should be an object'),
        ("track.wandb.tags=[1]", "track.wandb.tags.0 = 1: input should be a valid string"),
    ],
)
def test_a_wrong_type_is_refused(tiny_job: MakeJob, override: str, problem: str) -> None:
    with pytest.raises(JobError, match=re.escape(f"--set {override.partition('=')[0]}: {problem}")):
        tiny_job(override)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train.workers.min=0", "greater than or equal to 1"),
        ("train.workers.max=0", "greater than or equal to 1"),
        ("train.workers.gpus=-1", "greater than or equal to 0"),
        ("train.steps=0", "greater than or equal to 1"),
        ("train.batch_tokens=0", "greater than or equal to 1"),
        ("train.zero.stage=4", "less than or equal to 3"),
        ("train.zero.stage=-1", "greater than or equal to 0"),
        ("train.optimizer.learning_rate=0", "greater than 0"),
        ("train.optimizer.learning_rate=.inf", "finite number"),
        ("train.optimizer.weight_decay=.nan", "finite number"),
        ("train.optimizer.beta2=1.0", "less than 1"),
        ("train.gradient_clip=-1", "greater than or equal to 0"),
        ("train.schedule.final_fraction=1.1", "less than or equal to 1"),
        ("train.checkpoint.keep_last=0", "greater than or equal to 1"),
        ("train.precision=fp64", "'fp32', 'bf16' or 'fp16'"),
        ("train.objective=masked", "'causal-lm'"),
        ("data.sources=[]", "give either data.sources or data.datasets"),
        ('data.sources=[{path: ""}]', "at least 1 character"),
        ("data.split.validation=1.0", "less than 1"),
        ("data.split.test=-0.1", "greater than or equal to 0"),
        ("data.tokenizer.vocab_size=256", "greater than or equal to 257"),
        ('data.tokenizer={path: ""}', "at least 1 character"),
        ("model.layers=0", "greater than or equal to 1"),
        ("model.context=1", "greater than or equal to 2"),
        ("model.dropout=1.0", "less than 1"),
        ("serve.port=65536", "less than or equal to 65535"),
        ('serve.probe_prompts=[""]', "at least 1 character"),
    ],
)
def test_a_value_out_of_range_is_refused(tiny_job: MakeJob, override: str, problem: str) -> None:
    with pytest.raises(JobError, match=re.escape(problem)) as caught:
        tiny_job(override)
    assert override.partition("=")[0] in caught.value.message


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["train.batch_tokens=100"], "train.batch_tokens 100 is not a multiple of model.context 16; the nearest is 96"),
        (["train.batch_tokens=3"], "train.batch_tokens 3 is not a multiple of model.context 16; the nearest is 16"),
        (["train.workers={min: 3, max: 2}"], "train.workers: min 3 is above max 2"),
        (["serve.replicas={min: 3, max: 2}"], "serve.replicas: min 3 is above max 2"),
        (["data.split={validation: 0.5, test: 0.5}"], "validation 0.5 + test 0.5 leave nothing to train on"),
        (["model.heads=3"], "model: width 32 is not a multiple of heads 3"),
        (["model.kv_heads=3"], "model: heads 4 is not a multiple of kv_heads 3"),
        (["model.width=36"], "model: width 36 / heads 4 is odd; rotary positions need an even one"),
        (["name=a/b"], "name 'a/b' must be 1 to 63 letters, digits, dots, dashes or underscores"),
        (["name=.hidden"], "name '.hidden' must be"),
        ([f"name={'x' * 64}"], "must be 1 to 63 letters"),
        (["model.vocab_size=300"], "model.vocab_size 300 is below data.tokenizer.vocab_size 4096"),
        (
            ["data.tokenizer={path: tokenizer.json, vocab_size: 300}"],
            "data.tokenizer: path names a finished tokenizer, so vocab_size cannot be given beside it",
        ),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(tiny_job: MakeJob, overrides: list[str], problem: str) -> None:
    with pytest.raises(JobError, match=re.escape(problem)):
        tiny_job(*overrides)


def test_max_workers_follow_min(tiny_job: MakeJob) -> None:
    assert tiny_job("train.workers={min: 3}").train.workers.max == 3
    assert tiny_job("train.workers={max: 3}").train.workers.min == 1


def test_a_tokenizer_is_trained_unless_one_is_given(tiny_job: MakeJob) -> None:
    assert tiny_job().data.tokenizer.train == "bpe"
    given = tiny_job("data.tokenizer={path: tokenizer.json}").data.tokenizer
    assert (given.train, given.path) == (None, "tokenizer.json")


def test_sizes_of_the_model_are_derived_unless_given(tiny_job: MakeJob) -> None:
    derived = tiny_job().model.config(vocab_size=300)
    assert (derived.vocab_size, derived.kv_heads, derived.hidden) == (300, 4, 128)
    given = tiny_job("model.kv_heads=2", "model.hidden=64", "model.vocab_size=5000").model.config(vocab_size=300)
    assert (given.vocab_size, given.kv_heads, given.hidden) == (5000, 2, 64)


def test_an_integer_stands_for_a_number(tiny_job: MakeJob) -> None:
    rate = tiny_job("train.optimizer.learning_rate=1").train.optimizer.learning_rate
    assert isinstance(rate, float)


@pytest.mark.parametrize(
    "override",
    [
        "clean.html=true",
        "clean.quality=gopher",
        "clean.rules={min_words: 3}",
        "clean.language={keep: [en]}",
        "sentence_ends=true",
    ],
)
def test_what_does_nothing_to_labelled_rows_is_refused(override: str) -> None:
    key, _, value = override.partition("=")
    data = Data.model_validate({"sources": [{"path": "x"}]})
    changed: object = yaml.safe_load(value)
    for name in reversed(key.split(".")):
        changed = {name: changed}
    assert Data.model_validate({"sources": [{"path": "x"}], **changed}) != data
    with pytest.raises(ValidationError, match=rf"data\.{key.split('=')[0]} goes with data\.kind text only"):
        Data.model_validate({"kind": "classification", "sources": [{"path": "x"}], **changed})


@pytest.mark.parametrize(
    ("written", "seconds"), [("2m", 120.0), ("90s", 90.0), (30, 30.0), (0.5, 0.5), ("1.5 h", 5400.0)]
)
def test_how_a_version_is_tried_out_is_a_share_a_span_and_a_shadow(written: Any, seconds: float) -> None:
    canary = Canary.model_validate({"share": 0.25, "for": written, "shadow": True})
    assert (canary.share, canary.for_s, canary.shadow) == (0.25, seconds, True)
    assert Canary.model_validate(canary.model_dump(mode="json")) == canary
    for wrong in ({"for": "2"}, {"for": 0}, {"share": 0.0}, {"share": 1.5}, {"span": 3}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Canary.model_validate(wrong)


def test_vllm_serves_decoders_without_our_8_bits() -> None:
    assert Serve(engine="vllm").engine == "vllm"
    with pytest.raises(ValueError, match=r"serve\.int8 goes with serve\.engine slipway"):
        Serve(engine="vllm", int8=True)
