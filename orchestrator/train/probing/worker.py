"""The process that makes a probe's steps: `python -m orchestrator.train.probing.worker FOLDER` (see `probe`).

The worker's own parts and its own loop; only evaluation, checkpoints and metrics are left out.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from orchestrator.checkpoint.layout import Progress
from orchestrator.checkpoint.origin import Origin
from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.errors import OutOfMemoryError, SlipwayError, TrainError
from orchestrator.job import JobSpec
from orchestrator.job_file import load_job
from orchestrator.objectives.protocol import Feed
from orchestrator.objectives.task import make_feed
from orchestrator.plan import Plan
from orchestrator.track import metrics
from orchestrator.train.engine.host_copies import HostCopies
from orchestrator.train.engine.make import uses_torch
from orchestrator.train.engine.protocol import TrainEngine
from orchestrator.train.group import TorchGroup, end_process_after, join_group, leave_group
from orchestrator.train.loop import Batching, Hooks, Loop
from orchestrator.train.parts import Beginning, assemble
from orchestrator.train.probing.probe import ASKED, FOUND, JOB
from orchestrator.train.probing.samples import assemble_random

_WARM_UP_STEPS, _WARM_UP_S = 3, 1.0
"""Both: the first steps fill caches and allocators, and short ones are over before the machine runs at its pace."""

_TIMED_S = 5.0
"""At least: steps of milliseconds are over before what else the machine does has evened out."""

_LIMIT_S = 180.0
"""Once a step is timed, no further one begins after so long: large models on slow machines end too."""


class StepWatch(Hooks):
    """Keeps the times of steps after a warm-up, and ends the loop once there are enough.

    Args:
        steps: the fewest; short ones go on for `_TIMED_S`.
    """

    def __init__(self, steps: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.timed: list[float] = []
        """Seconds of each step after the warm-up."""
        self.copy: Callable[[], object] | None = None
        """Makes what a checkpoint copies: a worker holds it from its first checkpoint on."""
        self._fewest, self._clock = steps, clock
        self._warming, self._began_at = 0, clock()
        self._is_warm = False

    def on_step(self, line: dict[str, Any]) -> None:
        """See `Hooks`."""
        if self._is_warm:
            self.timed.append(line[metrics.STEP_TIME])
            return
        if self._warming == 0:
            self._began_at = self._clock()
        self._warming += 1
        self._is_warm = self._warming >= _WARM_UP_STEPS and self._clock() - self._began_at >= _WARM_UP_S
        if self._is_warm and self.copy is not None:
            self.copy()

    def stop_requested(self) -> bool:
        """See `Hooks`: asked in the middle of a step that is not among the times yet."""
        late = self._clock() - self._began_at > _LIMIT_S
        return self._is_warm and (late or self._is_enough(len(self.timed) + 1))

    def _is_enough(self, steps: int) -> bool:
        per_step_s = statistics.median(self.timed) if self.timed else 0.0
        return steps >= self._fewest and steps * per_step_s >= _TIMED_S


def measure(job: JobSpec, asked: dict[str, Any], group: TorchGroup) -> dict[str, Any]:
    """Seconds of a step, how many were timed, and the peak in bytes above what the process held before."""
    train = job.training
    torch.set_num_threads(train.workers.cpus)
    torch.manual_seed(train.seed * 1_000_003)
    use_libraries(job, stage=asked["plan"]["zero_stage"])
    on_gpu = torch.cuda.is_available()
    watch = StepWatch(asked["steps"])
    with contextlib.ExitStack() as leases:
        dataset = open_dataset(Path(asked["dataset"]), verify=False) if asked["dataset"] else None
        if dataset is not None:
            make_feed(job, dataset, leases).read(1, 0, 1)  # what reading takes is no part of a plan
        before = torch.cuda.memory_allocated() if on_gpu else resident_bytes()
        engine, feed, batching = _parts(job, asked, group, leases, dataset=dataset)
        copies = HostCopies()
        watch.copy = lambda: copies.copy(state) if (state := engine.state()) is not None else None
        forget_peak()
        Loop(engine, group, train, batching, feed, None, watch).run(Progress())
        peak = torch.cuda.max_memory_allocated() if on_gpu else peak_bytes()
    step_s = statistics.fmean(watch.timed)  # of all: what holds up some steps of a probe holds up some of a training
    return {"steps": len(watch.timed), "step_s": step_s, "peak_bytes": max(1, peak - before)}


def _parts(
    job: JobSpec, asked: dict[str, Any], group: TorchGroup, leases: contextlib.ExitStack, *, dataset: Dataset | None
) -> tuple[TrainEngine, Feed, Batching]:
    """As the worker puts them together; of random tokens where there is no dataset."""
    plan = Plan.model_validate_json(json.dumps({**asked["plan"], "micro_batch": asked["micro_batch"]}))
    if dataset is None:
        return assemble_random(job, plan, group, vocab_size=asked["vocab_size"])
    origin = Origin(Path(asked["origin"][0]), asked["origin"][1]) if asked["origin"] else None
    parts = assemble(job, dataset, group, leases, beginning=Beginning(plan, origin))
    return parts.engine, parts.feed, parts.batching


def use_libraries(job: JobSpec, *, stage: int) -> None:
    """Load and use once, in small, what a step uses: code and thread pools are no part of what a plan counts."""
    if not uses_torch(job.training, stage):
        from orchestrator.train.engine.deepspeed_engine import import_deepspeed

        import_deepspeed()
    dtype = torch.float32 if job.training.precision == "fp32" else torch.bfloat16
    layer = torch.nn.Linear(64, 64, dtype=dtype)
    x_BHTK = layer(torch.zeros(8, 2, 64, 64, dtype=dtype))
    x_ND = F.scaled_dot_product_attention(x_BHTK, x_BHTK, x_BHTK, is_causal=True).flatten(0, 2)
    F.cross_entropy(x_ND.float(), torch.zeros(len(x_ND), dtype=torch.int64)).backward()  # type: ignore[no-untyped-call]
    torch.optim.AdamW(layer.parameters(), fused=True).step()
    dist.all_reduce(torch.ones(1024))


def resident_bytes() -> int:
    """What this process holds now, after what is free in its heap went back to the kernel."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most that it held since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """The highest memory begins again from now: of the process, and of the GPU where there is one."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _status(field: str) -> int:
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise TrainError(f"the kernel does not tell {field} of a process", fix="plan without --probe")


def _ran_out(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def main() -> None:
    """Read what is asked in a folder, and leave there what was found, or why not."""
    folder = Path(sys.argv[1])
    asked: dict[str, Any] = json.loads((folder / ASKED).read_text(encoding="utf-8"))
    try:
        found = measure(load_job(folder / JOB), asked, join_group())
    except SlipwayError as error:
        found = error.as_json()
    except RuntimeError as error:
        if not _ran_out(error):
            raise
        what = f"memory ran out with {asked['micro_batch']} sample(s) in one forward pass"
        fix = "shorten model.context, set train.activation_checkpointing: true, or use a machine with more memory"
        found = OutOfMemoryError(what, fix=fix).as_json()
    finally:
        leave_group()
    (folder / FOUND).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    end_process_after(main)
