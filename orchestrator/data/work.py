"""What is finished of a preparation under way: a folder a unit of work, published whole, so that a kill costs little.

    datasets/.work-NAME-HASH/PASS/NNNNN/    the unit's files and result.json

A unit's content depends on the sources and settings alone, which the hash holds. So a task that outlives its killed
driver may go on writing: it writes the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import resource
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.cluster.tasks import run_tasks
from orchestrator.errors import StoreError
from orchestrator.store import fsync, lock
from orchestrator.track.progress import bar

RESULT = "result.json"
_PREFIX = ".work-"
_Result = dict[str, Any]


def work_folder(datasets: Path, name: str, identity: str) -> Path:
    """Where the preparation of a dataset keeps what is finished."""
    return datasets / f"{_PREFIX}{name}-{identity}"


def sweep_abandoned(datasets: Path, name: str, identity: str) -> None:
    """Remove what earlier settings of the same job left unfinished, unless somebody works on it."""
    for left in datasets.glob(f"{_PREFIX}{name}-*"):
        other = left.name.rpartition("-")[2]
        if other == identity or left.name != f"{_PREFIX}{name}-{other}":
            continue
        with contextlib.suppress(StoreError), lock(datasets / f".{other}.lock", holds=left.name):
            shutil.rmtree(left, ignore_errors=True)


class Work:
    """The passes of one preparation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        """How long each pass took this time."""
        self.peak_bytes = 0
        """The largest memory of a task."""
        self.resumed = 0
        """Units that an interrupted preparation had finished."""

    def unit(self, name: str, number: int) -> Path:
        """The folder of a unit."""
        return self.folder / name / f"{number:05d}"

    def run(
        self,
        name: str,
        function: Callable[..., _Result],
        inputs: Sequence[tuple[Any, ...]],
        *,
        check: Callable[[int, _Result], None] = lambda _number, _result: None,
        stale: Callable[[_Result], bool] = lambda _result: False,
    ) -> list[_Result]:
        """Call `function(folder, *input)` for every unit that is not finished; the results of all, in order.

        `check` sees each result as soon as it is there, and may raise to stop the pass. A finished unit whose
        result is `stale` is made again.
        """
        began_at = time.monotonic()
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        results = {i: found for i in range(len(inputs)) if (found := _finished(self.unit(name, i))) is not None}
        for i in [i for i, result in results.items() if stale(result)]:
            shutil.rmtree(self.unit(name, i))
            del results[i]
        self.resumed += len(results)
        for i, result in results.items():
            check(i, result)
        missing = [i for i in range(len(inputs)) if i not in results]
        with bar(name, len(inputs), unit="units") as update:
            if results:
                update(len(results), "finished before")

            def done(position: int, result: tuple[_Result, int]) -> None:
                number = missing[position]
                results[number], peak_bytes = result
                self.peak_bytes = max(self.peak_bytes, peak_bytes)
                update(len(results), "")
                check(number, results[number])

            run_tasks(_unit, [(function, str(self.unit(name, i)), inputs[i]) for i in missing], done=done)
        self.seconds[name] = round(time.monotonic() - began_at, 3)
        return [results[i] for i in range(len(inputs))]


def _finished(folder: Path) -> _Result | None:
    try:
        found: _Result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _unit(function: Callable[..., _Result], folder: str, arguments: tuple[Any, ...]) -> tuple[_Result, int]:
    """In the task: one unit of work, published whole; its result, and the most memory that this process had."""
    with _publishing(Path(folder)) as aside:
        result = function(aside, *arguments)
        (aside / RESULT).write_text(json.dumps(result, ensure_ascii=False), encoding="utf-8")
    return result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def _publishing(folder: Path) -> Iterator[Path]:
    # No parents are made: where the driver has given up and removed the work, there is nothing left to publish into.
    aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:12]}")
    aside.mkdir()
    try:
        yield aside
        for file in aside.iterdir():
            fsync(file)
        fsync(aside)
        try:
            aside.rename(folder)
        except OSError as error:  # somebody else has published the unit: the same bytes
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        fsync(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
