"""C11: tokens a second of one replica's engine at batch 1, 8 and 32, greedily, against transformers' `generate`.

    python benchmarks/decode.py [--repeats 4] [--seconds 4] [--threads 2] [--only ours,generate]

A Llama of 30M parameters with random weights; prompts of 64 tokens, 64 new ones each; what counts is all new tokens by
the time from asking to the last of them, prompts included. Every run is a process of its own; the order turns with each
repeat. Ours is asked through its event loop, as a replica asks it: text and all. No prompt comes twice. In fp32, the
tokens of all must be the same: a row whose tokens differ is void. Needs nothing but a CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loader import publish
from training import machine

ROOT = Path(__file__).parents[1]
SHAPE = {"vocab_size": 8192, "layers": 8, "width": 512, "heads": 8, "kv_heads": 8, "hidden": 1408, "context": 512}
PROMPT, NEW = 64, 64
BATCHES = (1, 8, 32)
ROWS = ["ours", "generate", "generate-static", "ours-int8", "ours-uncompiled"]
LIMIT_S = 600
Prompts = list[list[int]]
Generate = Callable[[Prompts], list[list[int]] | None]
"""Continues prompts; tells the new ids where it has them."""


def prompts(batch: int, number: int) -> Prompts:
    """Another batch for each number."""
    import torch

    generator = torch.Generator().manual_seed(1000 * batch + number)
    return torch.randint(1, SHAPE["vocab_size"], (batch, PROMPT), generator=generator).tolist()  # type: ignore[no-any-return]


def network(precision: str) -> Any:
    """Ours, with the weights that all have."""
    import torch

    from model.config import ModelConfig
    from model.gpt import GPT

    return GPT(ModelConfig(**SHAPE)).initialise(0).eval().to(torch.float32 if precision == "fp32" else torch.bfloat16)


def ours(precision: str, threads: int, *, int8: bool = False, compiled: bool = True) -> Generate:
    """The engine of a replica."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import WordLevel

    from model.native import build
    from orchestrator.export.manifest import ExportManifest
    from orchestrator.export.prove import Proven
    from orchestrator.serve.engine.batching import Engine
    from orchestrator.serve.engine.protocol import Piece, Sampling

    if compiled:
        build.build()
    else:
        os.environ["CXX"] = "/nowhere"
    tokenizer = Tokenizer(WordLevel({f"t{i}": i for i in range(SHAPE["vocab_size"])}, unk_token="t0"))
    tokenizer.decoder = decoders.Fuse()
    manifest = ExportManifest.model_construct(eos_token_id=0, tokenizer_size=SHAPE["vocab_size"])
    engine = Engine(Proven(network(precision), tokenizer, manifest), threads=threads, int8=int8)
    told = 0 if precision == "fp32" else None
    sampling = Sampling(max_tokens=NEW, temperature=0.0, ignore_eos=True, logprobs=told)
    loop = asyncio.new_event_loop()

    async def one(prompt: list[int]) -> list[int]:
        whole = Piece.joined([piece async for piece in engine.generate(prompt, sampling)])
        assert whole.tokens == NEW
        return [each.token for each in whole.logprobs]

    async def every(given: Prompts) -> list[list[int]]:
        return list(await asyncio.gather(*(one(prompt) for prompt in given)))

    return lambda given: loop.run_until_complete(every(given))


