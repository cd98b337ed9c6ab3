"""The `train` section of a job: what is learned, how, and on how many workers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from orchestrator.job_section import Fraction, NotNegative, Off, Positive, Section, off

Objective = Literal[
    "causal-lm",
    "masked-lm",
    "chat",
    "classification",
    "token-classification",
    "question-answering",
    "preference",
    "custom",
]


class Optimizer(Section):
    """How gradients become updates; norms and biases are spared the weight decay."""

    name: Literal["adamw", "sgd", "adagrad", "lion", "muon"] = "adamw"
    """AdamW (Loshchilov and Hutter 2019), SGD with momentum, Adagrad (Duchi et al. 2011), Lion (Chen et al. 2023), or
    Muon (Jordan et al. 2024) for the matrices of the blocks, beside AdamW for the rest."""
    learning_rate: float = Field(default=1e-3, gt=0.0)
    weight_decay: float = Field(default=0.1, ge=0.0)
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    beta2: float = Field(default=0.95, ge=0.0, lt=1.0)
    eps: float = Field(default=1e-8, gt=0.0)
    momentum: Fraction = 0.9
    """sgd and muon: share of the step before that is kept."""


class Schedule(Section):
    """Learning rate over steps: linear warm-up, then what `name` says, down to `final_fraction` of the highest."""

    name: Literal["cosine", "linear", "constant", "inverse-sqrt", "wsd"] = "cosine"
    warmup_steps: NotNegative = 0
    final_fraction: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of the learning rate at the last step (cosine, linear, wsd)."""
    decay_steps: Positive | None = None
    """wsd: steps of the decay at the end; null: a fifth of the run."""


class Offload(Section):
    """Where ZeRO keeps what a GPU has no room for."""

    optimizer: Annotated[Off | Literal["cpu", "nvme"], BeforeValidator(off)] = "off"
    """Optimizer state and its update: stages 1 to 3 on the CPU, stage 3 on NVMe."""
    parameters: Annotated[Off | Literal["cpu", "nvme"], BeforeValidator(off)] = "off"
    """Parameters between their uses: stage 3."""
    nvme_path: str | None = None
    """A folder on a local NVMe disk, the same on every node."""

    @model_validator(mode="after")
    def _has_a_place(self) -> Offload:
        if "nvme" in (self.optimizer, self.parameters) and not self.nvme_path:
            raise ValueError("nvme_path is missing: nvme needs a folder on a local disk")
        return self


class Zero(Section):
    """DeepSpeed ZeRO (Rajbhandari et al. 2020)."""

    stage: Annotated[int, Field(ge=0, le=3)] | Literal["auto"] = 2
    """0 nothing is sharded, 1 optimizer state, 2 and gradients, 3 and parameters; `auto`: the lowest that fits."""
    offload: Offload = Offload()

    @model_validator(mode="after")
    def _can_offload(self) -> Zero:
        if self.stage == "auto":
            return self
        if self.offload.optimizer != "off" and self.stage < (3 if self.offload.optimizer == "nvme" else 1):
            raise ValueError(f"offload.optimizer {self.offload.optimizer} does not go with stage {self.stage}")
        if self.offload.parameters != "off" and self.stage < 3:
            raise ValueError(f"offload.parameters {self.offload.parameters} needs stage 3, not {self.stage}")
        return self


class Workers(Section):
    """Training processes: as many as fit, from `min` up to `max`; fewer when a machine goes, more when one comes."""

    min: Positive = 1
    max: Positive = 1
    cpus: Positive = 1
    """CPU cores of one worker; its threads are pinned to that number."""
    gpus: NotNegative = 0
    wait_s: NotNegative = 600
    """How long an attempt waits for machines that are missing for `min` workers before the run stops. For those that
    others hold, or that an autoscaler is to start, it waits in the queue, without an end."""
    grow_after_s: NotNegative = 300
    """How long an attempt trains before it is ended to go on with more workers, where that pays."""
    standby: bool = True
    """Have as many processes wait, imports done, as train: a failure then costs seconds less; up to 0.5 GB each."""

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


Seconds = Annotated[float, Field(gt=0.0)]


