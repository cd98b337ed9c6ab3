"""Networks of known sizes, and workers to put them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from model.config import ModelConfig, default_hidden
from orchestrator.job_train import Train
from orchestrator.plan.network import Case, Network

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"family": "llama", "vocab_size": 512, "layers": 2, "width": 64, "heads": 4, "context": 64},
    "gpt2-124m": {"family": "gpt2", "vocab_size": 50257, "layers": 12, "width": 768, "heads": 12, "context": 1024},
    "gpt2-1b3": {"family": "gpt2", "vocab_size": 50257, "layers": 24, "width": 2048, "heads": 16, "context": 1024},
    "llama-7b": {
        **{"family": "llama", "vocab_size": 32000, "layers": 32, "width": 4096, "heads": 32, "context": 2048},
        **{"hidden": 11008, "tie_embeddings": False},
    },
    "bert-base": {"family": "bert", "vocab_size": 30522, "layers": 12, "width": 768, "heads": 12, "context": 512},
}


def config_of(size: str, **changes: Any) -> ModelConfig:
    """One of the sizes."""
    numbers = SIZES[size] | changes
    hidden = default_hidden(numbers["width"], numbers["family"])
    return ModelConfig(**({"kv_heads": numbers["heads"], "hidden": hidden} | numbers))


def make_case(size: str = "tiny", **settings: Any) -> Case:
    """A worker's case; what is no field of it is the `train` section's, or with `model_` before it the model's."""
    named = {
        name: settings.pop(name) for name in ("workers", "stage", "micro_batch", "accumulation") if name in settings
    }
    objective = settings.pop("objective", "causal-lm")
    model = {name.removeprefix("model_"): settings.pop(name) for name in list(settings) if name.startswith("model_")}
    gpus = settings.pop("gpus", 1)
    zero = {"zero": {"stage": "auto"}} if "zero" not in settings else {}
    train = Train(steps=1, batch_tokens=1, workers={"gpus": gpus}, **zero, **settings)  # type: ignore[arg-type]
    network = Network(config=config_of(size, **model), objective=objective, train=train)
    return Case(**({"network": network, "workers": 8, "stage": 0, "micro_batch": 1, "accumulation": 1} | named))


@pytest.fixture(scope="session")
def case() -> Callable[..., Case]:
    """See `make_case`."""
    return make_case
