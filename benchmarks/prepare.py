"""C6: raw text to packed, tokenised shards, megabytes a second, against its peers, on one core and on two.

    python benchmarks/prepare.py [--corpus-mb 200] [--repeats 5] [--cores 1,2] [--only ours,datasets]

The corpus is JSON lines of the source files that this machine's Python has (its library and its packages), each text
once; the tokenizer, byte-level BPE of 16,384 tokens trained on a part of it, is given to all. Each run is a process of
its own, bound to its cores; the order turns with each repeat. Counted is the time from when a process is ready
(imports, Ray's start; reported beside it) to when its shards stand. A peer that gives another number of tokens is void.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from orchestrator.data.tokens.train import train_bpe

sys.path.insert(0, str(Path(__file__).parent))
from loader import ENVIRONMENT, peers_python, publish

ROOT = Path(__file__).parents[1]
VOCABULARY = 16_384
BLOCK_TOKENS = 1024
TRAIN_BYTES = 20_000_000
SPECIAL = "<|endoftext|>"
LIMIT_S = 600
CORPUS_FILES = 16
PEERS = ("datasets", "datasets-best", "ray-data", "datatrove")
OURS = {
    "ours": "clean: {unicode: off, control_characters: false}\n"
    "  deduplicate: {exact: false, near: off}\n  privacy: {action: off}",
    "ours-everything": "clean: {unicode: nfc}",
}
JOB = """\
name: bench
data:
  sources: [{{path: "{corpus}/*.jsonl"}}]
  {settings}
  tokenizer: {{path: "{tokenizer}"}}
  split: {{validation: 0}}
