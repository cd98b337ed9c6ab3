"""Scores as plain JSON."""

from __future__ import annotations

import json
import math

import pytest

from orchestrator.objectives.scores.result import Scores, Table, require_same_length, require_scored


def test_scores_are_plain_json_with_null_for_what_json_lacks() -> None:
    scores = Scores({"loss": math.nan, "f1": 0.5}, {"types": Table(("type", "f1"), (("PER", math.inf), ("é", 1)))})
    written = json.dumps(scores.to_json(), allow_nan=False)
    assert json.loads(written) == {
        "metrics": {"loss": None, "f1": 0.5},
        "tables": {"types": {"columns": ["type", "f1"], "rows": [["PER", None], ["é", 1]]}},
    }


def test_what_cannot_be_scored_is_named() -> None:
    with pytest.raises(ValueError, match="no rows to score"):
        require_scored(0, "rows")
    with pytest.raises(ValueError, match=r"tags must be as many as each other: they are 2 and 3"):
        require_same_length(2, 3, "tags")
    require_scored(1, "rows")
    require_same_length(2, 2, "tags")
