"""Prove an export before it is served: every byte is the exported one, and it computes what was trained.

What cannot be found here: whoever alters the weights and forges the manifest, the probe's `logits` and its
`trainer_logits` to match has made another, consistent export. A signature would tell; checksums cannot.

Shapes: B prompts, T positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor

from model.config import ModelConfig
from model.gpt import GPT
from orchestrator.errors import ServeError
from orchestrator.export.compare import Difference, exact_difference, rounded_difference
from orchestrator.export.folder import (
    PROBE,
    WEIGHTS,
    ExportManifest,
    broken,
    logits_of,
    read_export_manifest,
    read_model,
    read_tensors,
    read_tokenizer,
    tensor_sha256,
)
from orchestrator.store import verify_folder

_SHOWN_CHARACTERS = 48


@dataclass(frozen=True)
class ProvenModel:
    """A network that computes what the trainer's did, in evaluation mode, with its tokenizer."""

    model: GPT
    tokenizer: Tokenizer
    manifest: ExportManifest

    @property
    def config(self) -> ModelConfig:
        """Its shape."""
        return self.model.config

    @property
    def eos_id(self) -> int:
        """The token that ends a text."""
        return self.manifest.eos_token_id

    @property
    def allowed_size(self) -> int:
        """Ids from here on are padding of the vocabulary: in no prompt, and never sampled."""
        return self.manifest.tokenizer_size


@dataclass(frozen=True)
class Probe:
    """Fixed prompts, with the logits that the exported weights and the trainer gave."""

    ids_BT: Tensor
    logits_BTV: Tensor
    trainer_logits_BTV: Tensor


def load_proven(export: Path, *, precision: Literal["fp32", "bf16"] = "fp32", device: str = "cpu") -> ProvenModel:
    """Load an export for serving in `precision`, or refuse it. Nothing is ever repaired.

    Raises:
        StoreError: not committed; a tensor or a file is not the one that was exported, naming it; or garbled.
        ServeError: every byte is as the manifest has it, and yet the network computes something else:
            names the probe's prompt, the position and the difference.
    """
    manifest = read_export_manifest(export)
    tensors = _verified_tensors(export, manifest)
    verify_folder(export)
    tokenizer = read_tokenizer(export)
    if not manifest.eos_token_id < tokenizer.get_vocab_size() <= manifest.tokenizer_size:
        raise broken(export, f"the tokenizer has {tokenizer.get_vocab_size()} tokens, the manifest says otherwise")
    model = read_model(export, tensors).to(device)
    proven = ProvenModel(model, tokenizer, manifest)
    probe = _read_probe(export, manifest, model.config)
    _check_fp32(export, proven, probe)
    if precision == "bf16":
        model.bfloat16()
        difference = rounded_difference(logits_of(model, probe.ids_BT), probe.logits_BTV)
        _refuse(export, difference, proven, probe, against="the export's own logits, served in bf16")
    return proven


def _verified_tensors(export: Path, manifest: ExportManifest) -> dict[str, Tensor]:
    """The weights, once the SHA-256 of each tensor is the manifest's."""
    tensors = read_tensors(export / WEIGHTS)
    for name in sorted(manifest.tensors.keys() | tensors.keys()):
        if name not in tensors:
            raise broken(export, f"tensor {name} is not in {WEIGHTS}")
        if name not in manifest.tensors:
            raise broken(export, f"tensor {name} of {WEIGHTS} is not in the manifest")
        if (found := tensor_sha256(tensors[name])) != manifest.tensors[name]:
            said = manifest.tensors[name]
            raise broken(export, f"tensor {name} has SHA-256 {found[:16]}..., the manifest says {said[:16]}...")
    return tensors


def _read_probe(export: Path, manifest: ExportManifest, config: ModelConfig) -> Probe:
    tensors = read_tensors(export / PROBE)
    try:
        probe = Probe(tensors["input_ids"], tensors["logits"], tensors["trainer_logits"])
    except KeyError as missing:
        raise broken(export, f"{PROBE} has no {missing}") from None
    ids = probe.ids_BT
    if ids.dim() != 2 or ids.dtype != torch.int64 or not ids.numel() or ids.shape[1] > config.context:
        raise broken(export, f"{PROBE} holds no prompts of at most {config.context} tokens")
    if int(ids.min()) < 0 or int(ids.max()) >= manifest.tokenizer_size:
        raise broken(export, f"{PROBE} has token ids that the tokenizer does not have")
    return probe


def _check_fp32(export: Path, proven: ProvenModel, probe: Probe) -> None:
    logits_BTV = logits_of(proven.model.float(), probe.ids_BT)
    difference = exact_difference(logits_BTV, probe.logits_BTV)
    _refuse(export, difference, proven, probe, against="the export's own logits")
    trainer_rule = exact_difference if proven.manifest.precision == "fp32" else rounded_difference
    difference = trainer_rule(probe.trainer_logits_BTV, logits_BTV)
    _refuse(export, difference, proven, probe, against="the trainer's logits")


def _refuse(export: Path, difference: Difference | None, proven: ProvenModel, probe: Probe, *, against: str) -> None:
    if difference is None:
        return
    prompt = prompt_text(proven.tokenizer, probe.ids_BT[difference.prompt].tolist())
    raise ServeError(
        f"{export} does not prove against {against}: "
        f"prompt {prompt}, position {difference.position}: {difference.detail}",
        fix="do not serve it; export the run again, and find out who altered this one",
    )


def prompt_text(tokenizer: Tokenizer, ids_T: list[int]) -> str:
    """A probe's prompt as a message shows it."""
    text: str = tokenizer.decode(ids_T, skip_special_tokens=False)
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...")
