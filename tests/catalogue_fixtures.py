"""Stores with many runs, laid out without a training, and made old enough to be taken as settled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from orchestrator.store import Store, commit, writing

OLD_S = 1_700_000_000.0


def lay_out_runs(store: Store, count: int, *, lines: int = 5, first: int = 0) -> list[Path]:
    """Runs of as many jobs as there are, each with a plan, lines, events, a checkpoint and an export."""
    return [_run(store, number, lines) for number in range(first, first + count)]


def _run(store: Store, number: int, lines: int) -> Path:
    run = store.run(f"job{number % 7}", f"{number:012x}")
    (run / "checkpoints").mkdir(parents=True)
    (run / "job.yaml").write_text(f"name: job{number % 7}\n")
    (run / "plan.json").write_text(json.dumps({"job": f"job{number % 7}", "steps": 100}))
    about = {"format": 1, "dataset": f"../../datasets/data-{number % 3:012x}", "commit": "c0ffee"}
    (run / "run.json").write_text(json.dumps(about))
    event = {"time": _at(number), "event": "launched", "attempt": 1, "workers": 2, "host": "here", "by": "ana"}
    (run / "events.jsonl").write_text(json.dumps(event) + "\n")
    line = {"train/loss": 2.5, "train/tokens_per_s": 100.0, "eval/loss": 2.75}
    written = "".join(json.dumps({"train/step": step, **line}) + "\n" for step in range(1, lines + 1))
    (run / "metrics.jsonl").write_text(written)
    saved = run / "checkpoints" / f"step-{lines:08d}"
    with writing(saved) as tmp:
        (tmp / "progress.json").write_text(json.dumps({"step": lines}))
        commit(tmp, saved, {})
    exported = run / "export" / f"step-{lines:08d}"
    if number % 2:
        lay_out_export(exported, run=run.name, step=lines)
    make_old(run, number)
    return run


def lay_out_export(folder: Path, *, run: str | None, step: int) -> Path:
    about: dict[str, Any] = {
        "format": 2,
        "name": "job",
        "family": "llama",
        "head": {"kind": "lm", "labels": []},
        "origin": "trained" if run else "imported",
        "run": run,
        "dataset": None,
        "source": None,
        "step": step,
        "precision": "fp32",
        "eos_token": "<|endoftext|>",
        "eos_token_id": 0,
        "tokenizer_size": 1,
        "tensors": {},
    }
    with writing(folder) as tmp:
        commit(tmp, folder, about)
    return folder


def lay_out_dataset(store: Store, name: str, *, mixes: tuple[str, ...] = ()) -> Path:
    folder = store.datasets / name
    about: dict[str, Any] = {"kind": "text", "splits": {"train": {"tokens": 40, "documents": 4}}}
    if mixes:
        about["components"] = [{"name": one, "hash": "x", "place": f"../{one}"} for one in mixes]
    with writing(folder) as tmp:
        commit(tmp, folder, about)
    make_old(folder, 0)
    return folder


def make_old(folder: Path, number: int) -> None:
    """All of a folder was last changed long ago, a minute later for each number."""
    at = OLD_S + 60 * number
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (at, at))


def _at(number: int) -> str:
    from orchestrator.track.events import iso_time

    return iso_time(OLD_S + 60 * number)
