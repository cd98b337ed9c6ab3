"""Networks of a user's own: rows for the examples, and checkpoints and exports of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from export_fixtures import FACTS
from safetensors.torch import save_file
from torch import Tensor, nn

from orchestrator.export.custom import write_custom_export
from orchestrator.export.module import describe, make_module
from orchestrator.job import JobSpec
from orchestrator.job_file import load_job
from orchestrator.store import commit, writing

ROOT = Path(__file__).parents[1]
ROWS, PAYMENTS = 6, 8


def job(name: str = "transactions", *sets: str) -> JobSpec:
    return load_job(ROOT / "jobs" / f"{name}.yaml", list(sets))


def payments(rows: int = ROWS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "amounts": torch.rand(rows, PAYMENTS, generator=generator) * 100,
        "merchants": torch.randint(0, 50, (rows, PAYMENTS), generator=generator),
        "hour": torch.randint(0, 24, (rows,), generator=generator),
        "fraud": torch.randint(0, 2, (rows,), generator=generator),
    }


def checkpoint(folder: Path, asked: JobSpec, rows: dict[str, Tensor], **description: Any) -> tuple[Path, nn.Module]:
    """A committed checkpoint as training leaves it, as far as an export reads it; and its network."""
    module = make_module(asked.model, seed=1).eval()
    low = asked.training.precision == "bf16"
    with torch.no_grad():
        floats = {k: t.bfloat16() if low and t.is_floating_point() else t for k, t in rows.items()}
        weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        found = (module.bfloat16() if low else module)(floats)["predictions"].float()
    module.float().load_state_dict(weights)
    with writing(folder) as tmp:
        save_file(weights, tmp / "model.safetensors")
        (tmp / "model.json").write_text(json.dumps({**describe(asked.model, module), **description}), encoding="utf-8")
        save_file({**rows, "trainer_logits": found.contiguous()}, tmp / "probe.safetensors")
        commit(tmp, folder, {"format": 1, "step": 20, "precision": asked.training.precision})
    return folder, module


def export(root: Path, *sets: str) -> Path:
    """A committed export of `jobs/transactions.yaml` with weights that nobody trained."""
    asked = job("transactions", *sets)
    made, _ = checkpoint(root / "step-00000020", asked, payments())
    return write_custom_export(job=asked, checkpoint=made, into=root / "export" / "step-00000020", facts=FACTS)
