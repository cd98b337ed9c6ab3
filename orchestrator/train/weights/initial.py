"""The weights that a run begins with: drawn from its seed, or taken from a run, an export or a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.config import HeadConfig, HeadKind, ModelConfig
from orchestrator.checkpoint.origin import Origin
from orchestrator.data.dataset import Dataset
from orchestrator.data.load.stream import TokenStream
from orchestrator.data.shelf import parts_at_hand
from orchestrator.data.splits import TRAIN
from orchestrator.errors import JobError, StoreError
from orchestrator.export.given_weights import AS_MADE
from orchestrator.job import JobSpec
from orchestrator.objectives.announce import say_once
from orchestrator.train.weights.given import SourceWeights, read_weights

_BACKBONE, _POOLER = "backbone.", "backbone.pooler."
_POSITIONS = "position.table.weight"
_MASKED_LM: tuple[HeadKind, ...] = ("mlm", "pretraining")
_FREE = ("context", "dropout")
"""What of a network a job may choose anew."""
_NAMED = 8
_COUNTED_ROWS, _COUNTED_LENGTH = 8192, 512
"""Four million tokens tell the shares of all but the rarest."""


def load_initial(model: nn.Module, config: ModelConfig, head: HeadConfig, origin: Origin, *, tokenizer: Path) -> None:
    """Put the weights of `origin` into a model that has been initialised.

    The backbone must be the same. The head is taken where it is of the same kind with the same labels; what is not
    there, or is of another kind, stays as it was drawn, and people are told.

    Args:
        model: as `families.build(config, head)` makes it.
        tokenizer: the job's `tokenizer.json`.

    Raises:
        JobError: the source is another network than the job's model, has another tokenizer, or fewer positions.
        StoreError: the source is not readable, does not verify, or has not the tensors that its network has.
    """
    source = read_weights(origin)
    _require_same_network(config, source.config, origin.folder)
    _require_positions(config, source.config, origin.folder)
    _require_same_tokenizer(origin.tokenizer, tokenizer)
    wanted: dict[str, Tensor] = dict(model.named_parameters())
    taken = _taken(wanted, source, head, origin.folder)
    _copy(taken, wanted, origin.folder)
    fresh = [name for name in wanted if name not in taken]
    say_once(
        f"weights from {origin.folder}: {len(taken)} tensors"
        + (f"; not there, so drawn: {_listed(fresh)}" if fresh else "")
    )


def begin_at_frequencies(model: nn.Module, job: JobSpec, dataset: Dataset) -> None:
    """Set the bias of a masked-LM head to the logarithm of each token's share of the training split.

    Small networks otherwise learn the shares first, and write them into the word table, which the projection is: rare
    words come to lie alike in it. Counted are evenly spaced stretches of the stream, the same on every rank.
    """
    with parts_at_hand(dataset, TRAIN, job.data) as parts:
        stream = TokenStream([path for part in parts for path in part.shard_paths])
        length = min(_COUNTED_LENGTH, len(stream))
        rows = min(_COUNTED_ROWS, len(stream) // length) if length else 0
        starts = np.arange(rows, dtype=np.int64) * (len(stream) // max(1, rows))
        bias_V: Any = dict(model.named_parameters())["bias"]
        counts_V = np.bincount(stream.rows(starts, length).ravel(), minlength=len(bias_V)) + 1.0
    with torch.no_grad():
        bias_V.copy_(torch.from_numpy(np.log(counts_V / counts_V.sum())))


def _require_same_network(config: ModelConfig, source: ModelConfig, folder: Path) -> None:
    names = [f.name for f in fields(ModelConfig) if f.name not in _FREE]
    pairs = {name: (getattr(config, name), getattr(source, name)) for name in names}
    different = {name: values for name, values in pairs.items() if values[0] != values[1]}
    if not different:
        return
    told = "; ".join(f"{name} {ours} in the job, {theirs} there" for name, (ours, theirs) in different.items())
    keys = ", ".join(_job_keys({name: theirs for name, (_, theirs) in different.items()}))
    raise JobError(
        f"train.from {folder} is another network than the job's model: {told}",
        fix=f"set model: {{{keys}}}" if keys else "take another source: a job's model cannot be like this one",
    )


def _job_keys(values: Mapping[str, Any]) -> list[str]:
    """Settings of a network as the `model` section has them."""
    keys = []
    for name, value in values.items():
        if name == "family":
            keys += ["kind: bert"] if value == "bert" else ["kind: gpt", f"form: {value}"]
        elif name != "segments":
            keys.append(f"{name}: {json.dumps(value)}")
    return keys


def _require_positions(config: ModelConfig, source: ModelConfig, folder: Path) -> None:
    if config.positions == "learned" and config.context > source.context:
        raise JobError(
            f"model.context {config.context} is more than the {source.context} positions that {folder} has learned",
            fix=f"set model.context to at most {source.context}",
        )


def _require_same_tokenizer(theirs: Path, ours: Path) -> None:
    """Equal but for truncation and padding, which are left out of training."""
    if _tokenizer(theirs) != _tokenizer(ours):
        raise JobError(
            f"the tokenizer of train.from, {theirs}, is not the job's, {ours}: its ids would stand for other tokens",
            fix=f"set data.tokenizer: {{path: {theirs}}}",
        )


def _tokenizer(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {key: value for key, value in data.items() if key not in ("truncation", "padding")}
    except (OSError, ValueError, AttributeError) as error:
        raise StoreError(
            f"the tokenizer {path} cannot be read: {error}",
            fix="put the tokenizer.json that the weights were trained with there",
        ) from None


def _taken(wanted: Mapping[str, Tensor], source: SourceWeights, head: HeadConfig, folder: Path) -> dict[str, Tensor]:
    """The source's tensors that the model takes, by name.

    Raises:
        StoreError: the backbones have not the same tensors.
    """
    given = source.state
    whole = source.head == head
    shared = {name for name in wanted.keys() | given.keys() if whole or head.kind == "lm" or name.startswith(_BACKBONE)}
    # The pooler is there under some heads only.
    must = {name for name in shared if not name.startswith(_POOLER)}
    missing, extra = sorted((must & wanted.keys()) - given.keys()), sorted((must & given.keys()) - wanted.keys())
    if missing or extra:
        told = [f"{what} {_listed(names)}" for what, names in (("missing", missing), ("extra", extra)) if names]
        raise StoreError(
            f"{folder} has not the tensors of its network: {'; '.join(told)}",
            fix=AS_MADE,
        )
    if source.head.kind in _MASKED_LM and head.kind in _MASKED_LM:
        shared |= given.keys()  # one is the other with next sentences
    return {name: given[name] for name in wanted if name in shared and name in given}


def _copy(taken: dict[str, Tensor], wanted: Mapping[str, Tensor], folder: Path) -> None:
    for name, tensor in taken.items():
        target = wanted[name]
        # A table of positions may be longer than the job's context: the first of them are used.
        value = tensor[: len(target)] if name.endswith(_POSITIONS) else tensor
        if value.shape != target.shape or not value.is_floating_point():
            raise StoreError(
                f"{name} of {folder} is {tensor.dtype} {list(tensor.shape)}, the network has {list(target.shape)}",
                fix=f"{AS_MADE}; weights must be floating-point numbers",
            )
        with torch.no_grad():
            target.copy_(value)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
