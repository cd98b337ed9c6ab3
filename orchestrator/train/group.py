"""The ranks that train together, through torch.distributed; works with one rank too."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch.distributed as dist


class TorchGroup:
    """Small exchanges between ranks on the CPU; gradients are the engine's business."""

    def __init__(self, apart: dist.ProcessGroup | None = None) -> None:
        self._apart = apart
        self.rank = dist.get_rank()
        self.num_ranks = dist.get_world_size()

    def apart(self) -> TorchGroup:
        """The same ranks over connections of their own: for a thread beside the training. Collective."""
        return TorchGroup(dist.new_group(backend="gloo")) if self.num_ranks > 1 else self

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        if self.num_ranks == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._apart, device=torch.device("cpu"))
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks, on every rank."""
        if self.num_ranks == 1:
            return [value]
        values: list[Any] = [None] * self.num_ranks
        dist.all_gather_object(values, value, group=self._apart)
        return values

    def sum(self, *numbers: float) -> list[float]:
        """Sums over all ranks, in float64."""
        if self.num_ranks == 1:
            return [float(number) for number in numbers]
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums, group=self._apart)
        found: list[float] = sums.tolist()
        return found


_made_local_rank = False


def join_group() -> TorchGroup:
    """Join the group that Ray Train or torchrun has prepared; alone, a group of one is made."""
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if "RANK" in os.environ:
            dist.init_process_group(backend)
        else:
            global _made_local_rank  # noqa: PLW0603 - what is set here is taken back by `leave_group`
            _made_local_rank = "LOCAL_RANK" not in os.environ
            os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
            # In this process's memory: nothing listens, and any number of such runs get along.
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    return TorchGroup()


def leave_group() -> None:
    """End the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
    if _made_local_rank:
        os.environ.pop("LOCAL_RANK", None)


def end_process_after(main: Callable[[], None]) -> NoReturn:
    """Call `main` and end the process with its exit code, but without the interpreter's own taking down.

    Gloo's threads live on while anything refers to their group, as DeepSpeed's modules do. One that would let go of a
    tensor while the interpreter ends is made to exit at the lock it waits for, in code that must not be unwound: the
    process would abort after all its work is done ("terminate called without an active exception").
    """
    code: object = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - as the interpreter does with what nobody has caught
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
