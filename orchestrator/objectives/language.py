"""The scores of language modelling: losses are enough, and the bytes that the predicted tokens stand for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from orchestrator.objectives.protocol import Batch, Tensors
from orchestrator.objectives.scores.language import LanguageScores
from orchestrator.objectives.scores.result import Scores

TokenBytes = npt.NDArray[np.int64]
"""[V] UTF-8 bytes of text by token id; 0 for special tokens."""


class LanguageScorer:
    """`Scorer` of a mean loss a token."""

    needs_outputs = False

    def __init__(self, part: str, *, token_bytes: TokenBytes | None) -> None:
        self._part, self._token_bytes = part, token_bytes
        self._scores = LanguageScores()

    def add(self, batch: Batch, losses: Mapping[str, float], outputs: Tensors) -> None:
        """As Scorer."""
        text_bytes = self._bytes_of(batch.tensors["targets"])
        self._scores.add(losses[self._part], batch.counts[self._part], text_bytes)

    def state(self) -> Any:
        """As Scorer."""
        return self._scores.state()

    def result(self, states: Sequence[Any]) -> Scores:
        """As Scorer."""
        scores = LanguageScores()
        scores.merge(states)
        return scores.result()

    def _bytes_of(self, targets_BT: Tensor) -> int | None:
        if self._token_bytes is None:
            return None
        ids = targets_BT.numpy()
        return int(self._token_bytes[ids[ids >= 0]].sum())


def token_bytes(tokenizer: Path, vocab_size: int) -> TokenBytes | None:
    """Bytes of text by token id; None where tokens are no byte-level spelling (WordPiece drops spaces)."""
    data = json.loads(tokenizer.read_text(encoding="utf-8"))
    decoder = data.get("decoder") or {}
    if decoder.get("type") != "ByteLevel":
        return None
    found = np.zeros(vocab_size, dtype=np.int64)
    for token, number in data["model"]["vocab"].items():
        if number < vocab_size:
            found[number] = len(token)  # byte-level: one character stands for one byte
    for added in data.get("added_tokens", []):
        if added["special"] and added["id"] < vocab_size:
            found[added["id"]] = 0
    return found
