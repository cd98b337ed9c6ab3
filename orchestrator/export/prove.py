"""Prove an export before it is used: every byte is the exported one, and it computes what was trained.

What cannot be found here: whoever alters the weights and forges the manifest, the probe's `logits` and its
`trainer_logits` to match has made another, consistent export. A signature would tell; checksums cannot.

Shapes: B prompts, T positions; logits are as in `compare`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor

from model.config import ModelConfig
from model.families import Network
from model.gpt import GPT
from orchestrator.errors import ServeError
from orchestrator.export.compare import Difference, comparable, exact_difference, rounded_difference
from orchestrator.export.folder import (
    INPUTS,
    PROBE,
    WEIGHTS,
    largest_id,
    logits_of,
    read_model,
    read_tensors,
    read_tokenizer,
    tensor_sha256,
)
from orchestrator.export.manifest import ExportManifest, broken, read_export_manifest, require_decoder
from orchestrator.store import verify_folder

_SHOWN_CHARACTERS = 48
_Network_co = TypeVar("_Network_co", bound=Network, covariant=True)


@dataclass(frozen=True)
class Proven(Generic[_Network_co]):
    """A network that computes what the trainer's did, in evaluation mode, with its tokenizer."""

    model: _Network_co
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


ProvenModel = Proven[GPT]
"""A decoder, which continues texts."""


@dataclass(frozen=True)
class Probe:
    """Fixed prompts, with the logits that the exported weights and the trainer gave."""

    inputs: dict[str, Tensor]
    logits: Tensor
    trainer_logits: Tensor


def load_proven(export: Path, *, precision: Literal["fp32", "bf16"] = "fp32", device: str = "cpu") -> ProvenModel:
    """Load the export of a decoder for serving in `precision`, or refuse it. Nothing is ever repaired.

    Raises:
        StoreError, ServeError: as `prove_export`.
        ServeError: it is no decoder.
    """
    manifest = read_export_manifest(export)
    require_decoder(export, manifest)
    return cast(ProvenModel, prove_export(export, precision=precision, device=device))


def prove_export(export: Path, *, precision: Literal["fp32", "bf16"] = "fp32", device: str = "cpu") -> Proven[Network]:
    """Load an export of any family for use in `precision`, or refuse it. Nothing is ever repaired.

    Raises:
        StoreError: not committed; a tensor or a file is not the one that was exported, naming it; or garbled.
        ServeError: every byte is as the manifest has it, and yet the network computes something else:
            names the probe's prompt, the position and the difference.
    """
    manifest = read_export_manifest(export)
    tensors = verified_tensors(export, manifest.tensors)
    verify_folder(export)
    tokenizer = read_tokenizer(export)
    if not manifest.eos_token_id <= largest_id(tokenizer) == manifest.tokenizer_size - 1:
        raise broken(export, f"the tokenizer's largest id is {largest_id(tokenizer)}, the manifest says otherwise")
    model = read_model(export, tensors).to(device)
    proven: Proven[Network] = Proven(model, tokenizer, manifest)
    probe = _read_probe(export, manifest, model.config)
    _check_fp32(export, proven, probe)
    if precision == "bf16":
        model.bfloat16()
        difference = _compare(probe.logits, logits_of(model, probe.inputs), manifest, exact=False)
        _refuse(export, difference, proven, probe, against="the export's own logits, served in bf16")
    return proven


def verified_tensors(export: Path, said: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights, once the SHA-256 of each tensor is what the manifest said.

    Raises:
        StoreError: one is not, or is not there, naming it.
    """
    tensors = read_tensors(export / WEIGHTS)
    for name in sorted(said.keys() | tensors.keys()):
        if name not in tensors:
            raise broken(export, f"tensor {name} is not in {WEIGHTS}")
        if name not in said:
            raise broken(export, f"tensor {name} of {WEIGHTS} is not in the manifest")
        if (found := tensor_sha256(tensors[name])) != said[name]:
            raise broken(export, f"tensor {name} has SHA-256 {found[:16]}..., the manifest says {said[name][:16]}...")
    return tensors


def _read_probe(export: Path, manifest: ExportManifest, config: ModelConfig) -> Probe:
    tensors = read_tensors(export / PROBE)
    inputs = {name: tensors[name] for name in INPUTS if name in tensors}
    try:
        ids_BT = inputs["input_ids"]
        probe = Probe(inputs, tensors["logits"], tensors["trainer_logits"])
    except KeyError as missing:
        raise broken(export, f"{PROBE} has no {missing}") from None
    if ids_BT.dim() != 2 or not ids_BT.numel() or ids_BT.shape[1] > config.context:
        raise broken(export, f"{PROBE} holds no prompts of at most {config.context} tokens")
    sizes = {"input_ids": manifest.tokenizer_size, "token_type_ids": config.segments, "attention_mask": 2}
    for name, values_BT in inputs.items():
        if values_BT.dtype != torch.int64 or values_BT.shape != ids_BT.shape:
            raise broken(export, f"{name} of {PROBE} is {values_BT.dtype} {list(values_BT.shape)}")
        if int(values_BT.min()) < 0 or int(values_BT.max()) >= sizes[name]:
            raise broken(export, f"{name} of {PROBE} has values outside of 0 to {sizes[name] - 1}")
    return probe


def _check_fp32(export: Path, proven: Proven[Network], probe: Probe) -> None:
    logits = logits_of(proven.model.float(), probe.inputs)
    difference = _compare(probe.logits, logits, proven.manifest, exact=True)
    _refuse(export, difference, proven, probe, against="the export's own logits")
    exact = proven.manifest.precision == "fp32"
    difference = _compare(logits, probe.trainer_logits, proven.manifest, exact=exact)
    _refuse(export, difference, proven, probe, against="the trainer's logits")


def _compare(want: Tensor, got: Tensor, manifest: ExportManifest, *, exact: bool) -> Difference | None:
    rule = exact_difference if exact else rounded_difference
    return rule(comparable(got, manifest.head.kind), comparable(want, manifest.head.kind))


def _refuse(
    export: Path, difference: Difference | None, proven: Proven[Network], probe: Probe, *, against: str
) -> None:
    if difference is None:
        return
    prompt = prompt_text(proven.tokenizer, probe.inputs["input_ids"][difference.prompt].tolist())
    raise ServeError(
        f"{export} does not prove against {against}: {difference.told(prompt)}",
        fix="do not serve it; export the run again, and find out who altered this one",
    )


def prompt_text(tokenizer: Tokenizer, ids_T: list[int]) -> str:
    """A probe's prompt as a message shows it."""
    text: str = tokenizer.decode(ids_T, skip_special_tokens=False)
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...")
