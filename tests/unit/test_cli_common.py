"""What all verbs share."""

from __future__ import annotations

import pytest

from orchestrator.cli import app
from orchestrator.cli_common import verb_of


@pytest.mark.parametrize(
    ("typed", "verb"),
    [
        ("keys create --name", "keys create "),
        ("feedback export --format x --out y", "feedback export "),
        ("serve RUN --port 0", "serve "),
        ("--debug import --nope", "import "),
        ("keys nope", "keys "),
        ("nope", ""),
        ("", ""),
    ],
)
def test_the_verb_whose_help_says_more(typed: str, verb: str) -> None:
    assert verb_of(app, typed.split()) == verb
