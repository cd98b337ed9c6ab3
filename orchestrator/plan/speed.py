"""Time and price: what a machine could compute, what of it training reaches, and what an hour costs. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.job import JobSpec
from orchestrator.plan.network import Network
from orchestrator.plan.values import ClusterView, Probe

ASSUMED_MFU = 0.4
"""Share of the peak that training is taken to reach on GPUs: large models reach 0.46 to 0.56 (Chowdhery et al. 2022,
table 3; Korthikanti et al. 2022, table 5), small ones and slow networks less."""


@dataclass(frozen=True)
class Gpu:
    """A GPU's data sheet: peak FLOP/s without sparsity, and its memory."""

    pattern: str
    """Of its name, in capitals."""
    name: str
    half: float
    """bf16 (of GPUs before Ampere: fp16)."""
    single: float
    """fp32 outside of tensor cores: torch's default for fp32 matrices."""
    memory_gb: int


# Data sheets of NVIDIA (B200, H200, H100, L40S, L4, A100, A40, A10, RTX A6000, T4, V100; RTX 4090: Ada white paper,
# fp32 accumulation) and AMD (MI300X, MI250X). The first pattern that is found counts.
_GPUS = (
    Gpu(r"B200", "B200", 2250e12, 75e12, 180),
    Gpu(r"H200|GH200", "H200", 989e12, 67e12, 141),
    Gpu(r"H100.*NVL", "H100 NVL", 835e12, 60e12, 94),
    Gpu(r"H100.*PCIE", "H100 PCIe", 756e12, 51e12, 80),
    Gpu(r"H100", "H100", 989e12, 67e12, 80),
    Gpu(r"A100.*40", "A100 40GB", 312e12, 19.5e12, 40),
    Gpu(r"A100", "A100 80GB", 312e12, 19.5e12, 80),
    Gpu(r"L40S", "L40S", 362e12, 91.6e12, 48),
    Gpu(r"\bL4\b", "L4", 121e12, 30.3e12, 24),
    Gpu(r"\bA40\b", "A40", 150e12, 37.4e12, 48),
    Gpu(r"\bA10G?\b", "A10", 125e12, 31.2e12, 24),
    Gpu(r"RTX A6000", "RTX A6000", 155e12, 38.7e12, 48),
    Gpu(r"RTX 4090", "RTX 4090", 165e12, 82.6e12, 24),
    Gpu(r"\bT4\b", "T4", 65e12, 8.1e12, 16),
    Gpu(r"V100.*32", "V100 32GB", 125e12, 15.7e12, 32),
    Gpu(r"V100", "V100", 125e12, 15.7e12, 16),
    Gpu(r"MI300X", "MI300X", 1307e12, 163e12, 192),
    Gpu(r"MI250X?", "MI250X", 383e12, 47.9e12, 128),
)


def gpu_by_name(name: str) -> Gpu | None:
    """The data sheet of a GPU as its driver or Ray calls it; None of one that is not in the table."""
    return next((gpu for gpu in _GPUS if re.search(gpu.pattern, name.upper())), None)


def gpu_by_memory(memory_bytes: int) -> Gpu | None:
    """The slowest GPU that is sold with this memory, within 7 % (drivers report less or more than the label)."""
    fitting = [gpu for gpu in _GPUS if abs(memory_bytes / (gpu.memory_gb * 1e9) - 1) <= 0.07]
    return min(fitting, key=lambda gpu: gpu.half, default=None)


@dataclass(frozen=True)
class Speed:
    """What a worker computes, and where the number is from."""

    worker_flops: float | None
    """FLOP/s that training reaches; None: unknown."""
    source: str


def speed_of(job: JobSpec, view: ClusterView) -> Speed:
    """The worker's assumed speed: the job's peak, or the data sheet's, times the assumed share of it."""
    half = job.training.precision != "fp32"
    if job.cluster.worker_flops:
        return _reached(job.cluster.worker_flops, "cluster.worker_flops of the job")
    if not job.training.workers.gpus:
        return Speed(None, "unknown: CPUs differ too much; probe it, or set cluster.worker_flops")
    nodes = [node for node in view.nodes if node.gpus]
    names = sorted({node.gpu_name for node in nodes if node.gpu_name})
    sheets = [gpu_by_name(name) for name in names]
    if names and all(node.gpu_name for node in nodes):
        known = [gpu for gpu in sheets if gpu]
        if len(known) < len(sheets):
            return Speed(None, f"unknown: no data sheet of {', '.join(names)}; set cluster.worker_flops")
        slowest = min(known, key=lambda gpu: gpu.half)
        return _reached(slowest.half if half else slowest.single, f"{slowest.name}, data sheet")
    sizes = [node.gpu_memory_bytes for node in nodes if node.gpu_memory_bytes]
    guess = gpu_by_memory(min(sizes)) if sizes else None
    if guess is None:
        return Speed(None, "unknown: which GPU it is; set cluster.worker_flops")
    peak = guess.half if half else guess.single
    return _reached(peak, f"no name given: taken for {guess.name}, the slowest with this memory")


def _reached(peak: float, origin: str) -> Speed:
    return Speed(peak * ASSUMED_MFU, f"assumed: {ASSUMED_MFU:.0%} of {peak / 1e12:.4g} TFLOP/s a worker ({origin})")


def hours_of(
    job: JobSpec, view: ClusterView, *, network: Network | None, workers: int, probe: Probe | None
) -> tuple[float | None, str]:
    """Hours of training, without start-up, evaluation and checkpoints; and what that rests on."""
    tokens = job.training.steps * job.training.batch_tokens
    if probe is not None:
        rate = probe.tokens_per_s * workers / probe.workers
        return tokens / rate / 3600.0, _measured(probe, rate, workers)
    speed = speed_of(job, view)
    if network is None:
        return None, "unknown: the size of the model is"
    if speed.worker_flops is None:
        return None, speed.source
    flops = tokens * network.executed_flops_per_token
    return flops / (speed.worker_flops * workers) / 3600.0, speed.source


def _measured(probe: Probe, rate: float, workers: int) -> str:
    """What a probe says of time, and what it did not see."""
    of = " on random tokens" if probe.samples == "random" else ""
    said = f"measured by a probe of {probe.steps} steps{of}: {rate:,.0f} tokens/s"
    if workers == probe.workers:
        return said
    return f"{said}, scaled from {probe.workers} to {workers} workers without what they exchange"


def cost_of(job: JobSpec, workers: int, hours: float | None) -> float | None:
    """Price of the workers for so long: of their GPUs, or where they have none of their CPUs."""
    w = job.training.workers
    price = job.cluster.gpu_hour_price if w.gpus else job.cluster.cpu_hour_price
    if hours is None or price is None:
        return None
    return hours * workers * (w.gpus or w.cpus) * price