class Checkpoint(Section):
    """When to save, and how many to keep. The last step is always saved."""

    every_steps: Positive | None = 100
    """null: time alone decides, which is so too where only `every_s` is given."""
    every_s: Seconds | Literal["auto"] | None = None
    """Seconds between two checkpoints, too; `auto`: what wastes the least by what a checkpoint costs this run and how
    often it fails (Young 1974, Daly 2006)."""
    keep_last: Positive = 2
    keep_every_steps: Positive | None = None
    """Of a step that is a multiple of this, the checkpoint stays for good; null: of none."""

    copy_to: Annotated[str, Field(pattern=r"^(s3|gs)://[^/]+")] | None = None
    """An object store, such as `s3://bucket/runs`, that has a copy of each checkpoint that is kept: a machine with an
    empty disk goes on from there. Credentials come from the environment."""

    @model_validator(mode="before")
    @classmethod
    def _time_may_decide(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("every_s") is not None and "every_steps" not in data:
            return {**data, "every_steps": None}
        return data


class EarlyStopping(Section):
    """End the run when the metric of `evaluate.best` has not become better for so long."""

    patience: Positive = 3
    """Evaluations without a better one."""
    min_change: float = Field(default=0.0, ge=0.0)
    """What counts as better, at least."""


Budget = NotNegative | Literal["unlimited"]
"""Times that a class of failures is tried again without a new checkpoint in between."""


class Retries(Section):
    """How often each class of failures is tried again; a new checkpoint gives all of them anew."""

    preemption: Budget = "unlimited"
    """The machine was taken back."""
    node: Budget = 3
    """A machine was lost."""
    worker: Budget = 3
    """A worker was killed, or crashed."""
    out_of_memory: Budget = "unlimited"
    """Each time with half the micro-batch, which ends at one sample."""
    hang: Budget = 2
    """A worker made no progress: see `train.watchdog`."""
    storage: Budget = 2
    """Writing or reading failed, a full disk included."""
    control_plane: Budget = 10
    """Ray itself failed, or found no place for the workers."""
    tracker: Budget = 3
    """W&B. Its failures end no training by themselves."""


class Watchdog(Section):
    """After how long without progress a worker hangs. It leaves stacks, and the run begins again."""

    step_s: Seconds | None = None
    """null: 10 times the median of the last steps, 30 s at least."""
    setup_s: Seconds | None = None
    """Everything up to the end of an attempt's first step; null: 1800."""
    checkpoint_s: Seconds | None = None
    """null: 1800."""
    evaluation_s: Seconds | None = None
    """null: 3600, or 10 times the longest evaluation of the attempt if that is more."""


class Guard(Section):
    """What is done about steps whose numbers go wrong, before their update: see docs/failures.md."""

    non_finite: Literal["stop", "skip", "rollback"] = "stop"
    """The loss or the norm of the gradient is no finite number. skip: the update is left out; rollback: the run goes on
    from its newest checkpoint without the batches that led here; stop: it ends."""
    spike: Annotated[Off | Literal["warn", "skip", "rollback"], BeforeValidator(off)] = "warn"
    """The same of a loss or norm far above the last ones; warn: it is told."""
    z: float = Field(default=12.0, gt=0.0)
    """What is far: deviations above the median of the last steps, by their median deviation, at least a twentieth of
    the loss; of the norm by its logarithm."""
    window_steps: Annotated[int, Field(ge=4)] = 128
    """Steps that a spike is measured by; the first half of as many is not judged."""
    skip_batches: Positive = 200
    """rollback: batches that are left out after the checkpoint, or as many as hold the wrong one."""
    most: NotNegative = 10
    """Skips and rollbacks of a run; then it stops."""
    replicas_every_steps: Positive | None = 100
    """How often, and before each checkpoint, the workers compare the weights that they hold alike; null: never."""


class Evaluate(Section):
    """Scores on the validation split, during training and at its end."""

    every_steps: Positive | None = None
    """null: only at the end."""
    max_tokens: Positive | None = None
    """Tokens of the split to evaluate; null: all of it."""
    best: str | None = None
    """The metric, such as `loss` or `macro_f1`, whose best checkpoint is kept and exported; null: the last one is."""
    early_stopping: EarlyStopping | None = None
    """null: all steps are made."""

    @model_validator(mode="after")
    def _knows_what_is_best(self) -> Evaluate:
        if self.early_stopping and not (self.best and self.every_steps):
            raise ValueError("early_stopping needs evaluate.best, a metric, and evaluate.every_steps")
        return self


class Masking(Section):
    """masked-lm: what is hidden (Devlin et al. 2018)."""

    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    whole_words: bool = True
    """Words are hidden whole, not token by token."""
    next_sentence: bool = False
    """Pairs of sentences, and whether the second follows the first: BERT's recipe; without it RoBERTa's."""
    frequency_bias: bool = False
    """Begin the head's bias at the logarithm of how often each token occurs: the network need not learn that first."""


class Lora(Section):
    """Train low-rank updates of the matrices instead of these (Hu et al. 2021); the export has them merged."""

    rank: Positive = 8
    alpha: float = Field(default=16.0, gt=0.0)
    """The update is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    targets: list[str] = []
    """Names of the linear layers, such as `q` and `v`; empty: all in the blocks. An encoder's head learns besides."""


class Preference(Section):
    """preference: direct preference optimisation (Rafailov et al. 2023)."""

    beta: float = Field(default=0.1, gt=0.0)
    """How strongly the model is held to where it began."""


class Train(Section):
    """Optimisation."""

    objective: Objective | None = None
    """What is learned; null: what `data.kind` and `model.kind` stand for: of text causal-lm for gpt, masked-lm for
    bert."""
    from_: str | None = Field(default=None, alias="from")
    """Where the weights come from: a run (its newest checkpoint), an export, or a Hugging Face folder; null: they are
    drawn."""
    lora: Lora | None = None
    """null: all weights are trained."""
    steps: Positive
    batch_tokens: Positive
    """Target tokens of one step over all workers: a multiple of the context, the same on any number of workers. Divided
    by the context it is the number of samples, of labelled rows too."""
    micro_batch: Positive | None = None
    """Samples in one forward pass of one worker; null: chosen by the plan, and halved where memory runs out."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    gradient_clip: float = Field(default=1.0, ge=0.0)
    """Largest norm of the gradient; 0: not clipped."""
    label_smoothing: Fraction = 0.0
    """Share of the target that goes to all classes alike (Szegedy et al. 2016)."""
    masking: Masking = Masking()
    preference: Preference = Preference()
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Decay of a moving average of the weights, which is what is evaluated and exported; null: none."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    zero: Zero = Zero()
    engine: Literal["auto", "deepspeed", "torch"] = "auto"
    """`torch` does stage 0 without DeepSpeed's hooks; auto: it, where the stage is 0."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more time."""
    compile: bool = False
    """`torch.compile` of the network and its loss: worth its minute of start-up in longer runs on GPUs."""
    seed: NotNegative = 0
    workers: Workers = Workers()
    checkpoint: Checkpoint = Checkpoint()
    retries: Retries = Retries()
    watchdog: Watchdog = Watchdog()
    guard: Guard = Guard()
    evaluate: Evaluate = Evaluate()
    log_every_steps: Positive = 10
    """Steps between two lines of a log; metrics.jsonl has every step."""

    @model_validator(mode="after")
    def _fits_together(self) -> Train:
        if self.precision == "fp16" and not self.workers.gpus:
            raise ValueError("precision fp16 needs GPUs (workers.gpus); on a CPU use bf16")
        if self.engine == "torch" and self.zero.stage not in (0, "auto"):
            raise ValueError(f"engine torch shards nothing: zero.stage {self.zero.stage} needs deepspeed")
        if self.engine == "torch" and self.precision == "fp16":
            raise ValueError("engine torch scales no losses: precision fp16 needs deepspeed")
        if self.precision == "fp16" and (self.zero.stage == 0 or self.optimizer.name == "muon"):
            whole = "zero.stage 0" if self.zero.stage == 0 else "optimizer muon"
            raise ValueError(f"precision fp16 scales its losses in ZeRO: zero.stage 1, 2, 3 or auto, not {whole}")
        if self.optimizer.name == "muon" and self.zero.stage not in (0, "auto"):
            raise ValueError(f"optimizer muon needs whole matrices: zero.stage 0 or auto, not {self.zero.stage}")
        return self
