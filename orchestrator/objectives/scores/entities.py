"""Entities that tags spell out, and their precision, recall and F1. Pure.

An entity counts as found if its type, its first and its last token are all right (CoNLL 2000 and 2003). Tags are read
leniently, as the shared tasks' scorer and seqeval's default mode do: an entity also begins at an I- or E- that
continues nothing. B-, I-, E- (end) and S- (single) give what seqeval gives. L- and U- of BILOU are other names of E-
and S-; seqeval's default mode does not know these and loses some of their entities.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from orchestrator.objectives.scores.arithmetic import precision_recall_f1
from orchestrator.objectives.scores.result import Row, Scores, State, Table, require_same_length, require_scored

Entity = tuple[str, int, int]
"""Type, first and last token, both inside."""

_OUTSIDE = ("O", "")
_ROLES = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S"}


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of one sentence, in order; they do not overlap.

    Raises:
        ValueError: a tag is neither `O` nor one of B, I, E, S, L, U with `-` and a type.
    """
    found = []
    first = 0
    before = _OUTSIDE
    for i, tag in enumerate([*tags, "O"]):
        now = _parsed(tag)
        continues = now[0] in ("I", "E") and before[0] in ("B", "I") and now[1] == before[1]
        if not continues:
            if before != _OUTSIDE:
                found.append((before[1], first, i - 1))
            first = i
        before = now
    return found


class EntityScores:
    """Counts of entities by type: found right, predicted, true; and of tokens."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._tokens = 0
        self._correct_tokens = 0

    def add(self, predicted: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> None:
        """Names of the tags of each sentence.

        Raises:
            ValueError: as `entities`, or a sentence has not as many predicted tags as true ones.
        """
        require_same_length(len(predicted), len(truth), "predicted and true sentences")
        for predicted_tags, true_tags in zip(predicted, truth, strict=True):
            require_same_length(len(predicted_tags), len(true_tags), "predicted and true tags of a sentence")
            self._tokens += len(true_tags)
            self._correct_tokens += sum(map(str.__eq__, predicted_tags, true_tags))
            given, wanted = set(entities(predicted_tags)), set(entities(true_tags))
            for column, of_kind in enumerate((given & wanted, given, wanted)):
                for kind, _, _ in of_kind:
                    self._counts.setdefault(kind, [0, 0, 0])[column] += 1

    def state(self) -> State:
        """As Accumulator."""
        counts = {kind: list(row) for kind, row in self._counts.items()}
        return {"counts": counts, "tokens": self._tokens, "correct_tokens": self._correct_tokens}

    def merge(self, states: Iterable[State]) -> None:
        """As Accumulator."""
        for state in states:
            self._tokens += state["tokens"]
            self._correct_tokens += state["correct_tokens"]
            for kind, row in state["counts"].items():
                mine = self._counts.setdefault(kind, [0, 0, 0])
                mine[:] = [a + b for a, b in zip(mine, row, strict=True)]

    def result(self) -> Scores:
        """`precision`, `recall` and `f1` over all entities (micro), `token_accuracy`; the table `types`.

        Without a predicted entity precision is 0, without a true one recall is.
        """
        require_scored(self._tokens, "tokens")
        types = sorted(self._counts)
        counts_C3 = np.array([self._counts[kind] for kind in types], dtype=np.int64).reshape(-1, 3)
        by_type = precision_recall_f1(*counts_C3.T)
        precision, recall, f1 = (float(score[0]) for score in precision_recall_f1(*counts_C3.sum(axis=0)[:, None]))
        rows: tuple[Row, ...] = tuple(
            (kind, *(float(score[i]) for score in by_type), int(counts_C3[i, 2])) for i, kind in enumerate(types)
        )
        return Scores(
            {
                "precision": precision,
                "recall": recall,
                "f1": f1,
                "token_accuracy": self._correct_tokens / self._tokens,
            },
            {"types": Table(("type", "precision", "recall", "f1", "support"), rows)},
        )


@lru_cache(maxsize=4096)
def _parsed(tag: str) -> tuple[str, str]:
    """What the tag does (O, B, I, E or S), and its type."""
    if tag == "O":
        return _OUTSIDE
    if len(tag) < 3 or tag[1] != "-" or tag[0] not in _ROLES:
        raise ValueError(f"tag {tag!r} is neither O nor one such as B-person: tags without entities have classes only")
    return _ROLES[tag[0]], tag[2:]