def generate(precision: str, threads: int, **settings: Any) -> Generate:
    """transformers' own."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from model.huggingface import to_hf_config, to_hf_state

    torch.set_num_threads(threads)
    model = network(precision)
    data = to_hf_config(model.config, bos_token_id=None, eos_token_id=None, dtype="float32")
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(data.pop("model_type"), **data))
    theirs.load_state_dict(to_hf_state(model.state_dict(), model.config), strict=False)
    theirs = theirs.eval().to(model.embed.weight.dtype)

    def made(given: Prompts) -> list[list[int]]:
        ids = torch.tensor(given)
        found = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0, **settings
        )
        return found[:, PROMPT:].tolist()  # type: ignore[no-any-return]

    return made


MAKERS: dict[str, Callable[[str, int], Generate]] = {
    "ours": ours,
    "ours-int8": lambda precision, threads: ours(precision, threads, int8=precision == "bf16"),
    "ours-uncompiled": lambda precision, threads: ours(precision, threads, compiled=False),
    "generate": generate,
    "generate-static": lambda precision, threads: generate(precision, threads, cache_implementation="static"),
}


def run_child(name: str, precision: str, threads: int, seconds: float) -> None:
    """One run: fp32 tells tokens, bf16 speeds."""
    made = MAKERS[name](precision, threads)
    if precision == "fp32":
        result: dict[str, Any] = {"ids": {batch: made(prompts(batch, 0)) for batch in BATCHES}}
    else:
        result = {"spans_s": {batch: spans(made, batch, seconds) for batch in BATCHES}}
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write("\n" + json.dumps(result) + "\n")
    sys.stdout.flush()
    os._exit(0)  # threads end with the process


def spans(made: Generate, batch: int, seconds: float) -> list[float]:
    made(prompts(batch, 0))
    found: list[float] = []
    ends_at = time.perf_counter() + seconds
    while time.perf_counter() < ends_at or len(found) < 2:
        given = prompts(batch, 1 + len(found))
        start = time.perf_counter()
        made(given)
        found.append(time.perf_counter() - start)
    return found


def measure(name: str, precision: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """One run in a process of its own; None where it failed."""
    args = [sys.executable, __file__, "--child", name, precision, str(options.threads), str(options.seconds)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(args, check=False, capture_output=True, text=True, env=env, timeout=LIMIT_S)
    if done.returncode:
        sys.stderr.write(f"{name} {precision}: {done.stderr.strip().splitlines()[-1:]}\n")
        return None
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    speeds = {batch: round(rate(batch, taken)) for batch, taken in found.get("spans_s", {}).items()}
    sys.stderr.write(f"{name} {precision}: {speeds or 'tokens told'}\n")
    return found


def rate(batch: int | str, spans_s: list[float]) -> float:
    return int(batch) * NEW / statistics.median(spans_s)


def read_bytes_per_s(threads: int) -> float:
    """What all threads together read of memory: the limit of one sequence, which reads every weight for each token."""
    code = (
        "import time, torch\n"
        f"torch.set_num_threads({threads})\n"
        "x, best = torch.ones(1 << 27), 9.0\n"
        "for _ in range(15):\n"
        "    start = time.perf_counter(); x.sum(); best = min(best, time.perf_counter() - start)\n"
        "print(4 * len(x) / best)\n"
    )
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env)
    return float(done.stdout)


def compare(options: argparse.Namespace) -> dict[str, Any]:
    names = options.only.split(",") if options.only else ROWS
    ids = {name: (measure(name, "fp32", options) or {}).get("ids") for name in ["generate", *names]}
    runs: dict[str, list[dict[str, Any]]] = {}
    for i in range(options.repeats):
        for name in names if i % 2 == 0 else names[::-1]:
            if found := measure(name, "bf16", options):
                runs.setdefault(name, []).append(found)
    weights = 2 * sum(parameter.numel() for parameter in network("bf16").parameters())
    read = read_bytes_per_s(options.threads)
    return {
        "benchmark": "C11",
        "machine": machine(options.threads),
        "read_gb_per_s": round(read / 1e9, 1),
        "weights_mb": round(weights / 1e6),
        "limit_at_batch_1": round(read / weights),
        "rows": {name: summary(found, ids[name] == ids["generate"]) for name, found in runs.items()},
    }


def summary(runs: list[dict[str, Any]], agrees: bool) -> dict[str, Any]:
    speeds = {batch: sorted(rate(batch, run["spans_s"][str(batch)]) for run in runs) for batch in BATCHES}
    return {
        "tokens_per_s": {batch: round(statistics.median(found)) for batch, found in speeds.items()},
        "spread": {batch: [round(found[0]), round(found[-1])] for batch, found in speeds.items()},
        "peak_mb": round(max(run["peak_mb"] for run in runs)),
        "runs": len(runs),
        "void": not agrees,
    }


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        name, precision, threads, seconds = sys.argv[2:]
        run_child(name, precision, int(threads), float(seconds))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each batch size in each run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="such as ours,generate")
    publish("decode", compare(parser.parse_args()))


if __name__ == "__main__":
    main()
