"""What somebody writes who has no Slipway: a loop over DDP with a checkpoint every so many steps. A peer of `recovery`.

torchrun --standalone --nproc-per-node 2 --max-restarts 1000 benchmarks/peers/recovery_loop.py FOLDER EVERY_STEPS
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from model.config import HeadConfig, ModelConfig
from model.families import build

SHAPE: dict[str, Any] = {"layers": 4, "width": 256, "heads": 4, "context": 256}
VOCABULARY, ROWS = 4096, 8
"""Of the network; of one worker's batch."""
LOG, SAVED = "steps.jsonl", "checkpoint.pt"

Save = Callable[[int, dict[str, Any]], None]


def loop(log: Path, *, every_steps: int, saved: dict[str, Any] | None, save: Save) -> None:
    """Trains for ever, from what was saved; the process group is there already. `save` is called on every rank."""
    torch.set_num_threads(1)
    rank = torch.distributed.get_rank()
    shape = ModelConfig(**SHAPE, vocab_size=VOCABULARY, kv_heads=4, hidden=704, family="llama")
    network = build(shape, HeadConfig()).initialise(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.1)
    step = 0
    if saved is not None:
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    wrapped = DistributedDataParallel(network)
    with log.open("a", encoding="utf-8") as file:
        while True:
            began_at = time.perf_counter()
            step += 1
            _train(wrapped, optimizer, seed=2 * step + rank)
            if rank == 0:
                file.write(json.dumps({"train/step": step, "time/step_s": time.perf_counter() - began_at}) + "\n")
                file.flush()
            if step % every_steps == 0:
                save(step, {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step})


def _train(wrapped: torch.nn.Module, optimizer: torch.optim.Optimizer, *, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(VOCABULARY, (ROWS, SHAPE["context"] + 1), generator=random)
    with torch.autocast("cpu", torch.bfloat16):
        logits_BTV = wrapped(ids_BT[:, :-1])
    cross_entropy(logits_BTV.float().flatten(0, 1), ids_BT[:, 1:].flatten()).backward()
    torch.nn.utils.clip_grad_norm_(wrapped.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def main() -> None:
    folder, every_steps = Path(sys.argv[1]), int(sys.argv[2])
    torch.distributed.init_process_group("gloo")
    path = folder / SAVED

    def save(_step: int, state: dict[str, Any]) -> None:
        if torch.distributed.get_rank() == 0:
            torch.save(state, path.with_suffix(".new"))
            os.replace(path.with_suffix(".new"), path)

    saved = torch.load(path, weights_only=True) if path.is_file() else None
    loop(folder / LOG, every_steps=every_steps, saved=saved, save=save)


if __name__ == "__main__":
    main()
