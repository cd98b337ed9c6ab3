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


def read_if_there(name: str) -> dict[str, Any] | None:
    """Of a benchmark that has not run everywhere yet."""
    return read(name) if (HERE / "results" / f"{name}.json").is_file() else None


def tables() -> Iterator[str]:
    yield from start()
    yield from orchestration()
    yield from training()
    yield from scaling()
    yield from loader()
    yield from prepare()
    yield from checkpoints()
    yield from handoff()
    yield from recovery()
    yield from decode()
    yield from service()
    yield from resume()
    yield from near_duplicates()


def start() -> Iterator[str]:
    found = read("start")
    yield f"### C1: command to first step ({found['machine']})\n"
    yield "| command | s, median | runs |\n|---|---|---|"
    for name, spans in found["to_first_step_s"].items():
        yield f"| {name} | {statistics.median(spans):.1f} | {len(spans)} |"
    yield ""


def orchestration() -> Iterator[str]:
    if not (found := read_if_there("orchestration")):
        return
    yield f"### C2: cost of the loop around a step ({found['machine']}; {found['clock']} time)\n"
    yield "| loop | ms a step | bare loop | cost ms | spread | runs |\n|---|---|---|---|---|---|"
    for name, row in found["rows"].items():
        low, high = row["spread_ms"]
        yield (
            f"| {name} | {row['ms_a_step']} | {row['bare_ms_a_step']} | {row['cost_ms']} | {low} to {high} "
            f"| {row['runs']} |"
        )
    yield ""


def training() -> Iterator[str]:
    if not (found := read_if_there("training")):
        return
    limits = ", ".join(f"{case} {limit}" for case, limit in found["matmul_gflops_per_s"].items())
    yield f"### C3: training ({found['machine']}; {found['clock']} time counts; matrix products in GFLOP/s: {limits})\n"
    yield "| what | tokens/s, wall | spread | CPU ms a step | spread | of the products | warm-up s | peak MB | runs |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, row in found["rows"].items():
        if row["void"]:
            yield f"| {name} | void: losses are {row['losses_apart']} apart | | | | | | | |"
            continue
        low, high = row["tokens_per_s_spread"]
        least, most = row["cpu_ms_spread"]
        yield (
            f"| {name} | {row['tokens_per_s']:,} | {low:,} to {high:,} | {row['cpu_ms_a_step']} | {least} to {most} "
            f"| {row['of_matmul_percent']} % | {row['warm_up_s']} | {row['peak_mb']:,} | {row['runs']} |"
        )
    yield ""


def scaling() -> Iterator[str]:
    if not (found := read_if_there("scaling")):
        return
    yield f"### C4: one worker and two ({found['machine']}; bf16, a thread and 8 samples a worker)\n"
    yield "| engine | ms, 1 worker | ms, 2 workers | efficiency | peak MB, 1 | peak MB, 2 | runs |"
    yield "|---|---|---|---|---|---|---|"
    for name, row in found["rows"].items():
        yield (
            f"| {name} | {row['ms_1']} | {row['ms_2']} | {row['efficiency_percent']} % | {row['peak_mb_1']:,} "
            f"| {row['peak_mb_2']:,} | {row['runs']} |"
        )
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


def checkpoints() -> Iterator[str]:
    if not (found := read_if_there("checkpoints")):
        return
    yield f"### C8: checkpoints ({found['machine']}; training on one thread)\n"
    yield "| what | step ms | held ms | the first | excess ms | durable s | MB | restored to the bit |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, row in found["rows"].items():
        yield (
            f"| {name} | {row['step_ms']} | {row['held_ms']} | {row['first_held_ms']} | {row['excess_ms']} "
            f"| {row['durable_s']} | {row['mb']} | {'yes' if row['restored_to_the_bit'] else 'no'} |"
        )
    yield ""


def handoff() -> Iterator[str]:
    if not (found := read_if_there("handoff")):
        return
    every_s = found["saved_every_s"]
    yield f"### C9: checkpoint to first token ({found['machine']}; the run trains on, and saves every {every_s:g} s)\n"
    yield (
        "| what | first s | new version, s after the commit | spread | s after its weights | blackout ms | wait ms "
        "| gap ms | usual | failed | streams |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for name, row in found["rows"].items():
        low, high = row["handoff_s_spread"]
        blackout = "not told" if row["blackout_ms"] is None else row["blackout_ms"]
        yield (
            f"| {name} | {row['first_s']} | {row['handoff_s']} | {low} to {high} | {row['weights_s']} | {blackout} "
            f"| {row['wait_ms']:,} | {row['gap_ms']:,} | {row['usual_gap_ms']:,} | {row['failed']} "
            f"| {row['streams'] + row['failed']} |"
        )
    yield ""


def recovery() -> Iterator[str]:
    if not (found := read_if_there("recovery")):
        return
    every_s, steps = found["a_kill_every_s"], found["saved_every_steps"]
    yield f"### C10: recovery ({found['machine']}; a kill every {every_s:.0f} s, saved every {steps} steps)\n"
    yield "| system | s to a new step | spread | after a stop | redone | useful | without starts | step ms | kills |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, row in found["rows"].items():
        low, high = row["recovered_s_spread"] or ("", "")
        stopped = row["stopped_recovered_s"] or f"not in {found['stopped_waited_for_s']:.0f} s"
        yield (
            f"| {name} | {row['recovered_s']} | {low} to {high} | {stopped} | {row['most_redone_steps']} "
            f"| {row['useful_percent']} % | {row['useful_of_what_starts_leave_percent']} % | {row['step_ms']} "
            f"| {row['kills']} |"
        )
    yield ""


def decode() -> Iterator[str]:
    if not (found := read_if_there("decode")):
        return
    yield f"### C11: decoding ({found['machine']}; memory allows {found['limit_at_batch_1']} tokens/s at batch 1)\n"
    yield "| engine | batch 1 | batch 8 | batch 32 | peak MB | runs |\n|---|---|---|---|---|---|"
    for name, row in found["rows"].items():
        speeds = ["void"] * 3 if row["void"] else [f"{row['tokens_per_s'][batch]:,}" for batch in ("1", "8", "32")]
        yield f"| {name} | {' | '.join(speeds)} | {row['peak_mb']:,} | {row['runs']} |"
    yield ""


def service() -> Iterator[str]:
    if not (found := read_if_there("service")):
        return
    load = f"{found['requests']} requests; then as many, {found['rate_per_s']:g} a second"
    yield f"### C12: a whole service ({found['machine']}; a burst of {load})\n"
    yield "| service | tokens/s of the burst | spread | p50 s at that rate | p99 s | one token alone ms | runs |"
    yield "|---|---|---|---|---|---|---|"
    for name, row in found["rows"].items():
        low, high = row["spread"]
        yield (
            f"| {name} | {row['tokens_per_s']:,.0f} | {low:,} to {high:,} | {row['p50_s']:.2f} | {row['p99_s']:.2f} "
            f"| {row['alone_ms']:.1f} | {row['runs']} |"
        )
        if "engine_alone_ms" in row:
            yield f"| its engine without a service |  |  |  |  | {row['engine_alone_ms']:.1f} | {row['runs']} |"
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
