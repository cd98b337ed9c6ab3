"""Names that hold hashes: stable where nothing that matters changed, other where it did."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.identity import HASH_LENGTH, canonical, content_hash, dataset_hash, run_hash, wandb_run_id
from orchestrator.job import JobSpec

MakeJob = Callable[..., JobSpec]
LISTING: list[list[Any]] = [[0, "a.txt", 10, 1], [0, "b/c.txt", 20, 2]]
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)


def test_the_canonical_form_is_this_one() -> None:
    assert canonical({"b": (1, 2.5), "a": [None, True, "é", 1e-3]}) == '{"a":[null,true,"é",0.001],"b":[1,2.5]}'


def test_a_hash_is_the_same_on_every_machine() -> None:
    assert content_hash({"b": 1, "a": "é"}) == content_hash({"a": "é", "b": 1}) == "aa58fba84836"


@given(plain)
def test_the_canonical_form_is_stable(value: Any) -> None:
    assert canonical(json.loads(canonical(value))) == canonical(value)
    assert len(content_hash(value)) == HASH_LENGTH


@given(st.dictionaries(st.text(max_size=4), st.integers(), min_size=2, max_size=6), st.randoms())
def test_the_order_of_keys_does_not_matter(value: dict[str, int], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert content_hash(dict(items)) == content_hash(value)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"a": [1, {2, 3}]}, r"value\.a\[1\] is a set, which has no stable form; convert it to plain data"),
        ({"a": {"b": math.nan}}, r"value\.a\.b is nan, which has no stable form"),
        ([-math.inf], r"value\[0\] is -inf"),
        ({"a": object()}, r"value\.a is a object"),
        ({"a": Path("x")}, r"value\.a is a PosixPath"),
        ({"a": b"x"}, r"value\.a is a bytes"),
        ({"a": {1: 2}}, r"value\.a has the key 1, which is no text"),
    ],
)
def test_what_has_no_stable_form_is_refused_by_its_place(value: Any, problem: str) -> None:
    with pytest.raises(TypeError, match=problem):
        canonical(value)


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "model={layers: 3, context: 32}",
        "train.steps=11",
        "train.seed=4",
        "serve.port=9000",
        "track.wandb.mode=disabled",
        "data.sources=[{path: elsewhere/*.txt}]",  # the same listing at another place
        "data.sources=[{path: docs, include: '*.txt', exclude: [none]}]",
        "data.sources=[{path: docs/*.txt, weight: 2}]",
        "data.curriculum=[{weights: {source-0: 1}}]",
        "data.max_rejected=1",
    ],
)
def test_a_dataset_stays_when_what_does_not_shape_it_changes(tiny_job: MakeJob, override: str) -> None:
    assert dataset_hash(tiny_job(override), LISTING, None) == dataset_hash(tiny_job(), LISTING, None)


@pytest.mark.parametrize(
    "override",
    [
        "data.split.validation=0.2",
        "data.split.test=0",
        "data.tokenizer.vocab_size=300",
        "data.tokenizer.sample_bytes=1000",
        "data.sources=[{path: docs/*.txt, format: jsonl}]",
        "data.sources=[{path: docs/*.txt, split: train}]",
        "data.sources=[{path: docs/*.txt, name: other}]",
        "data.clean.quality=gopher",
        "data.clean.rules.max_words=10",
        "data.deduplicate.near=off",
        "data.deduplicate.near.similarity=0.9",
        "data.privacy.action=drop",
        "data.sentence_ends=true",
        "data.sources=[{path: docs/*.txt, text: body}]",
    ],
)
def test_a_dataset_is_another_when_its_settings_change(tiny_job: MakeJob, override: str) -> None:
    assert dataset_hash(tiny_job(override), LISTING, None) != dataset_hash(tiny_job(), LISTING, None)


@pytest.mark.parametrize(("row", "column", "value"), [(0, 0, 1), (0, 1, "z.txt"), (1, 2, 21), (1, 3, 3)])
def test_a_dataset_is_another_when_a_file_changes(tiny_job: MakeJob, row: int, column: int, value: Any) -> None:
    changed = [list(r) for r in LISTING]
    changed[row][column] = value
    hashes = {dataset_hash(tiny_job(), listing, None) for listing in (LISTING, changed, LISTING[:1], LISTING[::-1])}
    assert len(hashes) == 4


def test_a_dataset_is_another_when_an_evaluation_set_changes(tiny_job: MakeJob) -> None:
    job = tiny_job("data.deduplicate.against=[eval.jsonl]")
    elsewhere = tiny_job("data.deduplicate.against=[other/eval.jsonl]")
    first = dataset_hash(job, LISTING, None, against=LISTING[:1])
    assert first == dataset_hash(elsewhere, LISTING, None, against=LISTING[:1])
    assert first != dataset_hash(job, LISTING, None, against=LISTING[1:])


def test_a_given_tokenizer_counts_by_its_content(tiny_job: MakeJob) -> None:
    here, there = tiny_job("data.tokenizer={path: a.json}"), tiny_job("data.tokenizer={path: b.json}")
    assert dataset_hash(here, LISTING, "11") == dataset_hash(there, LISTING, "11") != dataset_hash(here, LISTING, "22")


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "train.workers={min: 1, max: 8, cpus: 4, gpus: 1}",
        "train.checkpoint={every_steps: 1, keep_last: 9}",
        "train.retries={worker: 0, preemption: 5}",
        "train.watchdog={step_s: 5}",
        "train.guard={non_finite: rollback, z: 20}",
        "train.log_every_steps=1",
        "serve={port: 9000, replicas: {max: 4}}",
        "track.wandb={project: other, mode: disabled}",
    ],
)
def test_a_run_goes_on_when_what_does_not_shape_it_changes(tiny_job: MakeJob, override: str) -> None:
    assert run_hash(tiny_job(override), "d") == run_hash(tiny_job(), "d")


@pytest.mark.parametrize(
    "override",
    [
        "data.sources=[{path: docs/*.txt, weight: 2}]",
        "data.curriculum=[{weights: {source-0: 1}}]",
        "train.steps=11",
        "train.seed=1",
        "train.zero.stage=3",
        "train.precision=bf16",
        "train.batch_tokens=64",
        "train.micro_batch=1",
        "train.optimizer.learning_rate=2e-3",
        "train.schedule.warmup_steps=1",
        "train.gradient_clip=0.5",
        "train.evaluate.every_steps=5",
        "model.layers=3",
        "model.dropout=0.1",
        "model.vocab_size=5000",
    ],
)
def test_a_run_is_another_when_its_settings_change(tiny_job: MakeJob, override: str) -> None:
    assert run_hash(tiny_job(override), "d") != run_hash(tiny_job(), "d")


def test_a_run_is_another_on_another_dataset(tiny_job: MakeJob) -> None:
    assert run_hash(tiny_job(), "d") != run_hash(tiny_job(), "e")


def test_a_run_has_one_id_that_wandb_takes() -> None:
    assert wandb_run_id("tiny-0123456789ab") == wandb_run_id("tiny-0123456789ab")
    long = [wandb_run_id(name * 40) for name in ("ab", "ba")]
    assert len(set(long)) == 2
    assert all(len(name) == 64 for name in long)
