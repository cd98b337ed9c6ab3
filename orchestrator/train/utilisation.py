"""How much of the machine a step uses: FLOPs against a stated peak and against a measured product, and memory."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

import torch

from orchestrator.job_train import Train
from orchestrator.track import metrics

_SIDE = 1024
_REPEATS = 5


@dataclass(frozen=True)
class Utilisation:
    """What a step's line says of the machine.

    Args:
        flops_per_token: forward and backward; None where nobody can count them.
        workers: of the run.
        stated_flops: peak of one worker, as the job says; None: it does not.
        product_flops: what a plain product of matrices reaches on one worker.
    """

    flops_per_token: float | None
    workers: int
    stated_flops: float | None
    product_flops: float

    def line(self, tokens_per_s: float) -> dict[str, float]:
        """Metrics of a step; MFU as in Chowdhery et al. 2022, appendix B."""
        found: dict[str, float] = {metrics.PEAK_MEMORY: peak_bytes()}
        if self.flops_per_token is None:
            return found
        rate = tokens_per_s * self.flops_per_token / self.workers
        found[metrics.MFU_OF_PRODUCT] = round(rate / self.product_flops, 4)
        if self.stated_flops:
            found[metrics.MFU] = round(rate / self.stated_flops, 4)
        return found


def peak_bytes() -> int:
    """The most memory that this process has held: of its GPU, or resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured_product_flops(train: Train, device: torch.device) -> float:
    """FLOP/s of a product of square matrices in the job's precision; the best of a few, some milliseconds in all."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[train.precision]
    side = _SIDE * (8 if device.type == "cuda" else 1)
    matrix = torch.ones((side, side), dtype=dtype, device=device)
    best_s = float("inf")
    for _ in range(_REPEATS):
        began_at = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best_s = min(best_s, time.perf_counter() - began_at)
    return 2.0 * side**3 / best_s
