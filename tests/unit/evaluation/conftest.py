"""Runs and datasets for the tests of scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from evaluation_fixtures import job_file, lay_out_checkpoint, lay_out_dataset, lay_out_run
from export_fixtures import HEADS, SHAPES

from orchestrator.job import JobSpec
from orchestrator.job_file import load_job
from orchestrator.store import Store


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def job(tmp_path: Path) -> JobSpec:
    return load_job(job_file(tmp_path))


@pytest.fixture
def dataset(store: Store, job: JobSpec) -> Path:
    return lay_out_dataset(store, job)


@pytest.fixture
def run(store: Store, job: JobSpec, dataset: Path) -> Path:
    return lay_out_run(store, job, dataset)


@pytest.fixture
def bert_run(run: Path) -> Path:
    """The run, with the checkpoint of an encoder in it: nobody's job."""
    lay_out_checkpoint(run, 30, SHAPES["bert"], head=HEADS["mlm"])
    return run


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., JobSpec]:
    return lambda name="tiny", **model: load_job(job_file(tmp_path, name, **model))


@pytest.fixture
def prepared(store: Store) -> Callable[..., Path]:
    return lambda job, **how: lay_out_dataset(store, job, **how)
