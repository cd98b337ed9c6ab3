"""Export a network of the user's own, and prove such an export before it is used.

The folder holds weights, a description and the proof: rows with the predictions of the trainer and of these weights. It
holds no code. The class is made again from its name, and must predict what it predicted.

B rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from orchestrator.checkpoint import layout
from orchestrator.errors import JobError, ServeError, StoreError, storage_error
from orchestrator.export.card import ExportFacts, custom_card
from orchestrator.export.folder import CONFIG, PROBE, WEIGHTS, as_json, read_tensors, tensor_sha256
from orchestrator.export.manifest import FORMAT, CustomManifest, broken, read_custom_manifest
from orchestrator.export.module import describe, load_weights, make_module, predictions_of, say_if_source_changed
from orchestrator.export.prove import verified_tensors
from orchestrator.job import JobSpec
from orchestrator.job_model import Model
from orchestrator.store import commit, read_manifest, verify_folder, writing

EXACT_TOLERANCE = 1e-4
"""fp32 against fp32: largest |difference|, relative to the largest |prediction| where that is above 1."""
ROUNDED_TOLERANCE = 0.05
"""Another type than fp32: mean |difference|, relative to the largest |prediction|."""
_PREDICTIONS, _TRAINER, _COLUMN = "predictions", "trainer_predictions", "column."
_BATCH_ROWS = 1024


class CustomConfig(BaseModel):
    """`config.json`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model_type: Literal["slipway-custom"] = "slipway-custom"
    class_name: str
    """As `package.module:Class`."""
    settings: dict[str, Any]
    columns: dict[str, str]
    """What predictions are made from: name -> type, such as `float32[8]`."""
    targets: dict[str, str]
    """What else it was trained on."""
    source_sha256: str | None
    """Of the file that the class was in."""

    def to_json(self) -> dict[str, Any]:
        """As the file has it."""
        data = self.model_dump()
        return {"model_type": data.pop("model_type"), "class": data.pop("class_name"), **data}

    @property
    def model(self) -> Model:
        """The section of a job that makes the module."""
        return Model.model_validate({"kind": "custom", "class": self.class_name, "settings": self.settings})


