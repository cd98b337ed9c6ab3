"""Lines for people from code that runs on every rank."""

from __future__ import annotations

import torch.distributed as dist

from orchestrator.track.progress import say


def say_once(message: str) -> None:
    """A line from rank 0 for all; the others would only repeat it."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        say(message)
