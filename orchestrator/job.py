"""JobSpec: every field of a job file. Closed, frozen, free of torch and Ray.

`job_data.py` has the data section, `job_file.py` reads the YAML, `job_schema.py` tells it to editors and docs.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from model.config import ModelConfig, default_hidden
from orchestrator.errors import JobError
from orchestrator.job_data import MIN_BYTE_LEVEL_VOCAB, Data
from orchestrator.job_section import Fraction, NotNegative, Positive, Section


class Model(Section):
    """The network; sizes that follow from others are derived unless given."""

    kind: Literal["gpt"] = "gpt"
    layers: Positive = 4
    width: Positive = 256
    heads: Positive = 4
    kv_heads: Positive | None = None
    """Key/value heads (grouped-query attention); null: as many as heads."""
    hidden: Positive | None = None
    """Width of the SwiGLU layer; null: 8/3 of the width, rounded up to 64."""
    context: Annotated[int, Field(ge=2)] = 256
    """Tokens in a sample, and the most that the served model attends to."""
    vocab_size: Positive | None = None
    """Rows of the token table; null: the tokenizer's size."""
    dropout: Fraction = 0.0
    rope_theta: float = Field(default=10000.0, gt=0.0)
    norm_eps: float = Field(default=1e-5, gt=0.0)
    tie_embeddings: bool = True

    @model_validator(mode="after")
    def _makes_a_model(self) -> Model:
        self.config(vocab_size=self.vocab_size or MIN_BYTE_LEVEL_VOCAB)
        return self

    def config(self, vocab_size: int) -> ModelConfig:
        """The network's configuration for a tokenizer of `vocab_size`.

        Raises:
            ValueError: heads do not divide the width, or the like.
        """
        return ModelConfig(
            vocab_size=self.vocab_size or vocab_size,
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            kv_heads=self.kv_heads or self.heads,
            hidden=self.hidden or default_hidden(self.width),
            context=self.context,
            rope_theta=self.rope_theta,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            tie_embeddings=self.tie_embeddings,
        )


class Optimizer(Section):
    """AdamW (Loshchilov and Hutter 2019); norms are spared the weight decay."""

    name: Literal["adamw"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0.0)
    weight_decay: float = Field(default=0.1, ge=0.0)
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    beta2: float = Field(default=0.95, ge=0.0, lt=1.0)
    eps: float = Field(default=1e-8, gt=0.0)


class Schedule(Section):
    """Learning rate over steps: linear warm-up, then constant or a half cosine down to `final_fraction`."""

    name: Literal["cosine", "constant"] = "cosine"
    warmup_steps: NotNegative = 0
    final_fraction: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of the learning rate at the last step (cosine)."""


class Zero(Section):
    """DeepSpeed ZeRO (Rajbhandari et al. 2020)."""

    stage: Annotated[int, Field(ge=0, le=3)] = 2
    """0 nothing is sharded, 1 optimizer state, 2 and gradients, 3 and parameters."""


class Workers(Section):
    """Training processes: as many as fit at the start, from `min` up to `max`."""

    min: Positive = 1
    max: Positive = 1
    cpus: Positive = 1
    """CPU cores of one worker; its threads are pinned to that number."""
    gpus: NotNegative = 0

    @model_validator(mode="before")
    @classmethod
    def _max_follows_min(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("min"), int) and data.get("max") is None:
            return {**data, "max": data["min"]}
        return data

    @model_validator(mode="after")
    def _ordered(self) -> Workers:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Checkpoint(Section):
    """When to save, and how many to keep. The last step is always saved."""

    every_steps: Positive = 100
    keep_last: Positive = 2


class Evaluate(Section):
    """Loss on the validation split, during training and at its end."""

    every_steps: Positive | None = None
    """null: only at the end."""
    max_tokens: Positive | None = None
    """Tokens of the split to evaluate; null: all of it."""


class Train(Section):
    """Optimisation."""

    objective: Literal["causal-lm"] = "causal-lm"
    steps: Positive
    batch_tokens: Positive
    """Target tokens of one step over all workers: a multiple of the context, the same on any number of workers."""
    micro_batch: Positive | None = None
    """Samples in one forward pass of one worker; null: chosen by the plan."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    gradient_clip: float = Field(default=1.0, ge=0.0)
    """Largest norm of the gradient; 0: not clipped."""
    precision: Literal["fp32", "bf16"] = "bf16"
    zero: Zero = Zero()
    seed: NotNegative = 0
    workers: Workers = Workers()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()
    log_every_steps: Positive = 10
    """Steps between two lines of a log; metrics.jsonl has every step."""


class Replicas(Section):
    """Copies of the model; Ray Serve scales between `min` and `max` on the requests under way."""

    min: Positive = 1
    max: Positive = 1

    @model_validator(mode="after")
    def _ordered(self) -> Replicas:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Serve(Section):
    """The service."""

    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    replicas: Replicas = Replicas()
    cpus: Positive = 1
    """CPU cores of one replica."""
    gpus: NotNegative = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    """The type the weights are served in."""
    max_tokens: Positive | None = None
    """Largest completion that a request may ask for; null: what the context holds."""
    max_ongoing_requests: Positive = 16
    """Requests a replica works on at once; more wait, then get a 503."""
    probe_prompts: list[Annotated[str, Field(min_length=1)]] = ["The "]
    """Prompts that `run` asks the fresh service, to show that it answers."""


class WandB(Section):
    """Weights & Biases."""

    project: str = "slipway"
    entity: str | None = None
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online with a key, else offline. The environment's WANDB_MODE wins."""
    tags: list[str] = []


class Track(Section):
    """Where metrics go besides metrics.jsonl."""

    wandb: WandB = WandB()


class JobSpec(Section):
    """One job file: what to read, what to train, how to serve it."""

    name: str
    """Letters, digits, dots, dashes; names the dataset, the run and the served model."""
    data: Data
    model: Model = Model()
    train: Train | None = None
    """Without it the job's data can be prepared, and nothing more."""
    serve: Serve = Serve()
    track: Track = Track()

    @model_validator(mode="after")
    def _fits_together(self) -> JobSpec:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", self.name):
            raise ValueError(f"name {self.name!r} must be 1 to 63 letters, digits, dots, dashes or underscores")
        self._data_fits()
        context = self.model.context
        if self.train is not None and (batch := self.train.batch_tokens) % context:
            nearest = max(context, round(batch / context) * context)
            raise ValueError(
                f"train.batch_tokens {batch} is not a multiple of model.context {context}; the nearest is {nearest}"
            )
        return self

    def _data_fits(self) -> None:
        kind = self.data.kind
        if self.train is not None and kind != "text":
            raise ValueError(f"train.objective {self.train.objective} needs data.kind text, not {kind}")
        rows, tokens = self.model.vocab_size, self.data.tokenizer.vocab_size
        if rows is not None and self.data.tokenizer.train and rows < tokens:
            raise ValueError(f"model.vocab_size {rows} is below data.tokenizer.vocab_size {tokens}: it does not fit")

    @property
    def training(self) -> Train:
        """The `train` section.

        Raises:
            JobError: there is none.
        """
        if self.train is None:
            raise JobError(
                f"the job {self.name} has no `train` section: its data can be prepared, and nothing more",
                fix="use `slipway prepare`"
                + (", or add `train: {steps: ..., batch_tokens: ...}`" if self.data.kind == "text" else ""),
            )
        return self.train
