"""A tiny checkpoint with random weights and a dataset folder with a tokenizer: what an export is made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import HeadConfig, ModelConfig
from model.families import Network, build
from orchestrator.data.tokens.facts import facts
from orchestrator.data.tokens.train import END_OF_TEXT, train_tokenizer
from orchestrator.export.folder import logits_of, tensor_sha256
from orchestrator.export.write import ExportFacts, write_export
from orchestrator.job_data import Tokenizer as TokenizerSettings
from orchestrator.store import commit, sha256_file, writing

TEXTS = [
    "def add(a, b):\n    return a + b\n",
    "class Ship:\n    pass\n",
    "héllo wörld, 漢字 and 🚢🌊 emoji\n",
] * 4
TINY = ModelConfig(vocab_size=320, layers=2, width=32, heads=4, kv_heads=2, hidden=64, context=64)
SHAPES = {
    "llama": TINY,
    "gpt2": ModelConfig(**{**TINY.to_dict(), "family": "gpt2", "positions": "learned", "kv_heads": 4}),
    "bert": ModelConfig(
        **{**TINY.to_dict(), "family": "bert", "positions": "learned", "kv_heads": 4, "norm_eps": 1e-12}
    ),
}
LM = HeadConfig()
HEADS = {
    "mlm": HeadConfig("mlm"),
    "pretraining": HeadConfig("pretraining"),
    "classification": HeadConfig("classification", ("bad", "so so", "good")),
    "token-classification": HeadConfig("token-classification", ("O", "B-PER", "I-PER")),
    "question-answering": HeadConfig("question-answering"),
}
FACTS = ExportFacts(
    name="tiny",
    run="tiny-0123",
    dataset="tiny-4567",
    data="12 lines | of text",
    tokens=1280,
    train_loss=2.5,
    validation_loss=None,
    versions={"torch": "2.13.0"},
)


def tiny_tokenizer(kind: Literal["bpe", "wordpiece"] = "bpe", *, chat: bool = False) -> str:
    return train_tokenizer(TEXTS, TokenizerSettings(train=kind, vocab_size=300), chat=chat)


def tiny_dataset(folder: Path, *, kind: Literal["bpe", "wordpiece"] = "bpe", chat_template: str | None = None) -> Path:
    """A committed dataset folder: a tokenizer and the keys of its manifest that an export reads."""
    text = tiny_tokenizer(kind, chat=chat_template is not None)
    with writing(folder) as tmp:
        (tmp / "tokenizer.json").write_text(text, encoding="utf-8")
        commit(tmp, folder, {"tokenizer": asdict(facts(text, chat_template=chat_template))})
    return folder


def tiny_model(config: ModelConfig = TINY, head: HeadConfig = LM, *, seed: int = 0) -> Network:
    """Random weights, large enough that the next token is not a coin toss."""
    model = build(config, head).initialise(seed).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model


def tiny_probe(config: ModelConfig) -> dict[str, Tensor]:
    """Two prompts; of an encoder two segments, and padding after the second."""
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(5, 290 if config.is_decoder else 90, (2, 16), generator=generator)
    if config.is_decoder:
        return {"input_ids": ids_BT}
    segments_BT, mask_BT = torch.zeros_like(ids_BT), torch.ones_like(ids_BT)
    segments_BT[0, 7:], mask_BT[1, 10:], ids_BT[1, 10:] = 1, 0, 0
    return {"input_ids": ids_BT, "token_type_ids": segments_BT, "attention_mask": mask_BT}


def tiny_checkpoint(
    folder: Path, *, config: ModelConfig = TINY, head: HeadConfig = LM, precision: str = "fp32"
) -> Path:
    """A committed checkpoint folder as training leaves it, as far as an export reads it."""
    model, probe = tiny_model(config, head), tiny_probe(config)
    logits = logits_of(model if precision == "fp32" else tiny_model(config, head).bfloat16(), probe)
    with writing(folder) as tmp:
        save_file({name: t.contiguous() for name, t in model.state_dict().items()}, tmp / "model.safetensors")
        (tmp / "model.json").write_text(json.dumps({**config.to_dict(), "head": head.to_dict()}), encoding="utf-8")
        save_file({**probe, "trainer_logits": logits.contiguous()}, tmp / "probe.safetensors")
        commit(tmp, folder, {"format": 1, "step": 20, "precision": precision})
    return folder


def tiny_export(root: Path, *, chat_template: str | None = None, **checkpoint: Any) -> Path:
    """A committed export below `root`; that of an encoder has a WordPiece tokenizer."""
    kind: Literal["bpe", "wordpiece"] = "bpe" if checkpoint.get("config", TINY).is_decoder else "wordpiece"
    return write_export(
        checkpoint=tiny_checkpoint(root / "step-00000020", **checkpoint),
        dataset=tiny_dataset(root / "dataset", kind=kind, chat_template=chat_template),
        into=root / "export" / "step-00000020",
        facts=FACTS,
    )


def alter(export: Path, change: Callable[[dict[str, Tensor]], object], file: str = "model.safetensors") -> None:
    tensors = load_file(export / file)
    change(tensors)
    save_file(tensors, export / file, metadata={"format": "pt"})


def forge_manifest(export: Path) -> None:
    """What somebody who knows the format would do: make the manifest say what the files are now."""
    manifest = json.loads((export / "manifest.json").read_text())
    tensors = load_file(export / "model.safetensors")
    manifest["tensors"] = {name: tensor_sha256(tensor) for name, tensor in tensors.items()}
    for entry in manifest["files"]:
        path = export / entry["path"]
        entry.update(bytes=path.stat().st_size, sha256=sha256_file(path))
    (export / "manifest.json").write_text(json.dumps(manifest))


__all__ = [
    "END_OF_TEXT",
    "FACTS",
    "HEADS",
    "LM",
    "SHAPES",
    "TEXTS",
    "TINY",
    "alter",
    "forge_manifest",
    "tiny_checkpoint",
    "tiny_dataset",
    "tiny_export",
    "tiny_model",
    "tiny_probe",
    "tiny_tokenizer",
]
