"""What every run of the benchmarks `training` and `scaling` shares: network, weights, samples, optimizer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.config import HeadConfig, ModelConfig
from model.families import build
from model.huggingface import to_hf_config, to_hf_state

SHAPES: dict[str, dict[str, Any]] = {
    "gpt": {"vocab_size": 4096, "layers": 6, "width": 320, "heads": 5, "kv_heads": 5, "hidden": 896, "context": 256},
    "bert": {"vocab_size": 4096, "layers": 6, "width": 320, "heads": 5, "kv_heads": 5, "hidden": 1280, "context": 256},
    "tiny": {"vocab_size": 64, "layers": 1, "width": 32, "heads": 2, "kv_heads": 2, "hidden": 64, "context": 16},
}
RATE, BETAS, CLIP = 1e-3, (0.9, 0.95), 1.0
MASKED_SHARE = 0.15


@dataclass(frozen=True)
class Case:
    """One run."""

    model: str
    precision: str
    steps: int
    folder: Path

    @property
    def config(self) -> ModelConfig:
        """The network's shape."""
        return ModelConfig(**SHAPES[self.model], family="bert" if self.model == "bert" else "llama")

    @property
    def head(self) -> HeadConfig:
        """What it is trained to say."""
        return HeadConfig("mlm") if self.model == "bert" else HeadConfig()

    @property
    def rows(self) -> int:
        """Of a batch."""
        return 1 if self.model == "tiny" else 8


@dataclass
class Result:
    """What a run gives."""

    losses: list[Any] = field(default_factory=list)
    ended_at: list[float] = field(default_factory=list)
    cpu_at: list[float] = field(default_factory=list)
    """CPU seconds of the process until then: what counts where others use the machine too."""

    def add(self, loss: Any) -> None:
        """A step has ended."""
        self.losses.append(loss)
        self.ended_at.append(time.perf_counter())
        self.cpu_at.append(time.process_time())


def network(case: Case) -> nn.Module:
    """Ours, with the weights that all begin with."""
    return build(case.config, case.head).initialise(0)


def hf_network(case: Case) -> Any:
    """The same network of transformers, with the same weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    data = to_hf_config(case.config, case.head, bos_token_id=None, eos_token_id=None, dtype="float32")
    settings = AutoConfig.for_model(data.pop("model_type"), **data)
    kind = AutoModelForMaskedLM if case.model == "bert" else AutoModelForCausalLM
    model = kind.from_config(settings)
    missing, extra = model.load_state_dict(
        to_hf_state(network(case).state_dict(), case.config, case.head), strict=False
    )
    if extra or any("rotary" not in name and "lm_head" not in name and "decoder" not in name for name in missing):
        raise ValueError(f"weights do not fit: {missing} {extra}")
    return model.train()


def samples(case: Case) -> list[tuple[Tensor, Tensor]]:
    """Of all steps: ids [T] and targets [T], -100 where nothing is to be said."""
    generator = torch.Generator().manual_seed(1)
    config = case.config
    # Numbers that are partly predictable, so that losses fall.
    drawn = torch.randint(0, config.vocab_size, (case.steps * case.rows, config.context + 1), generator=generator)
    drawn = drawn // 2 * (drawn % 3 != 0)
    if case.model != "bert":
        return [(row[:-1], row[1:]) for row in drawn]
    hidden = int(config.context * MASKED_SHARE)
    found = []
    for row in drawn[:, :-1]:
        places = torch.randperm(config.context, generator=generator)[:hidden].sort().values
        targets = torch.full_like(row, -100)
        targets[places] = row[places]
        found.append((row.index_fill(0, places, 3), targets))
    return found


class RowSet(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Samples as transformers wants them."""

    def __init__(self, case: Case) -> None:
        self._rows = samples(case)
        self._encoder = case.model == "bert"

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids_T, targets_T = self._rows[index]
        row = {"input_ids": ids_T, "labels": targets_T}
        return row if self._encoder else {**row, "shift_labels": targets_T}


def loader(case: Case) -> Any:
    """Batches in order."""
    return torch.utils.data.DataLoader(RowSet(case), batch_size=case.rows)


def adamw(model: nn.Module, *, fused: bool = True) -> torch.optim.Optimizer:
    """The optimizer of those that are given one."""
    return torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, weight_decay=0.0, fused=fused)
