"""The model card: what a person who finds the folder wants to know. Pure: same facts, same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class ExportFacts:
    """What the run knows of a model and the checkpoint does not say."""

    name: str
    """The job's name: what the model is called."""
    run: str
    dataset: str
    data: str
    """One line on the text: its sources and how much of it."""
    tokens: int
    """Tokens trained on."""
    train_loss: float | None
    validation_loss: float | None
    versions: Mapping[str, str]


def model_card(facts: ExportFacts, *, config: ModelConfig, step: int, precision: str, tokenizer_size: int) -> str:
    """README.md of an export, in the form the Hugging Face hub reads."""
    heads = f"{config.heads} heads ({config.kv_heads} for keys and values)"
    rows = {
        "Parameters": f"{config.parameters:,}",
        "Shape": f"{config.layers} layers, width {config.width}, {heads}, context {config.context}",
        "Data": facts.data,
        "Dataset": f"`{facts.dataset}`",
        "Tokenizer": f"{tokenizer_size:,} tokens, in `tokenizer.json`",
        "Run": f"`{facts.run}`",
        "Steps": f"{step:,}",
        "Tokens trained on": f"{facts.tokens:,}",
        "Training loss": _loss(facts.train_loss),
        "Validation loss": _loss(facts.validation_loss),
        "Training precision": precision,
        "Versions": ", ".join(f"{name} {version}" for name, version in sorted(facts.versions.items())),
    }
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    return _CARD.format(name=facts.name, table=table)


def _cell(value: str) -> str:
    """A text that neither ends the cell nor the row."""
    return " ".join(value.split()).replace("|", "\\|")


def _loss(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f} nats per token"


_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- slipway
---

# {name}

A language model in the Llama layout, trained from scratch with Slipway.

| | |
|---|---|
{table}

## How to load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH_OF_THIS_FOLDER")
model = AutoModelForCausalLM.from_pretrained("PATH_OF_THIS_FOLDER")
ids = tokenizer("Once", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=32)[0]))
```

No code of this folder is run, and nothing in it is a pickle. `probe.safetensors` holds prompts with the
logits of the trainer and of these weights; `slipway serve` computes them again before it serves the model.
"""
