"""The model card."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from export_fixtures import FACTS, HEADS, SHAPES, TINY

from model.config import HeadConfig, ModelConfig
from model.families import LM
from orchestrator.export.card import ExportFacts, import_card, model_card


def card(facts: ExportFacts = FACTS, head: HeadConfig = LM, config: ModelConfig = TINY) -> str:
    return model_card(facts, config=config, head=head, step=20, precision="bf16", tokenizer_size=300)


def test_it_says_data_tokenizer_steps_losses_and_versions() -> None:
    text = card()
    for said in (
        "| Data | 12 lines \\| of text |",
        "| Tokenizer | 300 tokens, in `tokenizer.json` |",
        "| Steps | 20 |",
        "| Training loss | 2.5000 nats per token |",
        "| Validation loss | not measured |",
        "| Training precision | bf16 |",
        "| Versions | torch 2.13.0 |",
        f"| Parameters | {TINY.parameters:,} |",
    ):
        assert said in text


def test_the_front_matter_is_yaml_and_names_the_task() -> None:
    front = card().split("---\n")[1]
    assert yaml.safe_load(front)["pipeline_tag"] == "text-generation"


def test_a_line_break_in_a_fact_does_not_break_the_table() -> None:
    text = card(replace(FACTS, data="first\nsecond"))
    assert "| Data | first second |" in text


@pytest.mark.parametrize(
    ("kind", "pipeline", "loads"),
    [
        ("mlm", "fill-mask", "AutoModelForMaskedLM"),
        ("pretraining", "fill-mask", "AutoModelForPreTraining"),
        ("classification", "text-classification", "AutoModelForSequenceClassification"),
        ("token-classification", "token-classification", "AutoModelForTokenClassification"),
        ("question-answering", "question-answering", "AutoModelForQuestionAnswering"),
    ],
)
def test_an_encoders_card_says_how_to_load_its_head(kind: str, pipeline: str, loads: str) -> None:
    head = HEADS[kind]
    text = card(head=head, config=SHAPES["bert"])
    assert yaml.safe_load(text.split("---\n")[1])["pipeline_tag"] == pipeline
    assert f"from transformers import {loads}, AutoTokenizer" in text
    assert f"{loads}.from_pretrained" in text
    assert all(f"`{label}`" in text for label in head.labels)


def test_its_losses_are_of_what_the_head_judges() -> None:
    assert "2.5000 nats per word" in card(head=HEADS["token-classification"], config=SHAPES["bert"])


def test_the_card_of_an_import_says_where_it_comes_from_and_no_more() -> None:
    text = import_card("theirs", config=TINY, head=LM, source="Their-Model", tokenizer_size=300)
    assert "| Source | the folder `Their-Model` |" in text
    assert "imported into Slipway" in text
    assert "Training loss" not in text
