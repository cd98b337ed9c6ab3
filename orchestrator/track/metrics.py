"""Names of metrics, with unit and meaning: the one table. Pure.

The x axis is `train/step`: finished steps, 1 to N.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

STEP = "train/step"
LOSS = "train/loss"
LEARNING_RATE = "train/lr"
GRADIENT_NORM = "train/grad_norm"
SKIPPED_UPDATES = "train/skipped_updates"
TOKENS = "train/tokens"
SAMPLES = "train/samples"
TOKENS_PER_S = "train/tokens_per_s"
STEP_TIME = "time/step_s"
DATA_WAIT = "time/data_wait_s"
EVALUATION_TIME = "time/evaluation_s"
SLOWEST_RANK = "time/slowest_rank"
SLOWEST_EXCESS = "time/slowest_excess"
RANK_TIME = "time/own_s/NAME"
RANK_DATA_WAIT = "time/data_wait_s/NAME"
DATA_READ = "data/read_bytes"
CHECKPOINT_STALL = "time/checkpoint_stall_s"
GOODPUT = "goodput/fraction"
PART_TOKENS = "data/tokens/NAME"
PART_EPOCH = "data/epoch/NAME"
PART_LOSS = "train/loss/NAME"
MFU = "train/mfu"
MFU_OF_PRODUCT = "train/mfu_of_product"
PEAK_MEMORY = "memory/peak_bytes"
GRADIENT_NOISE = "train/grad_noise_scale"
WEIGHT_NORM = "train/weight_norm"
EVAL_LOSS = "eval/loss"
EVAL_PERPLEXITY = "eval/perplexity"

MEANINGS: Mapping[str, tuple[str, str]] = {
    STEP: ("steps", "finished optimizer steps, 1 to N"),
    LOSS: ("nats/token", "mean cross entropy of the step's target tokens over all workers"),
    LEARNING_RATE: ("", "learning rate of the step"),
    GRADIENT_NORM: ("", "norm of the whole gradient before clipping"),
    SKIPPED_UPDATES: ("updates", "1 of a step whose update `train.guard` has left out; absent of others"),
    TOKENS: ("tokens", "target tokens seen since step 1"),
    SAMPLES: ("samples", "samples seen since step 1"),
    TOKENS_PER_S: ("tokens/s", "target tokens of the step, over all workers, by the step's time"),
    STEP_TIME: ("s", "from the first sample of the step to the updated weights"),
    DATA_WAIT: ("s", "part of the step that waited for samples"),
    EVALUATION_TIME: ("s", "time of the evaluation after the step; absent if there was none"),
    SLOWEST_RANK: (
        "",
        "the worker whose own time a step is the longest; this and the next three with every line of the log "
        "(`train.log_every_steps`), where there are several workers",
    ),
    SLOWEST_EXCESS: ("", "its own time by the median of all workers', less 1"),
    RANK_TIME: (
        "s",
        "own time of worker NAME: its wait for samples and its passes up to where it waits for another worker, which "
        "with DeepSpeed are the forward passes alone; mean of the steps since the line before",
    ),
    RANK_DATA_WAIT: ("s", "part of it that waited for samples"),
    DATA_READ: ("bytes", "tokens that worker 0 read from the shards for the step"),
    PART_TOKENS: ("tokens", "target tokens seen since step 1 of part NAME of a mixture; one for each part"),
    PART_EPOCH: ("epochs", "how often part NAME of a mixture has been seen since step 1; one for each part"),
    CHECKPOINT_STALL: (
        "s",
        "time that the checkpoint after the step before held up this one; absent if there was none",
    ),
    GOODPUT: (
        "",
        "share of useful steps in the attempt's time since it was launched, without the steps' waits for samples; "
        "with every line of the log (`train.log_every_steps`)",
    ),
    MFU: (
        "",
        "FLOPs of the step by the peak that cluster.worker_flops states (Chowdhery et al. 2022); absent without it",
    ),
    MFU_OF_PRODUCT: ("", "the same by what a product of matrices reached on worker 0 when the attempt began"),
    PEAK_MEMORY: ("bytes", "most memory that worker 0 has held: of its GPU, or resident"),
    GRADIENT_NOISE: (
        "batches",
        "gradient noise scale (McCandlish et al. 2018) by the step's batch: well above 1, a larger batch would pay; "
        "every tenth step, where a step has several micro-batches or workers",
    ),
    WEIGHT_NORM: ("", "norm of all trained weights after the step; every tenth step, but with offload to NVMe"),
    PART_LOSS: ("nats/target", "part NAME of a loss that has several; `train/loss` is their sum"),
    EVAL_LOSS: ("nats/token", "mean cross entropy of the validation split after the step"),
    EVAL_PERPLEXITY: ("", "exp(eval/loss)"),
}

_WARM_UP_LINES = 2


def of_part(family: str, name: str) -> str:
    """The metric of one part, or of one worker: `data/tokens/NAME` and `books` are `data/tokens/books`."""
    return family.replace("NAME", name)


def evaluated(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores of the validation split by the names of their metrics: `accuracy` is `eval/accuracy`."""
    return {f"eval/{name}": value for name, value in scores.items()}


def typical_tokens_per_s(lines: Iterable[Mapping[str, Any]]) -> float | None:
    """Median throughput of a run, without the first steps, which pay for warm-up."""
    rates = [float(line[TOKENS_PER_S]) for line in lines if line.get(TOKENS_PER_S)]
    return round(median(rates[_WARM_UP_LINES:] or rates), 1) if rates else None
