"""What a layout is, and how tensors are renamed. Pure: names and settings in, names and settings out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.config import HeadConfig, HeadKind, ModelConfig
from model.positions import sinusoidal_table

State = Mapping[str, Tensor]
Settings = Mapping[str, Any]
ConvertState = Callable[[State, ModelConfig, HeadConfig], dict[str, Tensor]]

FIXED_POSITIONS = "slipway_fixed_positions"
"""Our own key in config.json: the position table holds sinusoids, which are not to be trained."""

USUAL_SIZES = {
    "vocab_size": "vocab_size",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
}
"""Ours to theirs, as most families of `transformers` name them; none has a default."""


@dataclass(frozen=True)
class Layout:
    """One family in the layout of `transformers`."""

    model_type: str
    architectures: Mapping[HeadKind, str]
    to_settings: Callable[[ModelConfig], dict[str, Any]]
    """What of config.json is this family's."""
    from_settings: Callable[[Settings], ModelConfig]
    to_state: ConvertState
    """Our names to theirs."""
    canonical: ConvertState
    """Their tensors under the names that `to_state` gives, without what follows from others."""
    from_state: ConvertState
    """Canonical tensors under our names."""


def require_only(data: Settings, supported: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse settings that our networks do not have; the first supported value is the default of `transformers`.

    Raises:
        ValueError: names the setting.
    """
    for key, values in supported.items():
        if (found := data.get(key, values[0])) not in values:
            raise ValueError(f"{key} {found!r} is not supported; only {' or '.join(map(repr, values))} is")


def require_keys(data: Settings, keys: Mapping[str, str]) -> dict[str, Any]:
    """Settings under our names, for keys (ours to theirs) that have no default.

    Raises:
        ValueError: names those that are missing, or are no size.
    """
    if missing := [theirs for theirs in keys.values() if theirs not in data]:
        raise ValueError(f"{', '.join(missing)} missing from config.json")
    if wrong := [theirs for theirs in keys.values() if type(data[theirs]) is not int or data[theirs] < 1]:
        raise ValueError(f"{wrong[0]} {data[wrong[0]]!r} is not supported; only a whole number from 1 is")
    return {ours: data[theirs] for ours, theirs in keys.items()}


def their_sizes(config: ModelConfig, keys: Mapping[str, str]) -> dict[str, Any]:
    """The inverse of `require_keys`."""
    return {theirs: getattr(config, ours) for ours, theirs in keys.items()}


def one_dropout(data: Settings, *keys: str) -> float:
    """The share that all of `keys` name; 0.1 is the default of `transformers`.

    Raises:
        ValueError: they differ.
    """
    found = [float(data.get(key, 0.1)) for key in keys]
    if len(set(found)) > 1:
        pairs = ", ".join(f"{key} {share}" for key, share in zip(keys, found, strict=True))
        raise ValueError(f"{pairs} differ; only one dropout for all is supported")
    return found[0]


def with_leaves(modules: Mapping[str, str]) -> dict[str, str]:
    """Names of modules, # for the layer, to names of their weights and biases."""
    return {f"{ours}.{leaf}": f"{theirs}.{leaf}" for ours, theirs in modules.items() for leaf in ("weight", "bias")}


def inverse(names: Mapping[str, str]) -> dict[str, str]:
    """Theirs to ours."""
    return {theirs: ours for ours, theirs in names.items()}


def renamed(state: State, names: Mapping[str, str]) -> dict[str, Tensor]:
    """`state` under the names that `names` gives, the layer's number kept; tensors are shared.

    Raises:
        ValueError: a tensor that `names` does not know.
    """
    result = {}
    for name, tensor in state.items():
        layer = re.search(r"\.(\d+)\.", name)
        target = names.get(re.sub(r"\.\d+\.", ".#.", name, count=1))
        if target is None:
            raise ValueError(f"tensor {name!r} is not supported: it has no counterpart in this layout")
        result[target.replace("#", layer[1]) if layer else target] = tensor
    return result


def without_copy(state: State, *, copy: str, of: str) -> dict[str, Tensor]:
    """`state` without a tensor that some writers store a second time, or under its second name alone.

    Raises:
        ValueError: the copy differs.
    """
    kept = dict(state)
    second = kept.pop(copy, None)
    if second is not None and not torch.equal(second, kept.setdefault(of, second)):
        raise ValueError(f"{copy} differs from {of}, though config.json ties the two")
    return kept


def add_sinusoids(state: State, config: ModelConfig, *, table: str) -> dict[str, Tensor]:
    """`state` with the position table's values where they are no weights of ours; other libraries store them."""
    if config.positions != "sinusoidal":
        return dict(state)
    return {**state, table: sinusoidal_table(config.context, config.width, device=torch.device("cpu"))}


def drop_sinusoids(state: State, config: ModelConfig, *, table: str) -> dict[str, Tensor]:
    """The inverse of `add_sinusoids`.

    Raises:
        ValueError: the table does not hold the sinusoids, within the rounding of bf16.
    """
    if config.positions != "sinusoidal":
        return dict(state)
    kept = dict(state)
    sinusoids_SD = sinusoidal_table(config.context, config.width, device=torch.device("cpu"))
    if not torch.allclose(kept.pop(table).float().cpu(), sinusoids_SD, rtol=2**-8, atol=1e-6):
        raise ValueError(f"{table} does not hold sinusoids, though config.json says so ({FIXED_POSITIONS})")
    return kept


def position_settings(config: ModelConfig) -> dict[str, Any]:
    """Our own key, where positions are sinusoids."""
    return {FIXED_POSITIONS: "sinusoidal"} if config.positions == "sinusoidal" else {}
