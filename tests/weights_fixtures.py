"""Folders that weights come from: a run in a store, and somebody else's Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from export_fixtures import LM, SHAPES, TINY, tiny_checkpoint, tiny_dataset, tiny_model
from safetensors.torch import save_file

from model.config import HeadConfig, ModelConfig
from model.huggingface import to_hf_config, to_hf_state


def make_run(root: Path, *, steps: tuple[int, ...] = (20,), family: str = "llama", head: HeadConfig = LM) -> Path:
    """A run in a store, as far as another one reads it."""
    if not (root / "datasets" / "tiny-4567").exists():
        tiny_dataset(root / "datasets" / "tiny-4567", kind="wordpiece" if family == "bert" else "bpe")
    run = root / "runs" / "tiny-0123"
    (run / "checkpoints").mkdir(parents=True)
    (run / "job.yaml").write_text("name: tiny\n")
    (run / "run.json").write_text(json.dumps({"dataset": "../../datasets/tiny-4567"}))
    for step in steps:
        folder = tiny_checkpoint(run / "checkpoints" / f"step-{step:08d}", config=SHAPES[family], head=head)
        (folder / "progress.json").write_text(json.dumps({"step": step, "samples": 1, "tokens": 1}))
    return run


def make_hf(folder: Path, *, config: ModelConfig = TINY, head: HeadConfig = LM, shards: int = 1) -> Path:
    """Somebody else's folder: no manifest; the weights in one file or in several."""
    folder.mkdir(parents=True)
    kind = "bpe" if config.is_decoder else "wordpiece"
    shutil.copy(tiny_dataset(folder.parent / f"tokenizer-of-{folder.name}", kind=kind) / "tokenizer.json", folder)
    about = to_hf_config(config, head, bos_token_id=None, eos_token_id=0, dtype="float32")
    (folder / "config.json").write_text(json.dumps(about))
    state = {n: t.contiguous() for n, t in to_hf_state(tiny_model(config, head).state_dict(), config, head).items()}
    names = sorted(state)
    if shards == 1:
        save_file(state, folder / "model.safetensors")
        return folder
    places = {name: f"model-{at % shards + 1:05d}-of-{shards:05d}.safetensors" for at, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: state[name] for name in names if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder
