"""The model card: what a person who finds the folder wants to know. Pure: same facts, same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model.config import HeadConfig, HeadKind, ModelConfig


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


@dataclass(frozen=True)
class _Use:
    """How a head is called elsewhere, and how it is loaded."""

    pipeline: str
    """The Hugging Face hub's name of the task."""
    auto_class: str
    is_a: str
    target: str = "token"
    """What the loss is a mean of."""


_USES: Mapping[HeadKind, _Use] = {
    "lm": _Use("text-generation", "AutoModelForCausalLM", "language model"),
    "mlm": _Use("fill-mask", "AutoModelForMaskedLM", "masked language model"),
    "pretraining": _Use("fill-mask", "AutoModelForPreTraining", "masked language model with next-sentence prediction"),
    "classification": _Use("text-classification", "AutoModelForSequenceClassification", "text classifier", "text"),
    "token-classification": _Use("token-classification", "AutoModelForTokenClassification", "token classifier", "word"),
    "question-answering": _Use("question-answering", "AutoModelForQuestionAnswering", "reader of answers", "question"),
    "embedding": _Use("feature-extraction", "AutoModel", "text encoder", "text"),
}
_LAYOUTS = {"llama": "Llama", "gpt2": "GPT-2", "bert": "BERT"}
_SHOWN_LABELS = 20


def model_card(
    facts: ExportFacts, *, config: ModelConfig, head: HeadConfig, step: int, precision: str, tokenizer_size: int
) -> str:
    """README.md of a model that was trained here, in the form the Hugging Face hub reads."""
    target = _USES[head.kind].target
    rows = {
        **_shape_rows(config, head, tokenizer_size),
        "Data": facts.data,
        "Dataset": f"`{facts.dataset}`",
        "Run": f"`{facts.run}`",
        "Steps": f"{step:,}",
        "Tokens trained on": f"{facts.tokens:,}",
        "Training loss": _loss(facts.train_loss, target),
        "Validation loss": _loss(facts.validation_loss, target),
        "Training precision": precision,
        "Versions": ", ".join(f"{name} {version}" for name, version in sorted(facts.versions.items())),
    }
    intro = f"A {_what(config, head)}, trained with Slipway."
    return _card(facts.name, head, intro, rows)


def import_card(name: str, *, config: ModelConfig, head: HeadConfig, source: str, tokenizer_size: int) -> str:
    """README.md of weights that come from elsewhere."""
    rows = {**_shape_rows(config, head, tokenizer_size), "Source": f"the folder `{source}`"}
    intro = (
        f"A {_what(config, head)}, imported into Slipway: the values are those of its source, kept as fp32. "
        "Its license and its history are its source's."
    )
    return _card(name, head, intro, rows)


def custom_card(
    facts: ExportFacts, *, spelled: str, columns: Mapping[str, str], parameters: int, step: int, precision: str
) -> str:
    """README.md of a network of the user's own: how its class is made and given these weights."""
    rows = {
        "Class": f"`{spelled}`",
        "Parameters": f"{parameters:,}",
        "Columns": ", ".join(f"`{name}: {kind}`" for name, kind in columns.items()),
        "Data": facts.data,
        "Dataset": f"`{facts.dataset}`",
        "Run": f"`{facts.run}`",
        "Steps": f"{step:,}",
        "Training loss": _loss(facts.train_loss, "row"),
        "Validation loss": _loss(facts.validation_loss, "row"),
        "Training precision": precision,
        "Versions": ", ".join(f"{name} {version}" for name, version in sorted(facts.versions.items())),
    }
    table = "\n".join(f"| {title} | {_cell(value)} |" for title, value in rows.items())
    module, _, name = spelled.partition(":")
    return _CUSTOM_CARD.format(name=facts.name, table=table, module=module, class_name=name)


def _what(config: ModelConfig, head: HeadConfig) -> str:
    return f"{_USES[head.kind].is_a} in the {_LAYOUTS[config.family]} layout"


def _shape_rows(config: ModelConfig, head: HeadConfig, tokenizer_size: int) -> dict[str, str]:
    parameters = config.parameters + config.head_parameters(head.kind, len(head.labels))
    heads = f"{config.heads} heads ({config.kv_heads} for keys and values)"
    rows = {
        "Parameters": f"{parameters:,}",
        "Shape": f"{config.layers} layers, width {config.width}, {heads}, context {config.context}",
        "Tokenizer": f"{tokenizer_size:,} tokens, in `tokenizer.json`",
    }
    if head.labels:
        more = len(head.labels) - _SHOWN_LABELS
        shown = ", ".join(f"`{label}`" for label in head.labels[:_SHOWN_LABELS])
        rows["Labels"] = shown + (f" and {more} more" if more > 0 else "")
    return rows


def _card(name: str, head: HeadConfig, intro: str, rows: Mapping[str, str]) -> str:
    table = "\n".join(f"| {title} | {_cell(value)} |" for title, value in rows.items())
    use = _USES[head.kind]
    load = _GENERATE if head.kind == "lm" else _PREDICT
    return _CARD.format(
        pipeline=use.pipeline, name=name, intro=intro, table=table, auto_class=use.auto_class, load=load
    )


def _cell(value: str) -> str:
    """A text that neither ends the cell nor the row."""
    return " ".join(value.split()).replace("|", "\\|")


def _loss(value: float | None, target: str) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4f} per row" if target == "row" else f"{value:.4f} nats per {target}"


_GENERATE = """\
ids = tokenizer("Once", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=32)[0]))"""

_PREDICT = """\
print(model(**tokenizer("Once", return_tensors="pt")))"""

_CARD = """\
---
library_name: transformers
pipeline_tag: {pipeline}
tags:
- slipway
---

# {name}

{intro}

| | |
|---|---|
{table}

## How to load it

```python
from transformers import {auto_class}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH_OF_THIS_FOLDER")
model = {auto_class}.from_pretrained("PATH_OF_THIS_FOLDER")
{load}
```

No code of this folder is run, and nothing in it is a pickle. `probe.safetensors` holds prompts with the
logits of the trainer and of these weights; Slipway computes them again before it serves or uses the model.
"""

_CUSTOM_CARD = """\
---
tags:
- slipway
---

# {name}

A network of its own kind, trained with Slipway. Its code is not in this folder: it is a class that you have.

| | |
|---|---|
{table}

## How to load it

```python
import json

from safetensors.torch import load_file
from {module} import {class_name}

settings = json.load(open("PATH_OF_THIS_FOLDER/config.json"))["settings"]
network = {class_name}(**settings).eval()
network.load_state_dict(load_file("PATH_OF_THIS_FOLDER/model.safetensors"), strict=False)
```

`forward` takes a dictionary of tensors by column, rows first, and returns one with `predictions`. Nothing in this
folder is a pickle. `probe.safetensors` holds rows with the predictions of the trainer and of these weights; Slipway
computes them again before it serves the network.
"""
