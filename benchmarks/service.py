"""C12: a whole service under a burst and under Poisson arrivals, against Ray Serve with static batches of `generate`.

    python benchmarks/service.py [--repeats 2] [--requests 96] [--rate 3] [--threads 2] [--only ours,static]

The Llama of C11 (30M parameters, bf16, random weights), one replica. Requests are ragged: prompts of 16 to 192 tokens,
answers of 8 to 192, most of them short (log-uniform), the same for all; they come through HTTP, as whole answers.
Burst: all at once; what counts is all tokens asked for by the time of the last answer. Poisson: so many a second on
average; what counts is each answer's time. Alone: one after another, a token each; ours besides by the engine without a
service: the difference is what the service costs. The peer batches up to 32 requests that come within 50 ms
(`serve.batch`), pads them on the left, and generates as many tokens as the longest of them wants. Each run starts anew;
the order turns with each repeat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from decode import network
from loader import publish
from training import machine

ROOT = Path(__file__).parents[1]
ROWS = ["ours", "static"]
MODEL = "llama-30m"
LIMIT_S = 900
BATCH, WAIT_S = 32, 0.05
CAP = 256
"""Connections of the client: more than any burst has."""
Asked = tuple[list[int], int]
"""Token ids, and how many are wanted."""


def requests(count: int, seed: int, *, size: int) -> list[Asked]:
    """Ragged, the same for all; `size` bounds their ids."""
    rng = random.Random(seed)
    return [(rng.choices(range(5, size), k=log_uniform(rng, 16, 192)), log_uniform(rng, 8, 192)) for _ in range(count)]


def log_uniform(rng: random.Random, least: int, most: int) -> int:
    return round(math.exp(rng.uniform(math.log(least), math.log(most))))


def write(folder: Path) -> Path:
    """An export of the model with a small tokenizer: ids beyond it are in no prompt, and never drawn."""
    from dataclasses import asdict

    import torch
    from safetensors.torch import save_file

    from orchestrator.data.tokens.facts import facts
    from orchestrator.data.tokens.train import train_tokenizer
    from orchestrator.export.folder import logits_of
    from orchestrator.export.write import ExportFacts, write_export
    from orchestrator.job_data import Tokenizer
    from orchestrator.store import commit, writing

    model, probe = network("fp32"), {"input_ids": torch.arange(5, 37).reshape(2, 16)}
    text = train_tokenizer(["".join(map(chr, range(32, 127)))] * 4, Tokenizer(train="bpe", vocab_size=300), chat=False)
    with writing(folder / "dataset") as tmp:
        (tmp / "tokenizer.json").write_text(text, encoding="utf-8")
        commit(tmp, folder / "dataset", {"tokenizer": asdict(facts(text, chat_template=None))})
    checkpoint = folder / "step-00000001"
    with writing(checkpoint) as tmp:
        save_file({name: t.contiguous() for name, t in model.state_dict().items()}, tmp / "model.safetensors")
        (tmp / "model.json").write_text(json.dumps({**model.config.to_dict(), "head": {"kind": "lm", "labels": []}}))
        save_file({**probe, "trainer_logits": logits_of(model, probe).contiguous()}, tmp / "probe.safetensors")
        commit(tmp, checkpoint, {"format": 1, "step": 1, "precision": "fp32"})
    told = ExportFacts(
        name=MODEL,
        run=MODEL,
        dataset="none",
        data="none",
        tokens=0,
        train_loss=0.0,
        validation_loss=None,
        versions={"torch": torch.__version__},
    )
    into = folder / "export" / "step-00000001"
    return write_export(checkpoint=checkpoint, dataset=folder / "dataset", into=into, facts=told)


async def answer(client: Any, url: str, asked: Asked) -> float:
    """The seconds that an answer took."""
    body = {"model": MODEL, "prompt": asked[0], "max_tokens": asked[1], "ignore_eos": True, "temperature": 0}
    began = time.perf_counter()
    found = await client.post(url, json=body)
    while found.status_code == 429:  # no room for all of a burst: it asks again, as OpenAI's clients do
        await asyncio.sleep(0.5)
        found = await client.post(url, json=body)
    assert found.status_code == 200, found.text
    assert found.json()["usage"]["completion_tokens"] == asked[1]
    return time.perf_counter() - began


async def load(url: str, options: argparse.Namespace, size: int) -> dict[str, Any]:
    """What a client sees of a service that is warm."""
    import httpx

    async with httpx.AsyncClient(timeout=LIMIT_S, limits=httpx.Limits(max_connections=CAP)) as client:
        await asyncio.gather(*(answer(client, url, asked) for asked in requests(16, 1, size=size)))
        alone = [await answer(client, url, (prompt, 1)) for prompt, _ in requests(60, 2, size=size)]
        burst = requests(options.requests, 3, size=size)
        began = time.perf_counter()
        await asyncio.gather(*(answer(client, url, asked) for asked in burst))
        burst_s = time.perf_counter() - began
        arriving, rng = [], random.Random(4)
        for asked in requests(options.requests, 5, size=size):
            arriving.append(asyncio.create_task(answer(client, url, asked)))
            await asyncio.sleep(rng.expovariate(options.rate))
        took_s = sorted(await asyncio.gather(*arriving))
    return {
        "tokens_per_s": sum(wanted for _, wanted in burst) / burst_s,
        "alone_ms": 1e3 * statistics.median(alone),
        "p50_s": took_s[len(took_s) // 2],
        "p99_s": took_s[min(len(took_s) - 1, len(took_s) * 99 // 100)],
    }


def tokenizer_size(export: Path) -> int:
    from orchestrator.export.manifest import read_export_manifest

    return read_export_manifest(export).tokenizer_size


def run_ours(export: Path, options: argparse.Namespace) -> dict[str, Any]:
    """`slipway serve`, and the engine alone for the token that is asked one by one."""
    from orchestrator.job import Serve
    from orchestrator.serve.host import detached

    settings = Serve(cpus=options.threads, precision="bf16", max_ongoing_requests=BATCH)
    size = tokenizer_size(export)
    started = detached.start_detached(export, settings=settings, model_name=MODEL, port=options.port)
    try:
        found = asyncio.run(load(f"{started['url']}/completions", options, size))
    finally:
        detached.stop(options.port)
    return {**found, "engine_alone_ms": engine_ms(export, options.threads, size)}


def engine_ms(export: Path, threads: int, size: int) -> float:
    """The median of what the engine takes for the requests that come alone."""
    from orchestrator.export.prove import load_proven
    from orchestrator.serve.engine.batching import Engine
    from orchestrator.serve.engine.protocol import Sampling

    engine = Engine(load_proven(export, precision="bf16"), threads=threads, max_running=BATCH)

    async def every() -> float:
        while not engine.load().compiled:
            await asyncio.sleep(0.1)
        took = []
        for prompt, _ in requests(60, 2, size=size):
            began = time.perf_counter()
            async for _ in engine.generate(prompt, Sampling(max_tokens=1, temperature=0.0, ignore_eos=True)):
                pass
            took.append(time.perf_counter() - began)
        return 1e3 * statistics.median(took)

    return asyncio.run(every())


def run_static(export: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What Ray's documentation shows: `serve.batch` around transformers' `generate`."""
    import ray
    from ray import serve
    from service_peer import static_application

    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    serve.start(http_options={"host": "127.0.0.1", "port": options.port})
    serve.run(static_application(str(export), threads=options.threads, most=BATCH, wait_s=WAIT_S), route_prefix="/")
    return asyncio.run(load(f"http://127.0.0.1:{options.port}/", options, tokenizer_size(export)))


