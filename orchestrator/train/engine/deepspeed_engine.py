"""Weights, gradients and optimizer state under DeepSpeed ZeRO. The one home of deepspeed.

`TrainEngine` is all that the loop knows; another engine (FSDP2, say) is another implementation of it.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from model.config import ModelConfig
from model.gpt import GPT, token_losses
from orchestrator.job import Train
from orchestrator.store import as_disk_error
from orchestrator.train.group import TorchGroup
from orchestrator.train.objectives import MicroBatch
from orchestrator.train.zero import deepspeed_config

_STATE_TAG = "state"


@dataclass(frozen=True)
class StepStats:
    """What a step tells: both over all ranks."""

    loss: float
    grad_norm: float


class TrainEngine(Protocol):
    """One rank's part of the model. Every method is collective: all ranks call it, in the same order."""

    def step(self, micro_batches: Sequence[MicroBatch], *, learning_rate: float) -> StepStats:
        """Accumulate the gradients of all micro-batches, reduce them over ranks, and update the weights."""
        ...

    def loss(self, batch: MicroBatch) -> float:
        """The mean loss of a micro-batch, without gradients or dropout."""
        ...

    def logits(self, ids_BT: Tensor) -> Tensor:
        """Logits [B, T, V] in fp32, computed in the trainer's precision."""
        ...

    def weights(self) -> dict[str, Tensor] | None:
        """The whole model in fp32, on rank 0; None elsewhere."""
        ...

    def save(self, folder: Path) -> None:
        """Write this rank's state: weights, optimizer, counters.

        Raises:
            OSError: this rank, or another, could not write.
        """
        ...

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote at the same world size."""
        ...


class DeepSpeedEngine:
    """`TrainEngine` on DeepSpeed's ZeRO stages 0 to 3."""

    def __init__(
        self, config: ModelConfig, train: Train, *, group: TorchGroup, micro_batch: int, accumulation: int
    ) -> None:
        deepspeed = import_deepspeed()
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        self._group = group
        self._stage = train.zero.stage
        self._device = _own_device()
        model = GPT(config).initialise(train.seed).to(self._device)
        self._names = [name for name, _ in model.named_parameters()]
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=_adamw(model, train),
            config=deepspeed_config(
                train, micro_batch=micro_batch, accumulation=accumulation, on_gpu=self._device.type == "cuda"
            ),
        )
        self._saver = _RecordingSaver(self._engine.checkpoint_engine)
        self._engine.checkpoint_engine = self._saver
        # Rank 0 would copy two scripts beside the state, and leave the other ranks waiting where the disk is full.
        self._engine._copy_recovery_script = lambda *_: None
        # Stage 0 keeps fp32 weights and computes under autocast: DeepSpeed's own bf16 optimizer without ZeRO drifts
        # from the other stages (gradient norm 4 % off at step 2 of the quickstart, where they agree to 0.1 %).
        self._autocast = train.precision == "bf16" and self._stage == 0
        self._has_master = train.precision == "bf16" and not self._autocast

    def step(self, micro_batches: Sequence[MicroBatch], *, learning_rate: float) -> StepStats:
        """See `TrainEngine`."""
        self._engine.train()
        for parameters in self._engine.optimizer.param_groups:
            parameters["lr"] = learning_rate
        total, grad_norm = 0.0, 0.0
        for batch in micro_batches:
            loss = self._losses(batch).mean() * batch.weight
            total += float(loss.detach())
            # DeepSpeed averages over ranks as if all had equal shares: times num_ranks makes that a sum of weights.
            self._engine.backward(loss * self._group.num_ranks, scale_wrt_gas=False)
            if self._stage == 0 and batch is micro_batches[-1]:  # reduced by now; DeepSpeed keeps no norm without ZeRO
                grad_norm = float(torch.nn.utils.get_total_norm([p.grad for p in self._engine.module.parameters()]))
            self._engine.step()
        return StepStats(self._group.sum(total)[0], grad_norm if self._stage == 0 else self._zero_norm())

    def loss(self, batch: MicroBatch) -> float:
        """See `TrainEngine`."""
        self._engine.eval()
        with torch.no_grad():
            return float(self._losses(batch).mean())

    def logits(self, ids_BT: Tensor) -> Tensor:
        """See `TrainEngine`."""
        self._engine.eval()
        with torch.no_grad():
            return self._forward(ids_BT.to(self._device)).float().cpu()

    def weights(self) -> dict[str, Tensor] | None:
        """See `TrainEngine`."""
        whole: dict[str, Tensor] = {}
        for name, parameter in zip(self._names, self._engine.module.parameters(), strict=True):
            tensor = self._whole(parameter)
            if self._group.rank == 0:
                whole[name] = tensor.detach().to("cpu", torch.float32).contiguous().clone()
        return whole if self._group.rank == 0 else None

    def save(self, folder: Path) -> None:
        """See `TrainEngine`."""
        self._saver.error = None
        self._engine.save_checkpoint(str(folder), tag=_STATE_TAG, save_latest=False)
        if self._saver.error is not None:
            raise self._saver.error

    def load(self, folder: Path) -> None:
        """See `TrainEngine`."""
        path, _ = self._engine.load_checkpoint(str(folder), tag=_STATE_TAG)
        if path is None:
            raise OSError(errno.EIO, "DeepSpeed found no state to load", str(folder))

    def _losses(self, batch: MicroBatch) -> Tensor:
        return token_losses(self._forward, batch.inputs_BT.to(self._device), batch.targets_BT.to(self._device))

    def _forward(self, ids_BT: Tensor) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            logits_BTV: Tensor = self._engine(ids_BT)
        return logits_BTV

    def _zero_norm(self) -> float:
        return float(self._engine.get_global_grad_norm() or 0.0)

    def _whole(self, parameter: torch.nn.Parameter) -> Tensor:
        """The fp32 value of a parameter, gathered from the ranks where ZeRO has cut it up."""
        if self._stage == 3 or self._has_master:
            from deepspeed.utils import safe_get_full_fp32_param

            tensor = safe_get_full_fp32_param(parameter)
            if isinstance(tensor, Tensor):
                return tensor
        return parameter.data


class _RecordingSaver:
    """DeepSpeed's own way of writing files, but a failed write is kept for later instead of raised at once.

    Raised inside `save_checkpoint`, it would leave the other ranks waiting in a collective for this one.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.error: OSError | None = None

    def save(self, state_dict: Any, path: str) -> None:
        try:
            self._inner.save(state_dict, path)
        except (OSError, RuntimeError) as error:
            self.error = self.error or as_disk_error(error, Path(path)) or OSError(errno.EIO, str(error), path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _own_device() -> torch.device:
    """This rank's GPU, or the CPU. A rank may see the GPUs of all ranks of its node, or its own alone."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _adamw(model: torch.nn.Module, train: Train) -> torch.optim.AdamW:
    """AdamW that spares norms the weight decay."""
    o = train.optimizer
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=o.learning_rate, betas=(o.beta1, o.beta2), eps=o.eps, fused=True)


def import_deepspeed() -> Any:
    """DeepSpeed, imported quietly and without its shared-memory op.

    That op serves inference only, yet `init_distributed` compiles it at first use: 50 s, and a start that hangs for
    ever where such a build was killed once. Training goes through gloo or NCCL, so it is switched off.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
