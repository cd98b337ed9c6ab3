"""What `slipway doctor --address` asks on each machine: an actor there looks at the real thing.

versions, disk, shared memory, the clock      at once
storage                                       a file written, flushed to the disk and read again
network                                       an all-reduce among the actors of all machines
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import sys
import time
import uuid
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestrator.cluster.interface import meet_on

PACKAGES = ("slipway", "torch", "ray", "deepspeed")
_PIECE_BYTES = 8 << 20
_REDUCED_BYTES = 64 << 20
_REDUCTIONS, _ROUND_TRIPS = 3, 20
_MEETING_LIMIT_S = 40.0


class Probe:
    """The actor of one machine."""

    def __init__(self) -> None:
        self._group: Any = None

    def now(self) -> float:
        """Its clock, as `time.time` counts."""
        return time.time()

    def facts(self, store: str) -> dict[str, Any]:
        """What is installed, and what room there is."""
        return {
            "host": socket.gethostname(),
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
            "code": code_digest(),
            "token_mode": os.environ.get("RAY_AUTH_MODE") == "token",
            "disk_free_bytes": _free(Path(store)),
            "shm_free_bytes": _free(Path("/dev/shm")),
            "tmp_free_bytes": _free(Path("/tmp")),
        }

    def storage(self, folder: str, size_bytes: int) -> dict[str, float]:
        """Bytes a second of one file: written up to the disk, and read again.

        Raises:
            OSError: the folder cannot be written.
        """
        path = Path(folder) / f".doctor-{uuid.uuid4().hex[:12]}"
        try:
            return {"write_bytes_per_s": _write(path, size_bytes), "read_bytes_per_s": _read(path, size_bytes)}
        finally:
            path.unlink(missing_ok=True)

    def free_port(self) -> int:
        """One of this machine's where nothing listens."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return int(probe.getsockname()[1])

    def meet(self, meeting: str, rank: int, world_size: int, *, backend: str, address: str) -> None:
        """Join the others at `host:port`, rank 0's, on the interface of this machine's address, as training does.

        Raises:
            RuntimeError: they do not come together; torch's.
        """
        from datetime import timedelta

        from torch import distributed

        meet_on(address, os.environ)
        distributed.init_process_group(
            backend,
            init_method=f"tcp://{meeting}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=_MEETING_LIMIT_S),
        )

    def reduce(self, backend: str) -> dict[str, float]:
        """Seconds of the smallest all-reduce; of a large one, bytes a second that each machine sends and receives."""
        import torch
        from torch import distributed

        device = "cuda" if backend == "nccl" else "cpu"
        small, large = torch.ones(1, device=device), torch.ones(_REDUCED_BYTES // 4, device=device)
        distributed.all_reduce(small)  # connections are made at first use
        began = time.perf_counter()
        for _ in range(_ROUND_TRIPS):
            distributed.all_reduce(small)
            small.item()
        latency_s = (time.perf_counter() - began) / _ROUND_TRIPS
        distributed.all_reduce(large)
        large[0].item()
        began = time.perf_counter()
        for _ in range(_REDUCTIONS):
            distributed.all_reduce(large)
        large[0].item()
        took_s = (time.perf_counter() - began) / _REDUCTIONS
        count = distributed.get_world_size()
        distributed.destroy_process_group()
        return {"latency_s": latency_s, "bytes_per_s": 2 * (count - 1) / count * _REDUCED_BYTES / took_s}


def code_digest() -> str:
    """Of the sources that run: two working trees of one version differ in it."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for top in (package, package.parent / "model"):
        for path in sorted(top.rglob("*.py")):
            digest.update(str(path.relative_to(package.parent)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _free(path: Path) -> int:
    place = next(p for p in (path, *path.parents) if p.exists())
    return shutil.disk_usage(place).free


def _write(path: Path, size_bytes: int) -> float:
    piece = os.urandom(min(_PIECE_BYTES, size_bytes))  # nothing that a file system could pack
    began, left = time.perf_counter(), size_bytes
    with path.open("wb") as file:
        while left > 0:
            left -= file.write(piece[:left])
        file.flush()
        os.fsync(file.fileno())
    return size_bytes / (time.perf_counter() - began)


def _read(path: Path, size_bytes: int) -> float:
    with path.open("rb", buffering=0) as file:
        if sys.platform == "linux":
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # from the disk, not from memory
        began = time.perf_counter()
        while file.read(_PIECE_BYTES):
            pass
    return size_bytes / (time.perf_counter() - began)
