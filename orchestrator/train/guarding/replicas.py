"""Whether ranks that should hold the same weights do: memory and arithmetic fail silently (Dixit et al. 2021). Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from orchestrator.errors import TrainError

_FIX = (
    "run the same command again: it goes on from the newest checkpoint, which was compared before it was written; "
    "where the same rank is named again, take its machine out. Machines of different kinds may round differently: "
    "there set train.guard.replicas_every_steps=null"
)


def require_alike(checksums: Sequence[int | None], *, step: int) -> None:
    """Refuse ranks whose weights differ; `checksums` are those of all ranks, None where a rank holds nothing alike.

    Raises:
        TrainError: names the ranks that differ from the majority, or all where there is none.
    """
    held = {rank: number for rank, number in enumerate(checksums) if number is not None}
    counts = Counter(held.values()).most_common(1)
    if not counts or counts[0][1] == len(held):
        return
    most, votes = counts[0]
    wrong = [rank for rank, number in held.items() if number != most] if votes > len(held) / 2 else list(held)
    named = ", ".join(map(str, wrong))
    if len(wrong) < len(held):
        who = f"rank {named} differ from those of the others" if len(wrong) == 1 else f"ranks {named} differ from most"
    else:
        who = f"ranks {named} differ from each other, and no majority tells which are wrong"
    raise TrainError(f"step {step}: the weights of {who}; nothing was saved of them", fix=_FIX)
