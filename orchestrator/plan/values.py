"""The values of planning: what there is to run on, what was measured, and what will happen."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from orchestrator.job_section import Positive, Section

STAGES = ("prepare", "train", "export", "serve")
Stage = Literal["prepare", "train", "export", "serve"]
Status = Literal["done", "todo", "unknown"]


class Node(Section):
    """Free resources of one machine."""

    cpus: float
    gpus: float = 0.0
    memory_bytes: int | None = None
    """Of the host; null where it is not known."""
    gpu_memory_bytes: int | None = None
    """Of one GPU; null where it is not known."""
    gpu_name: str | None = None
    """As its maker calls it, such as `NVIDIA H100 80GB HBM3`."""


class ClusterView(Section):
    """What there is to run on: read from a live Ray, from this machine, or declared."""

    nodes: list[Node] = Field(min_length=1)
    source: Literal["ray", "local", "declared"] = "local"

    def describe(self) -> str:
        """For messages: `2 CPUs, 0 GPUs on 1 node(s)`."""
        cpus, gpus = sum(n.cpus for n in self.nodes), sum(n.gpus for n in self.nodes)
        return f"{cpus:g} CPUs and {gpus:g} GPUs on {len(self.nodes)} node(s)"


class StageStatus(Section):
    """Whether a stage's output is in the store already; kept beside the plan, never in it."""

    stage: Stage
    status: Status
    path: str | None = None
    """Relative to the store; null where the name is not known yet."""
    detail: str | None = None


class Probe(Section):
    """A few real steps, measured: what the plan says instead of what it would assume."""

    steps: Positive
    """How many were timed."""
    workers: Positive
    stage: int = Field(ge=0, le=3)
    """Of ZeRO."""
    micro_batch: Positive
    tokens_per_s: float = Field(gt=0.0)
    """Of all workers together, counted as the job counts: a sample is as many as the context, padding included."""
    peak_bytes: Positive | None = None
    """Highest memory of a worker above what the process held before the engine was built."""
    samples: Literal["dataset", "random"] = "dataset"
    """The job's own, or random tokens in full rows."""


class Memory(Section):
    """Bytes of one worker in a training step. The process itself (interpreter, libraries) is not in it."""

    weights: int
    """What the model computes with; under stage 3 with what is gathered at a time."""
    gradients: int
    """With the buffers that they are reduced in."""
    optimizer: int
    """Moments, the fp32 copy of the weights, and a moving average of them."""
    activations: int
    """Saved for the backward pass of one micro-batch."""
    logits: int
    """The chunk of them that stands at a time."""
    checkpoint: int = 0
    """The copy that is written beside the training: in the host's memory."""
    peak: int
    """The highest moment of a step: not the sum, because activations go while gradients come."""


class Plan(Section):
    """What will happen, in numbers. Saved with the run and sent to W&B."""

    format: Literal[2] = 2
    job: str
    workers: int
    """Training processes: as many as fit, up to the job's max."""
    fits: bool
    """Whether the view holds the job's min."""
    cluster: str
    samples_per_step: int
    zero_stage: int
    """As the job says, or chosen."""
    micro_batch: int
    """Samples in one forward pass of one worker."""
    accumulation: int
    """Forward passes of each worker per step; derived, so that batch_tokens holds on any number of workers."""
    steps: int
    total_tokens: int
    warmup_tokens: int
    vocab_size: int | None
    """null while the tokenizer's size is not known."""
    parameters: int | None
    trained_parameters: int | None
    """Fewer than `parameters` with LoRA."""
    flops_per_token: float | None
    """Forward and backward: 6 N + 12 L D T."""
    training_flops: float | None
    state_bytes_per_worker: int | None
    """Weights, gradients and optimizer state of one worker; activations are not in it."""
    memory_per_worker: Memory | None
    host_bytes_per_worker: int | None
    """Host memory that ZeRO offload takes for each worker; 0 without it."""
    usable_bytes_per_worker: int | None
    """What a worker may fill: its GPU, or its share of the host, less a margin; null where memory is not known."""
    hours: float | None
    cost: float | None
    """In the currency of the job's prices."""
    speed: str
    """What `hours` rests on: a measurement, an assumption, or why there is none."""
    why: list[str]
    """A sentence for each choice."""
    warnings: list[str]

    def summary(self) -> dict[str, Any]:
        """The document that `slipway plan --json` puts first: numbers, and the reasons for them.

        It has the same keys for every job; what is not known is null.
        """
        parts = [name for name in Memory.model_fields if name != "checkpoint"]
        memory = self.memory_per_worker.model_dump() if self.memory_per_worker else {}
        return {
            "parameters": self.parameters,
            "flops_per_token": self.flops_per_token,
            "zero_stage": self.zero_stage,
            "micro_batch": self.micro_batch,
            "accumulation": self.accumulation,
            "memory_per_worker": {name: memory.get(name) for name in parts},
            "steps": self.steps,
            "tokens": self.total_tokens,
            "hours": self.hours,
            "cost": self.cost,
            "why": self.why,
        }
