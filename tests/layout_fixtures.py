"""Networks that cross to transformers and back: what tests of layouts share. Shapes: B rows, T tokens, V vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel

from model.config import ModelConfig
from model.gpt import GPT
from model.huggingface import from_hf_config, from_hf_state, to_hf_config


def decoder_settings(config: ModelConfig, **changes: Any) -> dict[str, Any]:
    """The config.json of a decoder."""
    return to_hf_config(config, bos_token_id=1, eos_token_id=2, dtype="float32") | changes


def loaded_by_transformers(
    kind: type[Any], tensors: Mapping[str, Tensor], about: Mapping[str, Any], folder: Path, **options: Any
) -> Any:
    """An export of tensors and settings, as a class of transformers reads it: with nothing missing or left over."""
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(about))
    theirs, report = kind.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(report.values()), report
    return theirs


def assert_same_logits(ours: GPT, theirs: PreTrainedModel) -> None:
    config = ours.config
    ids_BT = torch.randint(config.vocab_size, (2, config.context), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits_BTV = ours.eval()(ids_BT)
        assert_close(logits_BTV, theirs(ids_BT).logits, atol=1e-4, rtol=0)
    assert float(logits_BTV.std()) > 0.1


def assert_ours_take_the_weights_of(theirs: PreTrainedModel, config: ModelConfig, folder: Path) -> None:
    """A decoder of theirs that is saved has our `config`, and the same logits in ours: its files, and in memory."""
    theirs.save_pretrained(folder)
    found = from_hf_config(json.loads((folder / "config.json").read_text()))
    assert found == config, found
    for state in (load_file(folder / "model.safetensors"), theirs.state_dict()):
        ours = GPT(found)
        ours.load_state_dict(from_hf_state(state, found))
        assert_same_logits(ours, theirs)


def assert_settings_survive(config: ModelConfig, *, token: int | None) -> None:
    """A decoder's, as JSON."""
    data = to_hf_config(config, bos_token_id=token, eos_token_id=token, dtype="bfloat16")
    found = from_hf_config(json.loads(json.dumps(data)))
    assert found == config, found
