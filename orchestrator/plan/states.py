"""Weights, gradients and optimizer state of one worker, by engine and ZeRO stage. Pure.

The shares are those of Rajbhandari et al. 2020 (section 3): of n workers, stage 1 divides the optimizer state by n,
stage 2 the gradients too, stage 3 the weights too. The copies and buffers beside them are what the engines allocate,
read in their source (DeepSpeed 0.19 `stage_1_and_2.py` and `stage3.py`; `train/engine/`) and measured by
tests/slow/test_plan_memory.py.

P parameters, Q trained ones, n workers, c bytes of a number that is computed with.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.plan.network import Case

BUCKET_NUMBERS = 50_000_000
"""Gradients in one reduction: large enough to keep a link busy, small enough to stay beside the gradients."""

_LIVE_NUMBERS = 550_000_000
"""Stage 3: parameters that stay gathered. DeepSpeed releases one only if its next use is 1e9 numbers away, and from the
forward to the backward pass that is twice the numbers in between; 5e7 more are fetched ahead."""

_SUB_GROUP_NUMBERS = 1_000_000_000
"""Stage 3: numbers that are updated at a time."""

_MOMENTS = {"adamw": 2, "sgd": 1, "adagrad": 1, "lion": 1, "muon": 1}
"""Numbers of optimizer state for each trained parameter; of muon's matrices."""

_MASTER = 4
"""Bytes of a number in fp32."""


@dataclass(frozen=True, kw_only=True)
class States:
    """Bytes of one worker, apart from activations."""

    weights: int
    gathered: int = 0
    """Stage 3: whole parameters, during the passes."""
    optimizer: int
    standing: int
    """Gradients that are there while the last micro-batch goes forward."""
    reduced: int
    """Gradients and their buffers at the end of the backward pass."""
    stepping: int
    """Gradients and copies of them while the optimizer runs."""
    host: int = 0
    """On the host, by offload from a GPU."""


def states(case: Case) -> States:
    """What a worker holds beside activations."""
    if case.stage == 0:
        return _unsharded(case)
    kept = _sharded(case) if case.stage < 3 else _gathering(case)
    return _offloaded(case, kept) if case.on_gpu else kept


def copied_bytes(case: Case) -> int:
    """What a worker copies for a checkpoint, in host memory: its part of moments, fp32 weights and their average."""
    trained = case.network.trained
    if case.stage == 0:  # rank 0 copies for all
        average = trained if case.train.ema else 0
        return _MASTER * (_moments(case) + trained + average)
    return _optimizer(case)


def _moments(case: Case) -> int:
    """Numbers of optimizer state of the whole model."""
    name, trained = case.train.optimizer.name, case.network.trained
    if name == "muon" and case.train.lora is None:
        # Muon keeps one moment of the blocks' matrices; AdamW two of all else.
        tables = case.config.vocab_size * case.config.width if case.config.is_decoder else 0
        return 2 * trained - (case.config.matmul_parameters - tables)
    return _MOMENTS[name] * trained


def _unsharded(case: Case) -> States:
    """The plain torch engine: flat vectors of weights and gradients, in fp32 and (bf16) in what is computed with.

    fp32: 4 P, gradients 4 Q. bf16: weights 2 P, fp32 copy 4 Q; gradients 2 Q, and 4 Q that they are added up in; frozen
    weights stay in fp32 beside what is computed with, on the host.
    """
    c, whole, trained = case.compute_bytes, case.network.parameters, case.network.trained
    low = c < _MASTER
    frozen = _MASTER * (whole - trained) if low else 0
    gradients = c * trained + (_MASTER * trained if low else 0)
    average = _MASTER * trained if case.train.ema else 0
    return States(
        weights=c * whole + (0 if case.on_gpu else frozen),
        optimizer=_MASTER * _moments(case) + (_MASTER * trained if low else 0) + average,
        standing=gradients,
        reduced=gradients,
        stepping=gradients + _update(case, trained),
        host=frozen if case.on_gpu else 0,
    )


def _update(case: Case, numbers: int) -> int:
    """Copies that an update makes of numbers in fp32: Lion's directions; elsewhere fused kernels need none."""
    return _MASTER * numbers if case.train.optimizer.name == "lion" else 0


def _bucket(case: Case) -> int:
    """The buffer that gradients are reduced in: on a GPU two, whole; on a CPU only what is written takes memory."""
    return case.compute_bytes * (2 * BUCKET_NUMBERS if case.on_gpu else min(BUCKET_NUMBERS, case.network.trained))


def _share(numbers: int, case: Case) -> int:
    return -(-numbers // case.workers)


def _optimizer(case: Case) -> int:
    """Moments, the fp32 copy, which DeepSpeed makes of fp32 weights too, and its average: (4 + 4 moments + 4) Q / n."""
    copies = 2 if case.train.ema else 1
    return _MASTER * (_share(_moments(case), case) + copies * _share(case.network.trained, case))


def _sharded(case: Case) -> States:
    """Stages 1 and 2. The update's fp32 gradient is made of the flattened ones, of which there are two for a moment."""
    c, trained, mine = case.compute_bytes, case.network.trained, _share(case.network.trained, case)
    several = case.accumulation > 1
    held = trained if case.stage == 1 else mine  # stage 1 adds up whole gradients, stage 2 its own part
    return States(
        weights=c * case.network.parameters,
        optimizer=_optimizer(case),
        standing=c * held if several else 0,
        reduced=c * mine + _bucket(case) + (c * held if several else 0),
        stepping=2 * c * mine + (_MASTER * mine if c < _MASTER else 0) + _update(case, mine),
    )


def _gathering(case: Case) -> States:
    """Stage 3. What is gathered for the passes is released before the update; the bucket stays."""
    c, mine = case.compute_bytes, _share(case.network.trained, case)
    gradients = c * mine + _bucket(case)
    updated = min(mine, _SUB_GROUP_NUMBERS)
    return States(
        weights=c * _share(case.network.parameters, case),
        gathered=c * min(case.network.parameters, _LIVE_NUMBERS),
        optimizer=_optimizer(case),
        standing=gradients,
        reduced=gradients + _bucket(case),  # reduced and scattered into a buffer of its own
        stepping=gradients + c * updated + (_MASTER * updated if c < _MASTER else 0) + _update(case, updated),
    )


def _offloaded(case: Case, kept: States) -> States:
    """ZeRO-Offload and ZeRO-Infinity (Ren et al. 2021; Rajbhandari et al. 2021): state moves to the host, or to NVMe.

    On the host an update needs the fp32 gradient and the rounded result beside the state; from NVMe it goes through
    four buffers of a sub-group's size, and parameters through five of 1e8 numbers.
    """
    c, mine, offload = case.compute_bytes, _share(case.network.trained, case), case.train.zero.offload
    weights, optimizer, stepping, host = kept.weights, kept.optimizer, kept.stepping, 0
    if offload.optimizer != "off":
        on_host = optimizer if offload.optimizer == "cpu" else 4 * _MASTER * min(mine, _SUB_GROUP_NUMBERS)
        host += on_host + (_MASTER + c) * mine
        optimizer, stepping = 0, kept.standing
    if offload.parameters != "off":
        host += weights if offload.parameters == "cpu" else 5 * c * 100_000_000
        weights = 0
    return States(
        weights=weights,
        gathered=kept.gathered,
        optimizer=optimizer,
        standing=kept.standing,
        reduced=kept.reduced,
        stepping=stepping,
        host=host,
    )
