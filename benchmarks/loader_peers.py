"""The loaders of C5: how each one's copy of the corpus is written, and its batches from there.

Imports are inside the functions: each loader runs in a process, and the peers in an environment, of their own.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CONTEXT, ROWS, SHARDS = 1024, 64, 4
FACTOR = 40503
Batches = Iterator[tuple[Any, Any]]


def tokens(first: int, last: int) -> Any:
    import numpy as np

    return (np.arange(first, last, dtype=np.uint64) * np.uint64(FACTOR)).astype(np.uint16)


def rows(corpus_tokens: int, shard: int) -> Any:
    """A shard as fixed rows [N, T + 1], as the peers want them."""
    import numpy as np

    count = (corpus_tokens - 1) // CONTEXT
    first, last = count * shard // SHARDS, count * (shard + 1) // SHARDS
    flat = tokens(first * CONTEXT, last * CONTEXT + 1)
    return np.lib.stride_tricks.sliding_window_view(flat, CONTEXT + 1)[::CONTEXT]


def write_ours(folder: Path, corpus_tokens: int) -> None:
    from orchestrator.data.shards import write_shard

    cuts = [corpus_tokens * i // SHARDS for i in range(SHARDS + 1)]
    for i in range(SHARDS):
        write_shard(folder / f"{i}.arrow", [tokens(cuts[i], cuts[i + 1])])


def ours(folder: Path) -> Batches:
    from orchestrator.data.load.loader import TrainLoader
    from orchestrator.data.load.mixture import Part
    from orchestrator.objectives.causal_lm import TokenFeed

    parts = [Part("train", None, sorted(folder.glob("*.arrow")))]
    loader = TrainLoader(parts, context=CONTEXT, samples_per_step=ROWS, seed=1)
    feed, step = TokenFeed(loader, samples_per_step=ROWS), 0
    while step := step + 1:
        tensors = feed.read(step, 0, ROWS).tensors
        yield tensors["input_ids"], tensors["targets"]


def write_nanogpt(folder: Path, corpus_tokens: int) -> None:
    tokens(0, corpus_tokens).tofile(folder / "train.bin")


def nanogpt(folder: Path) -> Batches:
    """As nanoGPT's train.py describes it: the map is made anew for each batch, against a leak of its pages."""
    import numpy as np
    import torch

    while True:
        data = np.memmap(folder / "train.bin", dtype=np.uint16, mode="r")
        starts = torch.randint(len(data) - CONTEXT, (ROWS,)).tolist()
        inputs = [torch.from_numpy(data[i : i + CONTEXT].astype(np.int64)) for i in starts]
        targets = [torch.from_numpy(data[i + 1 : i + 1 + CONTEXT].astype(np.int64)) for i in starts]
        yield torch.stack(inputs), torch.stack(targets)


def write_datasets(folder: Path, corpus_tokens: int) -> None:
    import datasets
    import numpy as np
    import pyarrow as pa

    blocks = [np.ascontiguousarray(rows(corpus_tokens, i)) for i in range(SHARDS)]
    column = pa.chunked_array([pa.FixedSizeListArray.from_arrays(pa.array(b.reshape(-1)), CONTEXT + 1) for b in blocks])
    features = datasets.Features({"ids": datasets.Sequence(datasets.Value("uint16"), length=CONTEXT + 1)})
    table = pa.table({"ids": column})
    datasets.Dataset(datasets.table.InMemoryTable(table), info=datasets.DatasetInfo(features=features)).save_to_disk(
        folder / "hf", num_shards=SHARDS
    )


def datasets_numpy(folder: Path) -> Batches:
    return _datasets(folder, "numpy")


def datasets_torch(folder: Path) -> Batches:
    return _datasets(folder, "torch")


def _datasets(folder: Path, kind: str) -> Batches:
    import datasets
    import torch

    data = datasets.load_from_disk(str(folder / "hf")).shuffle(seed=1).with_format(kind)
    while True:
        for batch in data.iter(batch_size=ROWS, drop_last_batch=True):
            ids = torch.as_tensor(batch["ids"]).to(torch.int64)
            yield ids[:, :-1], ids[:, 1:]


def write_mosaic(folder: Path, corpus_tokens: int) -> None:
    from streaming import MDSWriter

    columns = {"ids": f"ndarray:uint16:{CONTEXT + 1}"}
    with MDSWriter(out=str(folder / "mds"), columns=columns, hashes=[], size_limit=1 << 26) as writer:
        for shard in range(SHARDS):
            for row in rows(corpus_tokens, shard):
                writer.write({"ids": row})


def mosaic(folder: Path) -> Batches:
    import numpy as np
    import torch
    from streaming import StreamingDataset

    def collate(samples: list[dict[str, Any]]) -> Any:
        return torch.from_numpy(np.stack([sample["ids"] for sample in samples]).astype(np.int64))

    data = StreamingDataset(local=str(folder / "mds"), shuffle=True, shuffle_seed=1, batch_size=ROWS)
    while True:
        for ids in torch.utils.data.DataLoader(data, batch_size=ROWS, drop_last=True, collate_fn=collate):
            yield ids[:, :-1], ids[:, 1:]


def write_ray(folder: Path, corpus_tokens: int) -> None:
    import numpy as np

    for i in range(SHARDS * 4):  # smaller blocks: a task a block
        block = rows(corpus_tokens, i // 4)
        np.save(folder / f"{i:02d}.npy", block[len(block) * (i % 4) // 4 : len(block) * (i % 4 + 1) // 4])


def ray_data(folder: Path) -> Batches:
    import numpy as np
    import ray
    import torch

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    data = ray.data.read_numpy(str(folder))
    while True:
        for batch in data.iter_batches(batch_size=ROWS, drop_last=True, local_shuffle_buffer_size=64 * ROWS):
            ids = torch.from_numpy(np.ascontiguousarray(batch["data"]).astype(np.int64))
            yield ids[:, :-1], ids[:, 1:]


LOADERS: dict[str, tuple[Callable[[Path, int], None], Callable[[Path], Batches], str]] = {
    "ours": (write_ours, ours, "a permutation of all rows"),
    "nanogpt": (write_nanogpt, nanogpt, "rows at random places"),
    "datasets-numpy": (write_datasets, datasets_numpy, "a permutation of all rows"),
    "datasets-torch": (write_datasets, datasets_torch, "a permutation of all rows"),
    "mosaic": (write_mosaic, mosaic, "a permutation in blocks of shards"),
    "ray": (write_ray, ray_data, "a buffer of 4096 rows"),
}


def stand_in_for_torchvision() -> None:
    """MosaicML imports it for pictures alone, and its wheels do not fit torch's CPU build."""
    for name in ("", ".transforms", ".transforms.functional", ".datasets"):
        module = types.ModuleType(f"torchvision{name}")
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        module.__dict__.update(to_tensor=None, VisionDataset=object)
        sys.modules[module.__name__] = module
