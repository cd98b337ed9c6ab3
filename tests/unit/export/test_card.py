"""The model card."""

from __future__ import annotations

from dataclasses import replace

import yaml
from export_fixtures import FACTS, TINY

from orchestrator.export.card import model_card


def card(facts: object = FACTS) -> str:
    return model_card(facts, config=TINY, step=20, precision="bf16", tokenizer_size=300)  # type: ignore[arg-type]


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