RUNNERS = {"ours": run_ours, "static": run_static}


def measure(name: str, export: Path, state: str) -> dict[str, Any] | None:
    """One run in a process of its own; None where it failed."""
    args = [sys.executable, __file__, "--child", name, "--export", str(export), *sys.argv[1:]]
    paths = f"{ROOT}:{ROOT / 'benchmarks'}"
    # Ray starts its workers at 15 unless told otherwise; ours are told.
    fair = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    env = {**os.environ, **fair, "PYTHONPATH": paths, "XDG_STATE_HOME": state}
    done = subprocess.run(args, check=False, capture_output=True, text=True, env=env, timeout=LIMIT_S)
    if done.returncode:
        sys.stderr.write(f"{name}: {done.stderr[-2000:]}\n")
        return None
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    sys.stderr.write(f"{name}: {found}\n")
    return found


def compare(options: argparse.Namespace) -> dict[str, Any]:
    names = options.only.split(",") if options.only else ROWS
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        export = write(Path(folder))
        for i in range(options.repeats):
            for name in names if i % 2 == 0 else names[::-1]:
                if found := measure(name, export, str(Path(folder, "state"))):
                    runs.setdefault(name, []).append(found)
    return {
        "benchmark": "C12",
        "machine": machine(options.threads),
        "requests": options.requests,
        "rate_per_s": options.rate,
        "rows": {name: summary(found) for name, found in runs.items()},
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, and all that was measured of the burst."""
    medians = {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}
    spread = sorted(round(run["tokens_per_s"]) for run in runs)
    return {**medians, "spread": [spread[0], spread[-1]], "runs": len(runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--rate", type=float, default=3.0, help="requests a second")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--only", default="", help="such as ours,static")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        found = RUNNERS[options.child](options.export, options)
        sys.stdout.write("\n" + json.dumps(found) + "\n")
        sys.stdout.flush()
        os._exit(0)  # threads and processes end with this one
    publish("service", compare(options))


if __name__ == "__main__":
    main()
