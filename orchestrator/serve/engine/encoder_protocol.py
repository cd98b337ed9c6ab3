"""What an engine of an encoder is: texts in, vectors or classes out. Imports no torch.

Shapes: B texts, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What an encoder says of some texts; it has one of the two."""

    vectors_BD: list[list[float]] | None = None
    logits_BC: list[list[float]] | None = None


class EncoderEngine(Protocol):
    """What the routes need of an engine of an encoder."""

    async def encode(self, prompts_B: Ids[Ids[int]]) -> Encoded:
        """The vectors (an embedder) or the logits of the classes (a classifier) of some texts' token ids.

        Raises:
            EngineBusyError: too many texts wait already.
            EngineError: it failed.
        """
        ...

    async def check(self, *, timeout_s: float) -> None:
        """Encode one token.

        Raises:
            EngineError: that failed, or took longer.
        """
        ...
