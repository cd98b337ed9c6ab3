"""A tiny checkpoint with random weights and a dataset folder with a tokenizer: what an export is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model.config import ModelConfig
from model.gpt import GPT
from orchestrator.data.tokens.tokenizer import END_OF_TEXT, facts, train_bpe
from orchestrator.export.write import ExportFacts, write_export
from orchestrator.store import commit, writing

TEXTS = [
    "def add(a, b):\n    return a + b\n",
    "class Ship:\n    pass\n",
    "héllo wörld, 漢字 and 🚢🌊 emoji\n",
] * 4
TINY = ModelConfig(vocab_size=320, layers=2, width=32, heads=4, kv_heads=2, hidden=64, context=64)
FACTS = ExportFacts(
    name="tiny",
    run="runs/tiny-0123",
    dataset="datasets/tiny-4567",
    data="12 lines | of text",
    tokens=1280,
    train_loss=2.5,
    validation_loss=None,
    versions={"torch": "2.13.0"},
)


def tiny_dataset(folder: Path) -> Path:
    """A committed dataset folder: a tokenizer and the keys of its manifest that an export reads."""
    text = train_bpe(TEXTS, 300)
    with writing(folder) as tmp:
        (tmp / "tokenizer.json").write_text(text, encoding="utf-8")
        found = facts(text)
        about = {
            "eos_token": found.eos_token,
            "eos_token_id": found.eos_token_id,
            "vocab_size": found.vocab_size,
        }
        commit(tmp, folder, about)
    return folder


def tiny_model(config: ModelConfig = TINY, *, seed: int = 0) -> GPT:
    """Random weights, large enough that the next token is not a coin toss."""
    model = GPT(config).initialise(seed).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model


def tiny_checkpoint(folder: Path, *, config: ModelConfig = TINY, precision: str = "fp32") -> Path:
    """A committed checkpoint folder as training leaves it, as far as an export reads it."""
    model = tiny_model(config)
    ids_BT = torch.randint(0, 290, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = model(ids_BT) if precision == "fp32" else tiny_model(config).bfloat16()(ids_BT).float()
    with writing(folder) as tmp:
        save_file({name: t.contiguous() for name, t in model.state_dict().items()}, tmp / "model.safetensors")
        (tmp / "model.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
        save_file({"input_ids": ids_BT, "trainer_logits": logits.contiguous()}, tmp / "probe.safetensors")
        commit(tmp, folder, {"format": 1, "step": 20, "precision": precision})
    return folder


def tiny_export(root: Path, **checkpoint: Any) -> Path:
    """A committed export below `root`."""
    return write_export(
        checkpoint=tiny_checkpoint(root / "step-00000020", **checkpoint),
        dataset=tiny_dataset(root / "dataset"),
        into=root / "export" / "step-00000020",
        facts=FACTS,
    )


__all__ = [
    "END_OF_TEXT",
    "FACTS",
    "TEXTS",
    "TINY",
    "tiny_checkpoint",
    "tiny_dataset",
    "tiny_export",
    "tiny_model",
]