"""


def corpus_texts(limit_bytes: int) -> Iterator[str]:
    """Source files of the library, then of the packages, each text once."""
    paths = sysconfig.get_paths()
    seen: set[int] = set()
    given = 0
    for root in (paths["stdlib"], paths["purelib"]):
        for path in sorted(Path(root).rglob("*.py")):
            if root == paths["stdlib"] and "site-packages" in path.parts:
                continue
            with contextlib.suppress(UnicodeDecodeError, OSError):
                text = path.read_text(encoding="utf-8")
                # Tokenizers differ in what they make of a special token in the text.
                if text.strip() and SPECIAL not in text and hash(text) not in seen:
                    seen.add(hash(text))
                    given += len(text.encode())
                    yield text
            if given >= limit_bytes:
                return


def write_corpus(folder: Path, limit_bytes: int) -> dict[str, Any]:
    texts = list(corpus_texts(limit_bytes))
    (folder / "corpus").mkdir()
    for i in range(CORPUS_FILES):  # some peers work on whole files
        lines = [json.dumps({"text": text}) + "\n" for text in texts[i::CORPUS_FILES]]
        (folder / "corpus" / f"{i:02}.jsonl").write_text("".join(lines), encoding="utf-8")
    sample, held = [], 0
    for text in texts[:: max(1, len(texts) // 4000)]:
        sample.append(text)
        held += len(text)
        if held > TRAIN_BYTES:
            break
    (folder / "tokenizer.json").write_text(train_bpe(sample, VOCABULARY), encoding="utf-8")
    return {"documents": len(texts), "bytes": sum(len(text.encode()) for text in texts)}


def run_ours(name: str, folder: Path, into: Path) -> tuple[float, float, int]:
    from orchestrator.cluster.connect import Session
    from orchestrator.job_file import load_job
    from orchestrator.run import prepare_only
    from orchestrator.store import Store

    job = into / "job.yaml"
    settings = {"corpus": folder / "corpus", "tokenizer": folder / "tokenizer.json", "settings": OURS[name]}
    job.write_text(JOB.format(**settings))
    began_at = time.perf_counter()
    with Session() as session:
        session.connect()
        ready_at = time.perf_counter()
        made = prepare_only(load_job(job), store=Store(into / "store"), session=session)
        done_at = time.perf_counter()
    return ready_at - began_at, done_at - ready_at, made["tokens"]


def run_datasets(name: str, folder: Path, into: Path) -> tuple[float, float, int]:
    """As its documentation has it: `map` of the tokenizer over batches, `map` into blocks, a process a core."""
    began_at = time.perf_counter()
    import numpy as np
    from datasets import load_dataset
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    cores = len(os.sched_getaffinity(0))
    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token=SPECIAL)
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def tokenise(rows: dict[str, list[str]]) -> dict[str, Any]:
        ids = fast(rows["text"], return_attention_mask=False, split_special_tokens=True)["input_ids"]
        return {"input_ids": [[*one, fast.eos_token_id] for one in ids]}

    def group(rows: dict[str, list[list[int]]]) -> dict[str, Any]:
        flat = [i for one in rows["input_ids"] for i in one]
        return {"input_ids": [flat[i : i + BLOCK_TOKENS] for i in range(0, len(flat), BLOCK_TOKENS)]}

    def both(rows: dict[str, list[str]]) -> dict[str, Any]:
        plain.encode_special_tokens = True
        encoded = plain.encode_batch_fast(rows["text"], add_special_tokens=False)
        flat = np.concatenate([np.array([*e.ids, 0], dtype=np.uint16) for e in encoded])
        return {"input_ids": [flat[i : i + BLOCK_TOKENS] for i in range(0, len(flat), BLOCK_TOKENS)]}

    ready_at = time.perf_counter()
    rows = load_dataset("json", data_dir=str(folder / "corpus"), split="train", cache_dir=str(into))
    options = {"batched": True, "num_proc": cores, "remove_columns": rows.column_names}
    if name == "datasets":
        rows = rows.map(tokenise, **options).map(group, batched=True, num_proc=cores)
    else:
        rows = rows.map(both, **options)
    done_at = time.perf_counter()
    tokens = int(sum(len(batch.column("input_ids").combine_chunks().values) for batch in [rows.data.table]))
    return ready_at - began_at, done_at - ready_at, tokens


def run_ray_data(_name: str, folder: Path, into: Path) -> tuple[float, float, int]:
    """`read_json`, `map_batches` of the tokenizer into blocks, `write_parquet`."""
    began_at = time.perf_counter()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray
    from tokenizers import Tokenizer

    cores = len(os.sched_getaffinity(0))
    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False, object_store_memory=1 << 30)

    class Tokenise:
        def __init__(self) -> None:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._tokenizer.encode_special_tokens = True

        def __call__(self, table: pa.Table) -> pa.Table:
            encoded = self._tokenizer.encode_batch_fast(table.column("text").to_pylist(), add_special_tokens=False)
            flat = np.concatenate([np.array([*e.ids, 0], dtype=np.uint16) for e in encoded])
            offsets = pa.array([*range(0, len(flat), BLOCK_TOKENS), len(flat)], pa.int32())
            return pa.table({"input_ids": pa.ListArray.from_arrays(offsets, pa.array(flat))})

    ready_at = time.perf_counter()
    # Actors that hold every core would wait for a reader for ever: each takes half of one.
    data = ray.data.read_json(str(folder / "corpus"), override_num_blocks=64, num_cpus=0.5)
    data.map_batches(Tokenise, batch_format="pyarrow", batch_size=256, concurrency=cores, num_cpus=0.5).write_parquet(
        str(into / "out"), ray_remote_args={"num_cpus": 0.5}
    )
    done_at = time.perf_counter()
    tokens = 0
    for path in (into / "out").glob("*.parquet"):
        tokens += len(pq.read_table(path).column("input_ids").combine_chunks().values)
    ray.shutdown()
    return ready_at - began_at, done_at - ready_at, tokens


def run_datatrove(_name: str, folder: Path, into: Path) -> tuple[float, float, int]:
    """`JsonlReader` and `DocumentTokenizer`, a task for each file, a worker a core."""
    began_at = time.perf_counter()
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    out = into / "tokens"
    tokenizer = DocumentTokenizer(str(out), str(folder / "tokenizer.json"), eos_token=SPECIAL, shuffle_documents=False)
    steps = [JsonlReader(str(folder / "corpus")), tokenizer]
    cores = len(os.sched_getaffinity(0))
    ready_at = time.perf_counter()
    LocalPipelineExecutor(steps, tasks=CORPUS_FILES, workers=cores, logging_dir=str(into / "logs")).run()
    done_at = time.perf_counter()
    return ready_at - began_at, done_at - ready_at, sum(p.stat().st_size for p in out.glob("*.ds")) // 2


RUNS = {"ray-data": run_ray_data, "datatrove": run_datatrove}


def run_child(name: str, folder: Path, cores: int) -> None:
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:cores]))
    run = run_ours if name in OURS else RUNS.get(name, run_datasets)
    with tempfile.TemporaryDirectory(prefix="slipway-bench-", dir="/tmp") as into:
        ready_s, seconds, tokens = run(name, folder, Path(into))
    sys.stdout.write("\n" + json.dumps({"ready_s": ready_s, "seconds": seconds, "tokens": tokens}) + "\n")


def measure(python: str, name: str, folder: Path, cores: int) -> dict[str, float] | None:
    """One run, with the most memory that its processes had together."""
    args = [python, __file__, "--child", name, str(folder), str(cores)]
    quiet = {
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "OMP_NUM_THREADS": "1",
    }
    env = {**os.environ, **quiet, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(child.pid, peak), daemon=True)
    watcher.start()
    try:
        out, err = child.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        out, err = "", "too slow"
        for process in (*psutil.Process(child.pid).children(recursive=True), child):
            process.kill()
        child.wait()
    if child.returncode:
        sys.stderr.write(f"{name} on {cores}: {err.strip().splitlines()[-1:]}\n")
        return None
    found: dict[str, float] = json.loads(out.strip().splitlines()[-1])
    return {**found, "peak_mb": peak[0] / 1e6}


def _watch(pid: int, peak: list[int]) -> None:
    while True:
        try:
            own = psutil.Process(pid)
            held = sum(p.memory_info().rss for p in (own, *own.children(recursive=True)))
        except psutil.Error:
            return
        peak[0] = max(peak[0], held)
        time.sleep(0.2)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        run_child(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus-mb", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cores", default="1,2")
    parser.add_argument("--only", default="")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT)
    options = parser.parse_args()
    names = options.only.split(",") if options.only else [*OURS, *PEERS]
    pythons = {n: sys.executable if n in OURS else peers_python(options.environment) for n in names}
    with tempfile.TemporaryDirectory(prefix="slipway-bench-", dir="/tmp") as folder:
        corpus = write_corpus(Path(folder), options.corpus_mb * 1_000_000)
        runs: dict[str, list[dict[str, float]]] = {}
        for cores in map(int, options.cores.split(",")):
            for i in range(options.repeats):
                for name in names if i % 2 == 0 else names[::-1]:
                    if found := measure(pythons[name], name, Path(folder), cores):
                        runs.setdefault(f"{name} on {cores}", []).append(found)
    publish("prepare", summary(corpus, runs))


def summary(corpus: dict[str, Any], runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    tokens = {run["tokens"] for name, found in runs.items() if name.startswith("ours on") for run in found}
    rows: dict[str, Any] = {}
    for name, found in runs.items():
        spans = sorted(run["seconds"] for run in found)
        same = {run["tokens"] for run in found} <= tokens or name.startswith("ours-everything")
        median = statistics.median(spans)
        rows[name] = {
            "mb_per_s": round(corpus["bytes"] / 1e6 / median, 2),
            "seconds": round(median, 2),
            "seconds_spread": [round(spans[0], 2), round(spans[-1], 2)],
            "ready_s": round(statistics.median(run["ready_s"] for run in found), 2),
            "peak_mb": round(max(run["peak_mb"] for run in found)),
            "runs": len(found),
            "tokens": found[0]["tokens"],
            "void": not same,
        }
    return {
        "benchmark": "C6",
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "corpus": corpus,
        "rows": rows,
    }


if __name__ == "__main__":
    main()
