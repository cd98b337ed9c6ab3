"""Our networks in the layout of Hugging Face folders, and back: mappings of names and settings, which keep values.

Every function is pure; reading and writing folders is the caller's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model.config import LABELLED, HeadConfig, ModelConfig
from model.families import FAMILIES, LM, build
from model.layouts.layout import Layout, require_only

_NAMED_TENSORS = 8
"""How many tensors an error names; a wrong file may have thousands."""


def to_hf_config(
    config: ModelConfig,
    head: HeadConfig = LM,
    *,
    bos_token_id: int | None,
    eos_token_id: int | None,
    pad_token_id: int | None = None,
    dtype: str,
) -> dict[str, Any]:
    """The contents of `config.json`. `dtype` is the weights' type in the file, such as "bfloat16".

    Raises:
        ValueError: this family does not carry this head.
    """
    config.check_head(head.kind)
    layout = FAMILIES[config.family].layout
    labels = {
        "id2label": {str(index): label for index, label in enumerate(head.labels)},
        "label2id": {label: index for index, label in enumerate(head.labels)},
    }
    return {
        "architectures": [layout.architectures[head.kind]],
        "model_type": layout.model_type,
        **layout.to_settings(config),
        **(labels if head.labels else {}),
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "dtype": dtype,
    }


def from_hf_config(data: Mapping[str, Any]) -> ModelConfig:
    """The backbone that a `config.json` describes; what it leaves out has transformers' default.

    Raises:
        ValueError: a size is missing, or the model is not one of ours; the message names the setting.
    """
    layout = _layout(data)
    require_only(data, {"quantization_config": (None,)})
    return layout.from_settings(data)


def head_from_hf_config(data: Mapping[str, Any]) -> HeadConfig:
    """The head that a `config.json` describes, with its labels; those without names are LABEL_0 and so on.

    Raises:
        ValueError: an architecture that is not one of ours, or labels that are not numbered from 0.
    """
    layout = _layout(data)
    named = data.get("architectures") or []
    if not named and "lm" in layout.architectures:
        return LM
    kinds = {architecture: kind for kind, architecture in layout.architectures.items()}
    if len(named) != 1 or named[0] not in kinds:
        raise ValueError(f"architectures {named!r} is not supported; one of {', '.join(kinds)} is")
    kind = kinds[named[0]]
    return HeadConfig(kind, _labels(data) if kind in LABELLED else ())


def to_hf_state(state: Mapping[str, Tensor], config: ModelConfig, head: HeadConfig = LM) -> dict[str, Tensor]:
    """`build(config, head).state_dict()` under their names. A tied projection has no entry.

    Tensors are shared where the layout has the same values in the same order, else contiguous copies.

    Raises:
        ValueError: a name that this family does not have.
    """
    return FAMILIES[config.family].layout.to_state(state, config, head)


def from_hf_state(state: Mapping[str, Tensor], config: ModelConfig, head: HeadConfig = LM) -> dict[str, Tensor]:
    """Their weights under our names, for `build(config, head).load_state_dict`: all of them, in their shapes.

    What follows from the rest is passed over: second copies of a tied table, rotary frequencies, causal masks,
    position numbers, and the pooler of an encoder whose head does not read it.

    Raises:
        ValueError: tensors are missing, or there are others, or a shape is another; names them.
    """
    layout = FAMILIES[config.family].layout
    found = layout.canonical(state, config, head)
    with torch.device("meta"):
        ours = build(config, head).state_dict()
    _check_tensors(found, layout.to_state(ours, config, head))
    return layout.from_state(found, config, head)


def _layout(data: Mapping[str, Any]) -> Layout:
    layouts = {family.layout.model_type: family.layout for family in FAMILIES.values()}
    if (model_type := data.get("model_type")) not in layouts:
        raise ValueError(f"model_type {model_type!r} is not supported; one of {', '.join(layouts)} is")
    return layouts[model_type]


def _labels(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes in their order."""
    count = data.get("num_labels", 2)
    by_id = {int(key): str(label) for key, label in (data.get("id2label") or {}).items()}
    by_id = by_id or {index: f"LABEL_{index}" for index in range(count)}
    if sorted(by_id) != list(range(len(by_id))):
        raise ValueError(f"id2label numbers its labels {sorted(by_id)}; only 0 to {len(by_id) - 1} is supported")
    return tuple(by_id[index] for index in range(len(by_id)))


def _check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse a file that is not this network's, before a single value is used."""
    problems = [
        f"{what} {_listed(names)}"
        for what, names in (
            ("missing:", [name for name in expected if name not in found]),
            ("not expected:", [name for name in found if name not in expected]),
        )
        if names
    ]
    problems += [
        f"{name} is {list(found[name].shape)} in the file and {list(tensor.shape)} by config.json"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ][:_NAMED_TENSORS]
    if problems:
        raise ValueError(f"the tensors do not fit config.json: {'; '.join(problems)}")


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED_TENSORS
    return ", ".join(names[:_NAMED_TENSORS]) + (f" and {more} more" if more > 0 else "")
