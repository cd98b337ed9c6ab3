"""Which samples each step has really consumed, noted by every rank; and the proof that each came once.

    RUN/samples/attempt-N-rank-RRRRR.bin    a record of 24 bytes for each step that this rank has finished
    RUN/skipped.json                        batches that were left out on purpose

What a resume redoes does not count: of each step the last attempt stands that went on from before it. Its records must
tile the step over the ranks, and their checksums must be those of the order that seed and dataset give. A step is
judged once a checkpoint holds it: until then it may be redone, and its records may not be on disk yet.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import StoreError
from orchestrator.track.events import read_events
from orchestrator.track.history import recorded

Indices = npt.NDArray[np.int64]
Records = npt.NDArray[Any]
"""[N] of `RECORD`."""

FOLDER = "samples"
SKIPPED = "skipped.json"
RECORD = np.dtype([("step", "<u8"), ("first", "<u4"), ("end", "<u4"), ("crc", "<u4"), ("check", "<u4")])
_BODY, _CHECK = struct.Struct("<QIII"), struct.Struct("<I")


class SampleLog:
    """One rank's records of one attempt; buffered, so that a step costs some microseconds."""

    def __init__(self, run: Path, *, attempt: int, rank: int) -> None:
        path = run / FOLDER / f"attempt-{attempt}-rank-{rank:05d}.bin"
        path.parent.mkdir(exist_ok=True)
        self._file = path.open("ab")

    def append(self, step: int, first: int, numbers: Indices) -> None:
        """Note samples [first, first + N) of a step; `numbers` [N] are theirs in the dataset."""
        body = _BODY.pack(step, first, first + len(numbers), checksum(numbers))
        self._file.write(body + _CHECK.pack(zlib.crc32(body)))

    def sync(self) -> None:
        """Flush to disk: called before a checkpoint that counts on these records is published."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """End; whatever was appended stays."""
        self._file.close()


@dataclass(frozen=True)
class Window:
    """Batches that a rollback has left out."""

    after_step: int
    """From the step after this on, each step takes a later batch."""
    batches: int


@dataclass(frozen=True)
class Beginning:
    """An attempt that has begun to train, after a step."""

    attempt: int
    step: int


@dataclass
class SampleAccount:
    """What the records prove of the history that survived."""

    steps: int = 0
    """Finished steps, 1 to N, that a checkpoint holds."""
    samples: int = 0
    """That they have consumed, as the order has it."""
    samples_lost: int = 0
    """That no rank has consumed in its turn."""
    samples_repeated: int = 0
    """That were consumed more than once, or by two ranks. Where other samples than the order's were consumed, those
    in whose place they came are lost, and they are repeated."""
    samples_skipped: int = 0
    """That were left out on purpose."""
    problems: list[str] = field(default_factory=list)
    """In the order of the steps."""

    @property
    def first_problem(self) -> str | None:
        """What is wrong first; None where all is well."""
        return self.problems[0] if self.problems else None


def checksum(numbers: Indices) -> int:
    """CRC32 of sample numbers, as little-endian int64."""
    return zlib.crc32(numbers.astype("<i8", copy=False).tobytes())


def batch_of(step: int, windows: Iterable[Window]) -> int:
    """The batch 1, 2, ... that a step consumes."""
    return step + sum(window.batches for window in windows if window.after_step < step)


def account_for_samples(run: Path, *, order: Callable[[int], Indices], epoch: int | None) -> SampleAccount:
    """Read the records of a run, and prove what they say; the run may be training.

    Args:
        order: the numbers of batch 1, 2, ... in their order, as `Feed.samples` gives them.
        epoch: samples in an epoch, where the numbers of each are 0 to one less than that; None: it is not checked
            that no number comes twice in one, only that the order was followed.

    Raises:
        StoreError: `skipped.json` is not readable.
    """
    begun = [attempt for attempt in recorded(read_events(run)) if attempt.started_at is not None]
    if not begun:
        return SampleAccount()
    beginnings = [Beginning(attempt.number, attempt.step) for attempt in begun]
    steps = max(begun[-1].step, begun[-1].saved_step or 0)
    files = dict(_read_records(run))
    return prove(surviving(beginnings, files, steps=steps), read_windows(run), steps=steps, order=order, epoch=epoch)


def surviving(
    beginnings: Sequence[Beginning], files: dict[int, list[Records]], *, steps: int
) -> Records:  # [N], in the order of steps, then of shares
    """The records of steps 1 to `steps` that stand, out of those that each attempt's ranks have left."""
    owner = np.full(steps + 1, -1, dtype=np.int64)
    for beginning in beginnings:
        owner[beginning.step + 1 :] = beginning.attempt
    kept = [np.empty(0, RECORD)]
    for attempt, ranks in files.items():
        for records in ranks:
            own = records[records["step"] <= steps]
            own = own[owner[own["step"].astype(np.int64)] == attempt]
            # One that goes on after memory ran out keeps its number: what it has done again stands last.
            last = len(own) - 1 - np.unique(own["step"][::-1], return_index=True)[1]
            kept.append(own[last])
    found = np.concatenate(kept)
    return found[np.lexsort((found["first"], found["step"]))]


