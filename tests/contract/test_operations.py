"""The operator's manual has a section for each class of failure, and each says what is seen, why, and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.train.recovery.failures import FailureClass

MANUAL = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^### `([^`]+)`\n(.*?)(?=^##)", re.MULTILINE | re.DOTALL)
SECTIONS = dict(SECTION.findall(MANUAL.partition("## Failure classes")[2]))
WORK = (
    "Upgrading",
    "Backing up a store",
    "Moving a store",
    "Rotating the token",
    "Adding machines",
    "Draining a machine",
    "When the disk is full",
    "The audit log",
)


@pytest.mark.parametrize("kind", FailureClass, ids=lambda kind: kind.value)
def test_every_class_has_what_is_seen_why_and_what_to_do(kind: FailureClass) -> None:
    section = SECTIONS[kind.value]
    for part in ("**Seen**: ", "**Why**: ", "**Do**: "):
        assert section.count(part) == 1


def test_no_section_is_of_a_class_that_is_not_there() -> None:
    assert set(SECTIONS) == {kind.value for kind in FailureClass}


@pytest.mark.parametrize("work", WORK)
def test_the_work_that_comes_round_is_described(work: str) -> None:
    assert f"\n## {work}\n" in MANUAL
    assert f"(#{work.lower().replace(' ', '-')})" in MANUAL
