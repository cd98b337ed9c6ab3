"""C13: from a step's number to the batch after it, and whether anything is repeated or missed on the way.

    python benchmarks/resume.py [--corpus-bytes 100000000] [--repeats 5] [--limit-s 60] [--only ours,datasets]

A batch is 64 rows of 1025 ids. Ours: a loader is made anew (`open_ms`: shards are mapped) and reads step k + 1
(`resume_ms`). HF: `IterableDataset.skip` of what is behind in its epoch. MosaicML: `load_state_dict`, with the epoch.
Each measurement is a process of its own that imports everything first; one that takes longer than the limit is
reported as such. `exact`: whether the batch is the one that a run without a stop would have read.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loader import ENVIRONMENT, child, peers_python, publish
from loader_peers import CONTEXT, LOADERS, ROWS, stand_in_for_torchvision

STEPS = (10, 10_000, 1_000_000)
CHECKED_STEP = 200
WORLDS = (2, 1, 3)
Resume = Callable[[int], Any]
"""From a number of finished steps to the next batch."""


def ours(folder: Path) -> tuple[Resume, Any]:
    loader = _our_loader(folder)
    return (lambda step: loader.read(step + 1, 0, ROWS)), (
        loader.read(step, 0, ROWS) for step in range(1, CHECKED_STEP + 2)
    )


def _our_loader(folder: Path) -> Any:
    from orchestrator.data.load.loader import TrainLoader
    from orchestrator.data.load.mixture import Part

    parts = [Part("train", None, sorted(folder.glob("*.arrow")))]
    return TrainLoader(parts, context=CONTEXT, samples_per_step=ROWS, seed=1)


def datasets(folder: Path) -> tuple[Resume, Any]:
    import datasets

    whole = datasets.load_from_disk(str(folder / "hf")).with_format("numpy")

    def data(epoch: int) -> Any:
        shuffled = whole.to_iterable_dataset(num_shards=4).shuffle(seed=1, buffer_size=1000)
        shuffled.set_epoch(epoch)
        return shuffled

    def resume(step: int) -> Any:
        epoch, behind = divmod(step * ROWS, len(whole))
        return next(iter(data(epoch).skip(behind).iter(batch_size=ROWS)))["ids"]

    return resume, (batch["ids"] for batch in data(0).iter(batch_size=ROWS))


def mosaic(folder: Path) -> tuple[Resume, Any]:
    import numpy as np
    from streaming import StreamingDataset

    options = {"shuffle": True, "shuffle_seed": 1, "batch_size": ROWS, "num_canonical_nodes": 1}
    data = StreamingDataset(local=str(folder / "mds"), **options)

    def batches() -> Any:
        rows = iter(data)
        while batch := [row["ids"] for row in itertools.islice(rows, ROWS)]:
            yield np.stack(batch)

    def resume(step: int) -> Any:
        epoch, behind = divmod(step * ROWS, data.num_samples)
        # The state of a run on one node: it names how the epoch was dealt.
        dealt = {"num_canonical_nodes": 1, "initial_physical_nodes": 1, "shuffle_seed": 1}
        data.load_state_dict({"epoch": epoch, "sample_in_epoch": behind, **dealt})
        return next(batches())

    return resume, batches()


RESUMES = {"ours": ours, "datasets": datasets, "mosaic": mosaic}
SOURCES = {"ours": "ours", "datasets": "datasets-numpy", "mosaic": "mosaic"}


def measure(name: str, folder: Path, step: int) -> dict[str, float]:
    RESUMES[name](folder)[0](1)  # what is imported, and read for the first time, does not count
    (resume, _), open_ms = timed(lambda: RESUMES[name](folder))
    return {"open_ms": open_ms, "resume_ms": timed(lambda: resume(step))[1]}


def is_exact(name: str, folder: Path) -> bool:
    """Whether the batch after a resume at step 200 is the batch that a run without a stop reads there."""
    import numpy as np

    _, going = RESUMES[name](folder)
    expected = next(itertools.islice(going, CHECKED_STEP, None))
    return bool(np.array_equal(RESUMES[name](folder)[0](CHECKED_STEP), expected))


def timed(work: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, (time.perf_counter() - start) * 1e3


def repeated_and_missed(folder: Path) -> dict[str, int]:
    """An epoch of ours that is stopped twice and goes on at 2, 1 and 3 workers: rows that came twice, or never."""
    import numpy as np

    from orchestrator.data.load.order import deal

    count = _our_loader(folder).num_samples
    steps = count // ROWS
    seen = np.zeros(count, dtype=np.int64)
    cuts = [steps * i // len(WORLDS) for i in range(len(WORLDS) + 1)]
    for workers, first, last in zip(WORLDS, cuts, cuts[1:], strict=False):
        loaders = [_our_loader(folder) for _ in range(workers)]
        for step in range(first + 1, last + 1):
            for rank, loader in enumerate(loaders):
                np.add.at(seen, loader.sample_ids(step, *deal(ROWS, rank, workers)), 1)
    missed = int((seen == 0).sum()) - (count - steps * ROWS)
    return {"rows": steps * ROWS, "repeated": int((seen > 1).sum()), "missed": missed}


def run_child(args: list[str]) -> None:
    what, name, folder, number = args
    if name == "mosaic":
        stand_in_for_torchvision()
    if what == "write":
        LOADERS[SOURCES[name]][0](Path(folder), int(number))
        result: Any = None
    elif what == "once":
        result = repeated_and_missed(Path(folder))
    elif what == "exact":
        result = is_exact(name, Path(folder))
    else:
        result = measure(name, Path(folder), int(number))
    sys.stdout.write("\n" + json.dumps(result) + "\n")
    sys.stdout.flush()
    os._exit(0)  # MosaicML leaves threads


def compare(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    names = options.only.split(",") if options.only else list(RESUMES)
    pythons = {name: sys.executable if name == "ours" else peers_python(options.environment) for name in names}
    for name in names:
        (work / name).mkdir()
        child(pythons[name], __file__, "write", name, work / name, options.corpus_bytes // 2)
    found: dict[tuple[str, int], list[dict[str, float]]] = {(name, step): [] for name in names for step in STEPS}
    too_long: set[tuple[str, int]] = set()
    for i in range(options.repeats):
        for name, step in list(found)[:: 1 if i % 2 == 0 else -1]:
            if (name, step) in too_long:
                continue
            try:
                result = child(pythons[name], __file__, "measure", name, work / name, step, limit_s=options.limit_s)
            except subprocess.TimeoutExpired:
                too_long.add((name, step))
                continue
            if result:
                found[name, step].append(result)
    return {
        "benchmark": "C13",
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "corpus_bytes": options.corpus_bytes,
        "loaders": {name: {str(step): summary(found[name, step], options.limit_s) for step in STEPS} for name in names},
        "exact": {name: child(pythons[name], __file__, "exact", name, work / name, 0) for name in names},
        "workers": list(WORLDS),
        **(child(sys.executable, __file__, "once", "ours", work / "ours", 0) if "ours" in names else {}),
    }


def summary(runs: list[dict[str, float]], limit_s: float) -> dict[str, Any]:
    if not runs:
        return {"void": f"failed, or took more than {limit_s:g} s"}
    times = sorted(run["resume_ms"] for run in runs)
    medians = {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
    return {**medians, "runs": len(runs), "resume_ms_spread": [round(times[0], 3), round(times[-1], 3)]}


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        run_child(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus-bytes", type=int, default=100_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit-s", type=float, default=60.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        publish("resume", compare(options, Path(folder)))


if __name__ == "__main__":
    main()
