"""One training process: under Ray Train, under torchrun, or alone.

python -m orchestrator.train.worker --run RUN_FOLDER
torchrun --nproc-per-node 2 -m -- orchestrator.train.worker --run RUN_FOLDER

(torchrun has options of its own that begin with `--run`: the `--` keeps it from ours.)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from orchestrator import presence
from orchestrator.attempts import Attempt, writing_run
from orchestrator.checkpoint import layout
from orchestrator.checkpoint.layout import Progress
from orchestrator.checkpoint.origin import Origin
from orchestrator.checkpoint.reader import Checkpoint, newest_checkpoint, read_checkpoint
from orchestrator.data.dataset import open_dataset
from orchestrator.errors import OneSampleError, OutOfMemoryError, SlipwayError
from orchestrator.export.module import say_if_source_changed
from orchestrator.runfolder import (
    largest_micro_batch,
    limit_micro_batch,
    origin_of,
    read_plan,
    read_run,
)
from orchestrator.track.progress import say
from orchestrator.train.continuations import make_continuations
from orchestrator.train.evaluate import Evaluation
from orchestrator.train.group import TorchGroup, end_process_after, join_group, leave_group
from orchestrator.train.guarding.guard import read_past
from orchestrator.train.guarding.watchdog import WatchedEvaluation, WatchedHooks, watching
from orchestrator.train.hooks import Began, open_hooks
from orchestrator.train.loop import Batching, Loop
from orchestrator.train.parts import Beginning, assemble
from orchestrator.train.recovery import ends
from orchestrator.train.recovery.failures import FailureClass, classify
from orchestrator.train.recovery.retries import Decision, Failed
from orchestrator.train.saving.offsite import take_back
from orchestrator.train.signals import exit_code, listen, told_to_end


def run_worker(run: Path, *, attempt: Attempt, group: TorchGroup, launched_at: float | None = None) -> Progress:
    """Train a run from its newest checkpoint to its end. Collective: every rank calls it.

    `launched_at` is when somebody began to start the workers (`time.time`): what passes until the first step is
    accounted for in events.jsonl.

    Raises:
        SlipwayError: what went wrong and what to do; nothing is half-written.
    """
    startup = Startup(launched_at or time.time())
    with attempt.working(), contextlib.ExitStack() as leases:
        job, dataset_path = read_run(run)
        limits = job.training.watchdog
        dog = leases.enter_context(watching(attempt, rank=group.rank, num_ranks=group.num_ranks, limits=limits))
        leases.enter_context(presence.present(run, rank=group.rank, attempt=attempt.number))
        dataset = open_dataset(dataset_path, verify=False)
        torch.set_num_threads(job.training.workers.cpus)
        torch.manual_seed(job.training.seed * 1_000_003 + group.rank)
        checkpoint = _agree_on_checkpoint(run, group)
        if checkpoint is not None and checkpoint.progress.is_end(job.training.steps):
            return checkpoint.progress
        origin = origin_of(run)
        beginning = Beginning(
            plan=read_plan(run),
            origin=Origin(*origin) if origin else None,
            largest_micro_batch=largest_micro_batch(run),
        )
        parts = assemble(job, dataset, group, leases, beginning=beginning)
        startup.mark("engine_s")
        saver = parts.saver(run, attempt)
        progress = saver.restore(checkpoint) if checkpoint else Progress()
        startup.mark("restore_s")
        if checkpoint and job.model.kind == "custom" and group.rank == 0:
            before = json.loads((checkpoint.path / layout.MODEL_CONFIG).read_text(encoding="utf-8"))
            say_if_source_changed(before, parts.description, since=checkpoint.path.name)
        past = group.broadcast(read_past(run, progress.step, job.training.guard) if group.rank == 0 else None)
        began = Began(attempt, checkpoint.step if checkpoint else None, startup.spans)
        hooked = open_hooks(run, job, dataset, parts=parts, saver=saver, began=began, interrupted=told_to_end)
        with hooked as hooks:
            evaluation = None
            if parts.evaluate is not None:
                written = make_continuations(job, dataset, parts.engine)
                evaluation = WatchedEvaluation(Evaluation(parts.evaluate, written, hooks.on_scores), dog)
            watched = WatchedHooks(hooks, dog)
            loop = Loop(parts.engine, group, job.training, parts.batching, parts.feed, evaluation, watched, past=past)
            with dog.until_left(), _smaller_where_memory_ends(run, parts.batching):
                return loop.run(progress)


class Startup:
    """Where the time between the launch and the first step goes."""

    def __init__(self, launched_at: float) -> None:
        self._last_at = launched_at
        self.spans: dict[str, float] = {}
        self.mark("workers_s")

    def mark(self, name: str) -> None:
        """The time since the mark before belongs to `name`."""
        now = time.time()
        self.spans[name] = round(now - self._last_at, 3)
        self._last_at = now


@contextlib.contextmanager
def _smaller_where_memory_ends(run: Path, batching: Batching) -> Iterator[None]:
    """Turn a pass that did not fit into an error that says so, and half the micro-batch for the next attempt."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
            raise
        what = f"memory ran out with {batching.micro_batch} sample(s) in one forward pass of a worker"
        if batching.micro_batch == 1:
            raise OneSampleError(
                what,
                fix="shorten model.context, set train.activation_checkpointing: true, or shard more (train.zero.stage)",
            ) from error
        limit_micro_batch(run, batching.micro_batch // 2)
        raise OutOfMemoryError(
            what, fix=f"run the same command again: it goes on with {batching.micro_batch // 2}"
        ) from error


def _agree_on_checkpoint(run: Path, group: TorchGroup) -> Checkpoint | None:
    """Rank 0 verifies and chooses; the others take its word."""
    found = newest_checkpoint(run, say=say) if group.rank == 0 else None
    path = group.broadcast(str(found.path) if found else None)
    if path is None or group.rank == 0:
        return found
    return read_checkpoint(Path(path), deep=False)


@contextlib.contextmanager
def _attempt_for(run: Path) -> Iterator[tuple[Attempt, TorchGroup]]:
    """The group, and an attempt that rank 0 opens for all."""
    group = join_group()
    with contextlib.ExitStack() as stack:
        try:
            mine = stack.enter_context(writing_run(run)) if group.rank == 0 else None
            if group.rank == 0:
                take_back(read_run(run)[0], run)
            problem = None
        except SlipwayError as error:
            mine, problem = None, error
        number, problem = group.broadcast((mine.number if mine else 0, problem))
        if problem is not None:
            raise problem
        yield Attempt(run, number), group


def _run_until_it_fits(run: Path, attempt: Attempt, group: TorchGroup) -> Progress:
    """Alone, a pass that does not fit is tried again with fewer samples; with others, whoever started them does."""
    while True:
        try:
            return run_worker(run, attempt=attempt, group=group)
        except OutOfMemoryError as error:
            if group.num_ranks > 1:
                raise
            say(f"{error.message}: going on with fewer")


@contextlib.contextmanager
def _failure_told(run: Path, attempt: Attempt, group: TorchGroup) -> Iterator[None]:
    """Say of a failure what the driver says under Ray; rank 0 does, unless another attempt writes the run by now."""
    try:
        yield
    except Exception as error:
        failure = classify(error, doing=f"writing the run {run.name}")
        if group.rank != 0 or failure.kind is FailureClass.FENCED:
            raise
        failed = Failed(failure, ends.last_good_step(run))
        ends.leave_out(run, failed, read_run(run)[0].training.guard)
        decision = Decision("stop", "without Ray nothing starts it again")
        ends.record_failure(run, failed, decision, attempt=attempt.number)
        ends.alert(read_run(run)[0], run, failed)
        if not isinstance(error, SlipwayError):
            sys.stderr.write(traceback.format_exc())
        raise ends.final_error(run, failed, decision) from error


def main() -> None:
    """The command line: without Ray, for measuring and debugging."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.train.worker", description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a run, as `slipway prepare JOB` makes it")
    run = parser.parse_args().run.resolve()
    listen(signal.SIGINT, signal.SIGTERM)
    try:
        job, _ = read_run(run)
        with _attempt_for(run) as (attempt, group), _failure_told(run, attempt, group):
            if "RANK" not in os.environ:  # alone: torchrun's command is torchrun's
                presence.note_command(run)
            progress = _run_until_it_fits(run, attempt, group)
            finished = progress.is_end(job.training.steps)
            if group.rank == 0:
                say(f"{'finished' if finished else 'stopped'} at step {progress.step}; saved in {run}")
        if not finished:
            sys.exit(exit_code())
    except SlipwayError as error:
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    finally:
        leave_group()


if __name__ == "__main__":
    end_process_after(main)
