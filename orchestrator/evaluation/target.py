"""What is evaluated: the weights of a run's checkpoint or of an export, and the data that belongs to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from model.config import HeadConfig, ModelConfig
from orchestrator.checkpoint import layout
from orchestrator.checkpoint.reader import Checkpoint
from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.errors import JobError, StoreError
from orchestrator.export.custom import prove_custom
from orchestrator.export.folder import TOKENIZER, build_model, read_tensors
from orchestrator.export.manifest import is_custom, read_custom_manifest, read_export_manifest
from orchestrator.export.module import load_weights, make_module
from orchestrator.export.prove import prove_export
from orchestrator.export.stage import chosen_checkpoint, export_at, named_run
from orchestrator.job import JobSpec
from orchestrator.runfolder import read_run
from orchestrator.status import prepared_dataset
from orchestrator.store import Store


@dataclass(frozen=True)
class Target:
    """A model ready to predict, with the job and the dataset that it is scored on."""

    path: Path
    """The checkpoint or the export."""
    run: Path | None
    """Where the result is written down; None for an import."""
    step: int
    model: nn.Module
    head: HeadConfig | None
    """None for a network of the user's own."""
    job: JobSpec
    dataset: Dataset


def find_target(store: Store, asked: str, job: JobSpec | None) -> Target:
    """The target of `slipway evaluate`: a run (the checkpoint that would be exported) or an export.

    Args:
        job: says what data to take instead of the run's own; an import has none of its own.

    Raises:
        StoreError, ServeError: there is no such run or export, or it does not verify.
        JobError: an import without a job, or a job whose data does not fit the model.
        DataError: the dataset is not prepared, or does not verify.
    """
    export = export_at(store, asked)
    return _of_run(store, asked, job) if export is None else _of_export(store, export, job)


def _of_run(store: Store, asked: str, job: JobSpec | None) -> Target:
    run = named_run(store, asked)
    own, dataset = read_run(run)
    checkpoint = chosen_checkpoint(run)
    data = open_dataset(dataset) if job is None else open_dataset(prepared_dataset(job, store))
    model, config, head = _network(checkpoint, own)
    _require_kind(job or own, checkpoint.path, custom=config is None)
    if job is not None and config is not None:
        _require_fit(job, data, config, (dataset / TOKENIZER).read_text(encoding="utf-8"))
    return Target(checkpoint.path, run, checkpoint.step, model, head, job or own, data)


def _network(checkpoint: Checkpoint, job: JobSpec) -> tuple[nn.Module, ModelConfig | None, HeadConfig | None]:
    """The checkpoint's network with its weights."""
    weights = read_tensors(checkpoint.path / layout.WEIGHTS)
    if job.model.kind == "custom":
        module = make_module(job.model, seed=job.training.seed)
        return load_weights(module, weights, origin=checkpoint.path), None, None
    try:
        description = json.loads((checkpoint.path / layout.MODEL_CONFIG).read_text(encoding="utf-8"))
        head = HeadConfig.from_dict(description.pop("head"))
        config = ModelConfig.from_dict(description)
        return build_model(config, weights, head), config, head
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise StoreError(
            f"{checkpoint.path} does not make a model: {error!r}", fix="train the run again with this version"
        ) from None


def _of_export(store: Store, export: Path, job: JobSpec | None) -> Target:
    custom = is_custom(export)
    manifest = read_custom_manifest(export) if custom else read_export_manifest(export)
    run = _run_of(store, export, manifest.run)
    if job is not None:
        data = open_dataset(prepared_dataset(job, store))
    elif run is not None:
        job, dataset = read_run(run)
        data = open_dataset(dataset)
    else:
        raise JobError(
            f"{export.name} is an import: it has no data of its own"
            if manifest.origin == "imported"
            else f"the run {manifest.run} of {export} is not in {store.root}",
            fix="name a job whose dataset is prepared: --job JOB",
        )
    _require_kind(job, export, custom=custom)
    if custom:
        return Target(export, run, manifest.step, prove_custom(export).module, None, job, data)
    proven = prove_export(export)
    _require_fit(job, data, proven.config, (export / TOKENIZER).read_text(encoding="utf-8"))
    return Target(export, run, manifest.step, proven.model, proven.manifest.head.config, job, data)


def _run_of(store: Store, export: Path, name: str | None) -> Path | None:
    """The run that an export lies in, or whose name it has; an import has none."""
    if name is None:
        return None
    candidates = (export.parent.parent, store.runs / name)
    return next((run for run in candidates if (run / "job.yaml").is_file()), None)


def _require_kind(job: JobSpec, weights: Path, *, custom: bool) -> None:
    """Rows of columns and rows of tokens are read by different networks."""
    if custom != (job.model.kind == "custom"):
        raise JobError(
            f"the job {job.name} is for model.kind {job.model.kind}, {weights} is "
            + ("a network of your own" if custom else "a gpt or bert"),
            fix="name a job of the model's own kind",
        )


def _require_fit(job: JobSpec, dataset: Dataset, config: ModelConfig, tokenizer: str) -> None:
    """Data of another tokenizer or of longer samples would give scores that mean nothing."""
    if _plain(tokenizer) != _plain(dataset.tokenizer_path.read_text(encoding="utf-8")):
        raise JobError(
            f"the dataset {dataset.path.name} has another tokenizer than the model",
            fix="prepare it with the model's: data.tokenizer: {path: .../tokenizer.json}",
        )
    if job.model.context > config.context:
        raise JobError(
            f"model.context of the job is {job.model.context}, the model has {config.context} positions",
            fix=f"--set model.context={config.context}",
        )


def _plain(tokenizer: str) -> Mapping[str, Any]:
    """A tokenizer.json without what it says of cutting and padding, which changes no token."""
    return {**json.loads(tokenizer), "truncation": None, "padding": None}
