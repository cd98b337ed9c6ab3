"""How each library of the benchmark `training` trains one network, on the same batches from the same weights.

Every run gives the loss of each step and the moment at which the step ended. AdamW (1e-3, 0.9, 0.95, no decay), clipped
at 1; all else as the library's documentation has it. Ours is the loop of the worker with `metrics.jsonl` and W&B
offline; `ours-engine` is its engine in a bare loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from training_case import BETAS, CLIP, RATE, Case, Result, RowSet, adamw, hf_network, loader
from training_ours import ours, ours_engine


def plain(case: Case, *, compiled: bool = False) -> Result:
    """A loop in the manner of nanoGPT's `train.py`."""
    model = hf_network(case)
    optimizer, result = adamw(model), Result()
    forward = torch.compile(model) if compiled else model
    batches = list(loader(case))
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bf16"):
            loss = forward(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        result.add(loss.item())
    return result


def hf_trainer(case: Case, *, compiled: bool = False) -> Result:
    """`transformers.Trainer`."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    result = Result()

    class Recorded(Trainer):  # type: ignore[misc]
        def compute_loss(self, *args: Any, **settings: Any) -> Any:
            found = super().compute_loss(*args, **settings)
            self.last = found.detach()
            return found

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            result.add(trainer.last)

    arguments = TrainingArguments(
        output_dir=str(case.folder),
        max_steps=case.steps,
        per_device_train_batch_size=case.rows,
        learning_rate=RATE,
        adam_beta2=BETAS[1],
        lr_scheduler_type="constant",
        bf16=case.precision == "bf16",
        use_cpu=True,
        torch_compile=compiled,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Recorded(model=hf_network(case), args=arguments, train_dataset=RowSet(case), callbacks=[Clock()])
    trainer.train()
    return result


def lightning(case: Case) -> Result:
    """`lightning.pytorch.Trainer`."""
    import pytorch_lightning as pl

    result = Result()

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = hf_network(case)

        def training_step(self, batch: Any, _: int) -> Any:
            return self.network(**batch).loss

        def on_train_batch_end(self, outputs: Any, *_: Any) -> None:
            result.add(outputs["loss"].detach())

        def configure_optimizers(self) -> Any:
            return adamw(self.network, fused=False)  # it refuses to clip for a fused one

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    trainer = pl.Trainer(
        accelerator="cpu",
        precision="bf16-mixed" if case.precision == "bf16" else "32-true",
        max_steps=case.steps,
        gradient_clip_val=CLIP,
        default_root_dir=str(case.folder),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), loader(case))
    return result


def accelerate(case: Case) -> Result:
    """`accelerate.Accelerator` around a plain loop."""
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision="bf16" if case.precision == "bf16" else "no", cpu=True)
    model = hf_network(case)
    model, optimizer, batches = accelerator.prepare(model, adamw(model), loader(case))
    result = Result()
    for batch in batches:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
        result.add(loss.item())
    return result


RUNS: dict[str, Callable[[Case], Result]] = {
    "ours": ours,
    "ours-compiled": lambda case: ours(case, compiled=True),
    "ours-untracked": lambda case: ours(case, tracked=False),
    "ours-engine": ours_engine,
    "plain": plain,
    "plain-compiled": lambda case: plain(case, compiled=True),
    "hf-trainer": hf_trainer,
    "hf-trainer-compiled": lambda case: hf_trainer(case, compiled=True),
    "lightning": lightning,
    "accelerate": accelerate,
}
