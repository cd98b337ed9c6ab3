"""What is trained, in numbers: parameters, which of them learn, and FLOPs. Pure.

P parameters, Q trained parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.config import HeadKind, ModelConfig
from orchestrator.job import JobSpec
from orchestrator.job_train import Objective, Train

_HEADS: dict[Objective, HeadKind] = {
    "masked-lm": "mlm",
    "classification": "classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
}
"""Of encoders; a decoder has its language-modelling head."""

_UNKNOWN_LABELS = 2
"""Classes of a head whose labels are found in the data: a few, beside millions of parameters."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A backbone, its head, and what of them learns."""

    config: ModelConfig
    objective: Objective
    train: Train
    labels: int = _UNKNOWN_LABELS

    @property
    def head(self) -> HeadKind:
        """What stands on the backbone."""
        if self.objective == "masked-lm" and self.train.masking.next_sentence:
            return "pretraining"
        return _HEADS.get(self.objective, "lm")

    @property
    def parameters(self) -> int:
        """P, adapters included."""
        return self.config.parameters + self._head + self._adapters

    @property
    def trained(self) -> int:
        """Q: all, or those of the adapters and of an encoder's head."""
        return self._adapters + self._head if self.train.lora else self.parameters

    @property
    def projected(self) -> bool:
        """Whether the loss multiplies by the table of the vocabulary."""
        return self.head in ("lm", "mlm", "pretraining")

    @property
    def judged(self) -> float:
        """Share of the tokens that a loss over the vocabulary looks at."""
        return self.train.masking.share if self.objective == "masked-lm" else 1.0

    @property
    def rows(self) -> int:
        """Sequences of a sample: a preference is two answers."""
        return 2 if self.objective == "preference" else 1

    @property
    def _head(self) -> int:
        return self.config.head_parameters(self.head, self.labels)

    @property
    def _adapters(self) -> int:
        """r (inputs + outputs) for each targeted layer (Hu et al. 2021); 0 without LoRA."""
        lora, layers = self.train.lora, linear_layers(self.config)
        if lora is None:
            return 0
        return self.config.layers * sum(lora.rank * sum(layers[n]) for n in lora.targets or layers if n in layers)

    @property
    def flops_per_token(self) -> float:
        """Forward and backward of all weights: 6 N + 12 L D T, the head counted for the tokens that it looks at."""
        head = self.config.head_matmul_parameters(self.head, self.labels) * self.judged
        return self.config.training_flops_per_token() + 6.0 * head

    @property
    def executed_flops_per_token(self) -> float:
        """What a token really costs.

        A pass back is two passes forward: one for the activations' gradients, one for the weights'. Checkpointing makes
        one more pass forward; LoRA leaves the weights' gradients out; a preference asks a frozen reference too, and its
        two answers are two rows for one sample's tokens.
        """
        passes = 3.0 + self.train.activation_checkpointing - (self.train.lora is not None)
        passes += self.objective == "preference"
        return self.flops_per_token * self.rows * passes / 3.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """All that decides how much memory one worker needs."""

    network: Network
    workers: int
    stage: int
    micro_batch: int
    accumulation: int

    @property
    def config(self) -> ModelConfig:
        """Of the backbone."""
        return self.network.config

    @property
    def train(self) -> Train:
        """The job's section."""
        return self.network.train

    @property
    def on_gpu(self) -> bool:
        """Whether the worker computes on a GPU."""
        return self.train.workers.gpus > 0

    @property
    def compute_bytes(self) -> int:
        """c: bytes of one number in the type that the model computes in."""
        return 4 if self.train.precision == "fp32" else 2

    @property
    def tokens(self) -> int:
        """N: of one forward pass."""
        return self.micro_batch * self.network.rows * self.config.context

    @property
    def uses_torch(self) -> bool:
        """Whether the plain engine trains it, rather than DeepSpeed."""
        return self.stage == 0 and self.train.engine != "deepspeed" and self.train.precision != "fp16"


def network_of(job: JobSpec, vocab_size: int | None) -> Network | None:
    """What a job trains, where its vocabulary is known; None otherwise, and for a custom module."""
    asked = job.data.tokenizer.vocab_size if job.data.tokenizer.train else None
    vocab = vocab_size or job.model.vocab_size or asked
    if vocab is None or job.model.kind == "custom":
        return None
    labels = len(job.data.labels) if job.data.labels else _UNKNOWN_LABELS
    return Network(config=job.model.config(vocab), objective=job.objective, train=job.training, labels=labels)


def linear_layers(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the linear layers in one block, by name."""
    width, kv_width, hidden = config.width, config.kv_heads * config.head_width, config.hidden
    layers = {
        "q": (width, width),
        "k": (width, kv_width),
        "v": (width, kv_width),
        "out": (width, width),
        "up": (width, hidden),
        "down": (hidden, width),
    }
    return layers if config.biased else {**layers, "gate": (width, hidden)}
