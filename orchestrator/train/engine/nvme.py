"""What offload to NVMe needs: DeepSpeed's `async_io`, which reads and writes beside the computation, and a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from orchestrator.cluster.async_io import missing
from orchestrator.errors import JobError, StoreError
from orchestrator.job_train import Train
from orchestrator.store import lock
from orchestrator.track.progress import say

_OPERATORS = ("pin_memory", "async_io")
"""What is compiled, in this order."""
_BUILD_LIMIT_S = 1500.0
_OTHERS_S = 30.0
"""How long the process of an attempt before may take to end."""


@contextlib.contextmanager
def nvme_for(train: Train, *, rank: int) -> Iterator[None]:
    """Make the operator and the folder ready, and keep other trainings out of it; of a job without NVMe nothing.

    Raises:
        JobError: see `require_async_io`; or the folder cannot be used, or another training uses it.
    """
    if "nvme" not in (train.zero.offload.optimizer, train.zero.offload.parameters):
        yield
        return
    require_async_io()
    folder = Path(train.zero.offload.nvme_path or "")
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(lock(folder / f"rank-{rank}.lock", holds=str(folder), wait_s=_OTHERS_S))
            os.close(os.open(folder / f"rank-{rank}.direct", os.O_CREAT | os.O_RDWR | os.O_DIRECT))
        except StoreError as error:
            raise JobError(f"train.zero.offload.nvme_path: {error.message}", fix="give each training its own") from None
        except OSError as error:
            raise JobError(
                f"train.zero.offload.nvme_path {folder} cannot be read and written past the kernel's cache: {error}",
                fix="name a folder on a local NVMe disk",
            ) from None
        yield


def require_async_io() -> None:
    """Compile DeepSpeed's operator where that is not done yet.

    torch waits for ever for a compilation that was killed (its lock is a file), so ours are behind a lock that dies
    with its owner, and whatever lock of torch's is there then was left behind.

    Raises:
        JobError: a package is missing, or it does not compile.
    """
    if (what := missing()) is not None:
        raise JobError(
            f"train.zero.offload to nvme needs DeepSpeed's async_io, and to compile it this machine lacks {what}",
            fix="install it on every machine that trains, or offload to cpu",
        )
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from torch.utils.cpp_extension import _get_build_directory

    try:
        folders = [Path(_get_build_directory(name, verbose=False)) for name in _OPERATORS]
    except OSError as error:
        raise JobError(
            f"DeepSpeed's async_io, which train.zero.offload to nvme needs, has no folder to be compiled in: {error}",
            fix="set TORCH_EXTENSIONS_DIR to a folder that can be written, on every machine that trains",
        ) from None
    with lock(folders[0].parent / "slipway.lock", holds="DeepSpeed's async_io", wait_s=_BUILD_LIMIT_S):
        for folder in folders:
            (folder / "lock").unlink(missing_ok=True)
        if not all((folder / f"{folder.name}.so").is_file() for folder in folders):
            say("DeepSpeed compiles async_io for the offload to NVMe: minutes, once on each machine")
        try:
            AsyncIOBuilder().load(verbose=False)
        except (RuntimeError, ImportError, OSError) as error:
            raise JobError(
                f"DeepSpeed's async_io, which train.zero.offload to nvme needs, does not compile: {error}",
                fix="offload to cpu, or look at the compiler's words above",
            ) from error
