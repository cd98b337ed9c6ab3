"""JobSpec: every field of a job file. Closed, frozen, free of torch and Ray.

`job_data.py`, `job_model.py` and `job_train.py` have those sections, `job_file.py` reads the YAML, `job_schema.py`
tells it to editors and docs.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from orchestrator.errors import JobError
from orchestrator.job_data import Data
from orchestrator.job_model import Model
from orchestrator.job_section import NotNegative, Positive, Section, SpanS
from orchestrator.job_train import Objective, Train, Workers

__all__ = ["JobSpec", "Model", "Train", "Workers"]

_OBJECTIVES: dict[str, tuple[str, str]] = {
    "causal-lm": ("gpt", "text"),
    "masked-lm": ("bert", "text"),
    "chat": ("gpt", "chat"),
    "preference": ("gpt", "preference"),
    "classification": ("bert", "classification"),
    "token-classification": ("bert", "token-classification"),
    "question-answering": ("bert", "question-answering"),
    "custom": ("custom", "columns"),
}
"""Objective -> the kind of model that learns it, and the kind of data that it is learned from."""


class Replicas(Section):
    """Copies of the model; their number follows the tokens in flight and the time that requests wait."""

    min: NotNegative = 1
    """0: none while nobody asks; the first request waits until one has started."""
    max: Positive = 1

    @model_validator(mode="after")
    def _ordered(self) -> Replicas:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Price(Section):
    """What a model's tokens cost, in any currency."""

    prompt_per_million: Annotated[float, Field(ge=0.0, lt=1e6)]
    completion_per_million: Annotated[float, Field(ge=0.0, lt=1e6)]


class Canary(Section):
    """How a version of a model that is served already is tried out; without it, it takes over once it is warm."""

    share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.05
    """Of the requests, those that it gets first, or gets a copy of."""
    for_s: SpanS = Field(120.0, alias="for")
    """Seconds, or a text such as 2m: how long it is watched before it takes over."""
    shadow: bool = False
    """Whether it gets copies of requests, and its answers are thrown away."""


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
    """Requests a replica works on at once; more wait, then get a 429."""
    cache_tokens: Positive | None = None
    """Keys and values that a replica keeps in memory; null: what its requests may need at most, up to 1 GiB."""
    int8: bool = False
    """Keep matrices in 8 bits beside bf16: faster where memory is slow, at some loss."""
    standby: bool = True
    """Have a process wait on each machine that serves, imports done: the next replica or gateway starts sooner."""
    engine: Literal["slipway", "vllm"] = "slipway"
    """What makes a decoder's tokens; vllm: vLLM, where you have installed it."""
    canary: Canary | None = None
    """How `slipway serve`, on a service that runs, and `--follow` bring another version; null: at once."""
    gate: str | None = None
    """What a version must fulfil to replace another: `validation_loss <= current + 0.01`, several joined by `and`."""
    accounts: str | None = None
    """Where keys and usage are kept: a URL or an SQLite file; null: SLIPWAY_ACCOUNTS, else this machine's own."""
    prices: dict[str, Price] = {}
    """By model; usage has no cost for a model that is not here."""
    store_prompts: bool = False
    """Keep prompts and answers, without personal data, so that feedback with consent can become training data."""
    probe_prompts: list[Annotated[str, Field(min_length=1)]] = ["The "]
    """Texts that `run` asks the fresh service to go on with, to classify or to embed, to show that it answers."""

    @model_validator(mode="after")
    def _suits_the_engine(self) -> Serve:
        if self.engine == "vllm" and self.int8:
            raise ValueError("serve.int8 goes with serve.engine slipway, not with vllm")
        return self


class WandB(Section):
    """Weights & Biases."""

    project: str = "slipway"
    entity: str | None = None
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online with a key, else offline. The environment's WANDB_MODE wins."""
    tags: list[str] = []
    tables: bool = True
    """Send tables of evaluations too: confusion, what a decoder writes, some questions and answers of the validation
    split; false: numbers alone."""


class Track(Section):
    """Where metrics go besides metrics.jsonl."""

    wandb: WandB = WandB()


class Cluster(Section):
    """What the planner cannot see, speed and price of the machines, and the queue. Changes nothing that is trained."""

    gpu_hour_price: Annotated[float, Field(ge=0.0)] | None = None
    """Price of one GPU for an hour, in any currency; null: the plan names no cost."""
    cpu_hour_price: Annotated[float, Field(ge=0.0)] | None = None
    """Price of one CPU core for an hour, for workers without GPUs."""
    worker_flops: Annotated[float, Field(gt=0.0)] | None = None
    """Peak FLOP/s of one worker in the job's precision; null: from a table of GPUs by name."""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Where runs wait for room on one cluster, higher ones go first. None that trains is ended for another."""


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
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _fits_together(self) -> JobSpec:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", self.name):
            raise ValueError(f"name {self.name!r} must be 1 to 63 letters, digits, dots, dashes or underscores")
        rows, tokens = self.model.vocab_size, self.data.tokenizer.vocab_size
        if rows is not None and self.data.tokenizer.train and rows < tokens:
            raise ValueError(f"model.vocab_size {rows} is below data.tokenizer.vocab_size {tokens}: it does not fit")
        if self.serve.engine == "vllm" and self.model.kind != "gpt":
            raise ValueError(f"serve.engine vllm goes with model.kind gpt, not with {self.model.kind}")
        if self.train is not None:
            self._training_fits(self.train)
        return self

    def _training_fits(self, train: Train) -> None:
        context, batch = self.model.context, train.batch_tokens
        if batch % context:
            nearest = max(context, round(batch / context) * context)
            raise ValueError(
                f"train.batch_tokens {batch} is not a multiple of model.context {context}; the nearest is {nearest}"
            )
        model, data = _OBJECTIVES[self.objective]
        if self.data.kind != data:
            raise ValueError(f"train.objective {self.objective} needs data.kind {data}, not {self.data.kind}")
        if self.model.kind != model:
            raise ValueError(f"train.objective {self.objective} needs model.kind {model}, not {self.model.kind}")
        if train.masking.next_sentence and not self.data.sentence_ends and self.data.sources:
            raise ValueError("train.masking.next_sentence needs data.sentence_ends: true, to know where sentences end")
        asked = {"lora": train.lora, "from": train.from_, "activation_checkpointing": train.activation_checkpointing}
        if self.model.kind == "custom" and (found := [f"train.{name}" for name, value in asked.items() if value]):
            raise ValueError(f"{', '.join(found)} goes with model.kind gpt and bert, not with custom")

    @property
    def objective(self) -> Objective:
        """What is learned: as said, or what the kinds of data and model stand for.

        Raises:
            ValueError: nothing is said, and the kinds do not go together.
        """
        if self.train is not None and self.train.objective is not None:
            return self.train.objective
        for name, kinds in _OBJECTIVES.items():
            if kinds == (self.model.kind, self.data.kind):
                return name  # type: ignore[return-value]
        fitting = [model for model, data in _OBJECTIVES.values() if data == self.data.kind]
        raise ValueError(
            f"data.kind {self.data.kind} is learned by model.kind {' or '.join(fitting)}, not {self.model.kind}"
        )

    @property
    def training(self) -> Train:
        """The `train` section.

        Raises:
            JobError: there is none.
        """
        if self.train is None:
            raise JobError(
                f"the job {self.name} has no `train` section: its data can be prepared, and nothing more",
                fix="use `slipway prepare`, or add `train: {steps: ..., batch_tokens: ...}`",
            )
        return self.train
