"""What near-duplicate search costs over 1,000, 10,000 and 100,000 documents, and what it finds; one process.

    python benchmarks/near_duplicates.py [--documents 1000 10000 100000] [--peer-up-to 10000]

Documents of 200 words from a Zipf vocabulary; one in ten is a copy of an earlier one with up to 12 words changed. Ours:
words, shingles, signatures, bands, candidates, exact verification (sets of shingles made again from the text, as the
pipeline does), and what goes. Beside it datasketch's MinHash and MinHashLSH, with as many values and the same words and
shingles; it compares nothing exactly, so its candidates are verified by ours, outside of its time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from orchestrator.data.refine.minhash import NUM_VALUES, band_keys, choose_bands, shingle_set, signature
from orchestrator.data.refine.near import Pairs, bucket_pairs, merge_pairs, removed_by, verify
from orchestrator.data.refine.words import split_words

ROOT = Path(__file__).parents[1]
WORDS, SHINGLE_WORDS, SIMILARITY, MOST_EDITS = 200, 5, 0.8, 12
VOCABULARY = 200_000


class Stages(dict[str, float]):
    """Seconds by stage."""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        began_at = time.perf_counter()
        yield
        self[name] = round(self.get(name, 0.0) + time.perf_counter() - began_at, 3)


def generate(count: int) -> tuple[list[str], Pairs]:
    """Texts, and the pairs (original, copy)."""
    rng = np.random.default_rng(count)
    vocabulary = np.array([np.base_repr(n * 2_654_435_761 % (1 << 32), 36).lower() for n in range(VOCABULARY)], object)
    ids = np.minimum(rng.zipf(1.2, (count, WORDS)), VOCABULARY) - 1
    copies = np.flatnonzero(rng.random(count) < 0.1)
    copies = copies[copies > 0]
    originals = (rng.random(copies.size) * copies).astype(np.int64)
    for original, copy in zip(originals.tolist(), copies.tolist(), strict=True):
        ids[copy] = ids[original]
        places = rng.integers(0, WORDS, rng.integers(0, MOST_EDITS + 1))
        ids[copy, places] = rng.integers(0, VOCABULARY, places.size)
    return [" ".join(row) for row in vocabulary[ids]], np.stack((originals, copies), axis=1)


def ours(texts: list[str]) -> tuple[Stages, Pairs, int]:
    """Seconds by stage, verified pairs, and how many documents go."""
    stages = Stages()
    with stages.timed("signatures"):
        signatures = np.stack([signature(text, shingle_words=SHINGLE_WORDS) for text in texts])
    with stages.timed("candidates"):
        bands, rows = choose_bands(SIMILARITY)
        keys = band_keys(signatures, bands, rows)
        documents = np.arange(len(texts))
        pairs = merge_pairs(bucket_pairs(keys[:, band], documents) for band in range(bands))
    with stages.timed("verification"):
        pairs = pairs[verify(pairs, lambda i: shingle_set(texts[i], SHINGLE_WORDS), SIMILARITY)]
    with stages.timed("removal"):
        removed, _ = removed_by(pairs)
    return stages, pairs, len(removed)


def peer(texts: list[str]) -> tuple[Stages, Pairs]:
    """Seconds by stage, and candidate pairs."""
    from datasketch import MinHash, MinHashLSH  # for this comparison only

    stages, found = Stages(), []
    with stages.timed("signatures"):
        sketches = []
        for text in texts:
            words = split_words(text)
            sketch = MinHash(num_perm=NUM_VALUES)
            shingles = {" ".join(words[i : i + SHINGLE_WORDS]).encode() for i in range(len(words) - SHINGLE_WORDS + 1)}
            sketch.update_batch(shingles)
            sketches.append(sketch)
    with stages.timed("candidates"):
        index = MinHashLSH(threshold=SIMILARITY, num_perm=NUM_VALUES)
        for i, sketch in enumerate(sketches):
            found += [(j, i) for j in index.query(sketch)]
            index.insert(i, sketch)
    return stages, np.array(found, np.int64).reshape(-1, 2)


def share_found(pairs: Pairs, true: Pairs) -> float:
    known = set(map(tuple, pairs.tolist()))
    return round(sum(tuple(pair) in known for pair in true.tolist()) / max(1, len(true)), 4)


def measure(count: int, repeats: int, with_peer: bool) -> dict[str, Any]:
    texts, planted = generate(count)
    text_bytes = sum(map(len, texts))

    def alike(pairs: Pairs) -> Pairs:
        return pairs[verify(pairs, lambda i: shingle_set(texts[i], SHINGLE_WORDS), SIMILARITY)]

    true = alike(planted)
    ours(texts[:100])  # the tables of the first call
    runs = [ours(texts) for _ in range(repeats)]
    totals = [sum(stages.values()) for stages, _, _ in runs]
    total_s = statistics.median(totals)
    result: dict[str, Any] = {
        "documents": count,
        "text_mb": round(text_bytes / 1e6, 2),
        "planted_pairs": len(planted),
        "planted_pairs_alike": len(true),
        "slipway": {
            "total_s": [round(total, 3) for total in totals],
            "stages_s": runs[-1][0],
            "documents_per_s": round(count / total_s),
            "mb_per_s": round(text_bytes / 1e6 / total_s, 2),
            "pairs": len(runs[-1][1]),
            "removed": runs[-1][2],
            "recall": share_found(runs[-1][1], true),
        },
    }
    if with_peer:
        stages, candidates = peer(texts)
        pairs, seconds = alike(candidates), sum(stages.values())
        result["datasketch"] = {
            "total_s": round(seconds, 3),
            "stages_s": stages,
            "documents_per_s": round(count / seconds),
            "mb_per_s": round(text_bytes / 1e6 / seconds, 2),
            "candidates": len(candidates),
            "pairs": len(pairs),
            "recall": share_found(pairs, true),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--repeats", type=int, default=3, help="of up to 10,000 documents; more run once")
    parser.add_argument("--peer-up-to", type=int, default=10_000, help="datasketch is left out above it")
    asked = parser.parse_args()
    result = {
        "benchmark": "near-duplicates",
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}; one process",
        "versions": {name: version(name) for name in ("numpy", "xxhash", "datasketch")},
        "settings": {"similarity": SIMILARITY, "shingle_words": SHINGLE_WORDS, "bands_rows": choose_bands(SIMILARITY)},
        "sizes": [
            measure(n, asked.repeats if n <= 10_000 else 1, with_peer=n <= asked.peer_up_to) for n in asked.documents
        ],
    }
    target = ROOT / "benchmarks" / "results" / "near_duplicates.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
