"""The highest moment of a training step. Pure.

A step has three: the end of the forward pass (activations, logits, and gradients of the micro-batches before), the end
of the backward pass (all gradients, in their buffers, and the activations of one layer), and the update. What stands
through all of them is weights, optimizer state and, on a CPU, the copy of both that is written as a checkpoint.
"""

from __future__ import annotations

from orchestrator.plan.activations import activations, logits, loss_peak, passing, table_gradient
from orchestrator.plan.network import Case
from orchestrator.plan.states import States, copied_bytes, states
from orchestrator.plan.values import Memory

_SCRATCH_BYTES = {"fp32": 50_000_000, "bf16": 80_000_000, "fp16": 80_000_000}
"""On a CPU: what the matrix libraries keep once they have been used."""

_HEAP_SHARE = 0.15
"""On a CPU: what the C library's heap holds beyond what passes and updates need of it at a time."""

_DEEPSPEED_COPIES = 2
"""On a CPU: numbers of c bytes a parameter that are resident under DeepSpeed beside its tensors.

These three are fitted to resident memory (tests/slow/test_plan_memory.py), not derived. GPUs have none of them.
"""


def memory_of(case: Case) -> Memory:
    """Bytes of one worker by part, and at the peak."""
    state, saved, chunk = states(case), activations(case), logits(case)
    return Memory(
        weights=state.weights + state.gathered,
        gradients=state.reduced,
        optimizer=state.optimizer,
        activations=saved,
        logits=chunk,
        checkpoint=copied_bytes(case),
        peak=_always(case, state) + _with_slack(case, _highest(case, state, saved)),
    )


def _highest(case: Case, state: States, saved: int) -> int:
    """Of the three moments."""
    return max(_forward(case, state, saved), _backward(case, state, saved), state.stepping)


def _with_slack(case: Case, moving: int) -> int:
    """What comes and goes, with what a CPU's libraries hold beside it."""
    if case.on_gpu:
        return moving
    standing = 0 if case.uses_torch else _DEEPSPEED_COPIES * case.compute_bytes * case.network.parameters
    flat = states(case).reduced if case.uses_torch else 0  # the plain engine's gradients are one vector, made once
    return flat + round((moving - flat) * (1 + _HEAP_SHARE)) + _SCRATCH_BYTES[case.train.precision] + standing


def host_bytes(case: Case) -> int:
    """Host memory that one worker of a GPU takes: by offload, and for a checkpoint's copy (of NVMe two)."""
    copies = 2 if case.train.zero.offload.optimizer == "nvme" else 1
    return states(case).host + (copies * copied_bytes(case) if case.on_gpu else 0)


def _always(case: Case, state: States) -> int:
    copied = 0 if case.on_gpu else copied_bytes(case)
    return state.weights + state.optimizer + copied + _reference(case)


def _reference(case: Case) -> int:
    """A preference is measured against the frozen model that it began from; with LoRA that is the one at hand."""
    if case.network.objective != "preference" or case.train.lora:
        return 0
    return case.compute_bytes * case.network.parameters


def _forward(case: Case, state: States, saved: int) -> int:
    """The last pass's end: its loss, or the gradients that begin to flow back through its last layer."""
    return state.gathered + state.standing + saved + max(loss_peak(case), table_gradient(case) + passing(case))


def _backward(case: Case, state: States, saved: int) -> int:
    """All gradients but the table's, which is the sum of those of its two uses; one layer's activations are left."""
    layer = saved // (case.config.layers + 1)
    return state.gathered + state.reduced + max(layer + passing(case), table_gradient(case)) + table_gradient(case)
