"""The tables of benchmarks/README.md, from results/*.json: `python benchmarks/table.py` writes them anew."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BEGIN, END = "<!-- results: made by `python benchmarks/table.py` -->", "<!-- results: end -->"


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def tables() -> Iterator[str]:
    yield from start()
    yield from loader()
    yield from prepare()
    yield from resume()
    yield from near_duplicates()


def start() -> Iterator[str]:
    found = read("start")
    yield f"### C1: command to first step ({found['machine']})\n"
    yield "| command | s, median | runs |\n|---|---|---|"
    for name, spans in found["to_first_step_s"].items():
        yield f"| {name} | {statistics.median(spans):.1f} | {len(spans)} |"
    yield ""


def loader() -> Iterator[str]:
    found = read("loader")
    corpus, limit = found["corpus_bytes"] / 1e6, found["limit_tokens_per_s"] / 1e6
    yield f"### C5: shuffled loader ({found['machine']}; {corpus:,.0f} MB; limit {limit:,.0f} Mtok/s)\n"
    yield "| loader | Mtok/s, median | spread | of the limit | p50 us | p99 us | p99/p50 | peak MB | runs |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, row in found["loaders"].items():
        if "void" in row:
            yield f"| {name} | void | | | | | | | |"
            continue
        low, high = (value / 1e6 for value in row["tokens_per_s_spread"])
        yield (
            f"| {name} | {row['tokens_per_s'] / 1e6:,.0f} | {low:,.0f} to {high:,.0f} | {row['of_limit_percent']} % "
            f"| {row['p50_us']:,.0f} | {row['p99_us']:,.0f} | {row['p99_by_p50']} "
            f"| {row['peak_mb']:,.0f} | {row['runs']} |"
        )
    yield ""


def prepare() -> Iterator[str]:
    found = read("prepare")
    corpus = f"{found['corpus']['bytes'] / 1e6:,.0f} MB, {found['corpus']['documents']:,} documents"
    yield f"### C6: text to packed shards ({found['machine']}; {corpus})\n"
    yield "| what, on how many cores | MB/s, median | s | spread s | ready after s | peak MB | runs |"
    yield "|---|---|---|---|---|---|---|"
    for name, row in found["rows"].items():
        low, high = row["seconds_spread"]
        speed = "void" if row["void"] else row["mb_per_s"]
        yield (
            f"| {name} | {speed} | {row['seconds']} | {low} to {high} | {row['ready_s']} "
            f"| {row['peak_mb']:,} | {row['runs']} |"
        )
    yield ""


def resume() -> Iterator[str]:
    found = read("resume")
    yield f"### C13: exact resume ({found['machine']}; {found['corpus_bytes'] / 1e6:,.0f} MB)\n"
    yield "| loader | " + " | ".join(f"ms at step {int(k):,}" for k in found["loaders"]["ours"]) + " |"
    yield "|---|" + "---|" * len(found["loaders"]["ours"])
    for name, steps in found["loaders"].items():
        yield f"| {name} | " + " | ".join(f"{row['resume_ms']:,.1f}" for row in steps.values()) + " |"
    yield ""


def near_duplicates() -> Iterator[str]:
    found = read("near_duplicates")
    yield f"### Near-duplicate search ({found['machine']})\n"
    yield "| documents | MB | ours s | MB/s | recall | datasketch s | recall |\n|---|---|---|---|---|---|---|"
    for row in found["sizes"]:
        own, peer = row["slipway"], row.get("datasketch")
        spans = own["total_s"] if isinstance(own["total_s"], list) else [own["total_s"]]
        beside = f"{peer['total_s']:.1f} | {peer['recall']:.2f}" if peer else "not run | "
        yield (
            f"| {row['documents']:,} | {row['text_mb']:,.0f} | {statistics.median(spans):.2f} | {own['mb_per_s']:.1f} "
            f"| {own['recall']:.2f} | {beside} |"
        )
    yield ""


def main() -> None:
    target = HERE / "README.md"
    before, begin, rest = target.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{target} lacks the lines {BEGIN!r} and {END!r}")
    made = "\n".join(tables())
    target.write_text(f"{before}{BEGIN}\n\n{made}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