def prove(
    records: Records, windows: Sequence[Window], *, steps: int, order: Callable[[int], Indices], epoch: int | None
) -> SampleAccount:
    """Compare what stands with what the order says; see `SampleAccount`."""
    account = SampleAccount(steps=steps)
    cuts = np.searchsorted(records["step"], np.arange(1, steps + 2))
    epochs = _Epochs(epoch, account)
    for step in range(1, steps + 1):
        batch = batch_of(step, windows)
        for left_out in range(batch_of(step - 1, windows) + 1 if step > 1 else 1, batch):
            numbers = order(left_out)
            account.samples_skipped += len(numbers)
            epochs.add(numbers, f"batch {left_out}")
        numbers = order(batch)
        epochs.add(numbers, f"step {step}")
        _prove_step(account, step, records[cuts[step - 1] : cuts[step]], numbers)
    return account


def read_windows(run: Path) -> list[Window]:
    """What was left out on purpose; nothing where no rollback has come.

    Raises:
        StoreError: the file is not readable.
    """
    path = run / SKIPPED
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [Window(int(row["after_step"]), int(row["batches"])) for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is not readable: {error}", fix="put it back: it says which samples come") from None


def _prove_step(account: SampleAccount, step: int, shares: Records, numbers: Indices) -> None:
    """The shares tile the step, and each has the samples that the order gives it."""
    account.samples += len(numbers)
    upto = 0
    for _, first, end, crc, _ in shares.tolist():
        if first > upto:
            _lost(account, step, upto, first)
        if min(upto, end) > first:
            account.samples_repeated += min(upto, end) - first
            account.problems.append(f"step {step}: two ranks have samples {first} to {min(upto, end) - 1}")
        if end > len(numbers) or checksum(numbers[first:end]) != crc:
            account.samples_lost += end - first
            account.samples_repeated += end - first
            account.problems.append(f"step {step}: samples {first} to {end - 1} are not those of the order")
        upto = max(upto, end)
    if upto < len(numbers):
        _lost(account, step, upto, len(numbers))


def _lost(account: SampleAccount, step: int, first: int, end: int) -> None:
    account.samples_lost += end - first
    account.problems.append(f"step {step}: no rank has noted samples {first} to {end - 1}")


class _Epochs:
    """Whether the order itself brings each number once an epoch."""

    def __init__(self, size: int | None, account: SampleAccount) -> None:
        self._account, self._size = account, size or 0
        self._seen = np.zeros(self._size, dtype=bool)
        self._left = self._size

    def add(self, numbers: Indices, where: str) -> None:
        while self._size and len(numbers):
            own, numbers = numbers[: self._left], numbers[self._left :]
            known = own[(own >= 0) & (own < self._size)]
            twice = len(own) - len(np.unique(known[~self._seen[known]]))
            self._seen[known] = True
            self._left -= len(own)
            if twice:
                self._account.samples_repeated += twice
                self._account.problems.append(f"{where}: {twice} sample(s) come again in the same epoch")
            if not self._left:
                self._end(where)

    def _end(self, where: str) -> None:
        if missed := int(self._size - self._seen.sum()):
            self._account.samples_lost += missed
            self._account.problems.append(f"{where}: the epoch ends without {missed} of its samples")
        self._seen[:] = False
        self._left = self._size


def _read_records(run: Path) -> Iterator[tuple[int, list[Records]]]:
    """By attempt, the whole records of each rank; a torn or damaged one is left out."""
    by_attempt: dict[int, list[Records]] = {}
    for path in sorted((run / FOLDER).glob("attempt-*-rank-*.bin")):
        raw = path.read_bytes()
        records = np.frombuffer(raw[: len(raw) - len(raw) % RECORD.itemsize], RECORD)
        whole = [
            zlib.crc32(raw[at : at + _BODY.size]) == check
            for at, check in zip(range(0, len(raw), RECORD.itemsize), records["check"].tolist(), strict=False)
        ]
        by_attempt.setdefault(int(path.name.split("-")[1]), []).append(records[np.array(whole, dtype=bool)])
    yield from by_attempt.items()