@dataclass(frozen=True)
class ProvenNetwork:
    """A network of the user's own that predicts what it did, in evaluation mode."""

    module: nn.Module
    config: CustomConfig
    manifest: CustomManifest
    probe: dict[str, Tensor]
    """A few rows, by column."""

    def predict(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Predictions [B, ...] in fp32 on the CPU for rows [B] or [B, size] of `config.columns`; others are left out.

        Raises:
            JobError: the module returned none.
        """
        return _predict(self.module, {name: columns[name] for name in self.config.columns}, self.config.class_name)


@dataclass(frozen=True)
class _Rows:
    """The probe of a checkpoint."""

    columns: dict[str, Tensor]
    trainer: Tensor
    """Predictions for them."""
    exact: bool
    """Whether these were computed in fp32."""


def write_custom_export(*, job: JobSpec, checkpoint: Path, into: Path, facts: ExportFacts) -> Path:
    """Write the export of a verified checkpoint. Returns `into`.

    Raises:
        JobError: the class cannot be imported or made any more.
        StoreError: the weights do not fit it or do not predict what the trainer recorded, or storage failed.
    """
    trained = read_manifest(checkpoint)
    columns = read_tensors(checkpoint / layout.PROBE)
    rows = _Rows(columns, columns.pop("trainer_logits").float(), trained["precision"] == "fp32")
    try:
        with writing(into) as tmp:
            weights = _write_weights(checkpoint, tmp)
            config = _write_proof(job, checkpoint, tmp, rows)
            card = custom_card(
                facts,
                spelled=config.class_name,
                columns=config.columns,
                parameters=sum(tensor.numel() for tensor in weights.values()),
                step=trained["step"],
                precision=trained["precision"],
            )
            (tmp / "README.md").write_text(card, encoding="utf-8")
            manifest = {
                "format": FORMAT,
                "name": facts.name,
                "family": "custom",
                "origin": "trained",
                "run": facts.run,
                "dataset": facts.dataset,
                "step": trained["step"],
                "attempt": trained.get("attempt"),
                "precision": trained["precision"],
                "tensors": {name: tensor_sha256(tensor) for name, tensor in sorted(weights.items())},
            }
            commit(tmp, into, manifest)
    except OSError as error:
        raise storage_error(error, doing=f"exporting {checkpoint.name}") from error
    return into


def _write_weights(checkpoint: Path, folder: Path) -> dict[str, Tensor]:
    found = read_tensors(checkpoint / layout.WEIGHTS)
    weights = {name: (t.float() if t.is_floating_point() else t).contiguous() for name, t in found.items()}
    save_file(weights, folder / WEIGHTS)
    return weights


def _write_proof(job: JobSpec, checkpoint: Path, folder: Path, rows: _Rows) -> CustomConfig:
    """config.json and the probe, computed with the weights as they lie in the folder."""
    spelled = str(job.model.class_)
    module = make_module(job.model, seed=job.training.seed)
    now = describe(job.model, module)
    before = json.loads((checkpoint / layout.MODEL_CONFIG).read_text(encoding="utf-8"))
    say_if_source_changed(before, now, since=f"{checkpoint.name} was written")
    load_weights(module, read_tensors(folder / WEIGHTS), origin=checkpoint)
    predictions = _predict(module, rows.columns, spelled)
    if found := difference(rows.trainer, predictions, exact=rows.exact):
        raise StoreError(
            f"{checkpoint} does not predict what its trainer recorded: {found}",
            fix="put back the code that it was trained with, or delete this checkpoint",
        )
    read = _columns_read(module, rows.columns, predictions, spelled)
    config = CustomConfig(
        class_name=spelled,
        settings=job.model.settings,
        columns={name: kind for name, kind in job.data.columns.items() if name in read},
        targets={name: kind for name, kind in job.data.columns.items() if name not in read},
        source_sha256=now["source_sha256"],
    )
    (folder / CONFIG).write_text(as_json(config.to_json()), encoding="utf-8")
    probe = {f"{_COLUMN}{name}": rows.columns[name].contiguous() for name in config.columns}
    probe |= {_PREDICTIONS: predictions.contiguous(), _TRAINER: rows.trainer.contiguous()}
    save_file(probe, folder / PROBE)
    return config


def _columns_read(module: nn.Module, columns: Mapping[str, Tensor], want: Tensor, spelled: str) -> set[str]:
    """The columns that predictions change or fail without: targets are not among them."""
    read = set()
    for left_out in columns:
        rest = {name: tensor for name, tensor in columns.items() if name != left_out}
        try:
            same = bool(rest) and difference(want, _predict(module, rest, spelled), exact=True) is None
        except Exception:  # noqa: BLE001 - however a module of the user's fails without a column, it needs it
            same = False
        if not same:
            read.add(left_out)
    return read or set(columns)


def prove_custom(export: Path, *, precision: Literal["fp32", "bf16"] = "fp32", device: str = "cpu") -> ProvenNetwork:
    """Load the export of a network of the user's own for use in `precision`, or refuse it.

    Raises:
        StoreError: not committed; a tensor or a file is not the one that was exported, naming it; or garbled.
        ServeError: every byte is as the manifest has it, and the class cannot be made or predicts something else.
    """
    manifest = read_custom_manifest(export)
    tensors = verified_tensors(export, manifest.tensors)
    verify_folder(export)
    config = _read_config(export)
    try:
        module = make_module(config.model, seed=0)
    except JobError as error:
        raise ServeError(f"{export} needs its class: {error.message}", fix=error.fix) from error
    load_weights(module, tensors, origin=export)
    say_if_source_changed(config.model_dump(), describe(config.model, module), since="the export")
    probe, rows = read_tensors(export / PROBE), probe_rows(export)
    if rows.keys() != config.columns.keys() or not {_PREDICTIONS, _TRAINER} <= probe.keys():
        raise broken(export, f"{PROBE} does not hold the columns of {CONFIG} and their predictions")
    proven = ProvenNetwork(module.to(device), config, manifest, rows)
    found = _predicted(export, proven)
    _refuse(export, difference(probe[_PREDICTIONS], found, exact=True), "the export's own predictions")
    _refuse(export, difference(probe[_TRAINER], found, exact=manifest.precision == "fp32"), "the trainer's predictions")
    if precision == "bf16":
        module.bfloat16()
        rounded = _predicted(export, proven)
        _refuse(export, difference(found, rounded, exact=False), "the export's own predictions, served in bf16")
    return proven


def probe_rows(export: Path) -> dict[str, Tensor]:
    """The rows of the probe, by column.

    Raises:
        StoreError: they are absent or garbled.
    """
    probe = read_tensors(export / PROBE)
    return {name.removeprefix(_COLUMN): rows for name, rows in probe.items() if name.startswith(_COLUMN)}


def difference(want: Tensor, got: Tensor, *, exact: bool) -> str | None:
    """What tells two sets of predictions apart; None if nothing does."""
    if want.shape != got.shape:
        return f"predictions of shape {list(got.shape)}, recorded are {list(want.shape)}"
    error = (got.float() - want.float()).abs()
    largest = float(want.abs().max()) if want.numel() else 0.0
    if exact:
        found, allowed, how = float(error.max()) if error.numel() else 0.0, EXACT_TOLERANCE * max(1.0, largest), "most"
    else:
        found, allowed, how = float(error.mean()) if error.numel() else 0.0, ROUNDED_TOLERANCE * largest, "mean"
    # Not `>`: a NaN on either side must fail, and compares false with everything.
    if found <= allowed:
        return None
    return f"they differ by {found:.3g} at {how}" if exact else f"they differ by {found:.3g} in the {how}"


@torch.inference_mode()
def _predict(module: nn.Module, columns: Mapping[str, Tensor], spelled: str) -> Tensor:
    device = next(module.parameters()).device
    count = len(next(iter(columns.values())))
    found = []
    for first in range(0, count, _BATCH_ROWS):
        rows = {name: tensor[first : first + _BATCH_ROWS].to(device) for name, tensor in columns.items()}
        found.append(predictions_of(module, rows, spelled=spelled).float().cpu())
    return torch.cat(found)


def _predicted(export: Path, proven: ProvenNetwork) -> Tensor:
    try:
        return proven.predict(proven.probe)
    except Exception as error:
        raise ServeError(
            f"{export} does not predict its own rows: {type(error).__name__}: {error}",
            fix="put back the code that it was trained with, or export the run again",
        ) from error


def _read_config(export: Path) -> CustomConfig:
    try:
        data = json.loads((export / CONFIG).read_text(encoding="utf-8"))
        return CustomConfig.model_validate({"class_name": data.pop("class"), **data})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise broken(export, f"{CONFIG} is not readable: {error}") from None


def _refuse(export: Path, found: str | None, against: str) -> None:
    if found is not None:
        raise ServeError(
            f"{export} does not prove against {against}: {found}",
            fix="put back the code that it was trained with, or export the run again",
        )
