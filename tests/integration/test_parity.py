"""Fifty steps of ours, and of a plain loop over the `transformers` model: same weights and batches, same losses.

B samples, T tokens, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from model.config import HeadConfig, ModelConfig
from model.families import LM, build
from model.huggingface import to_hf_config, to_hf_state
from orchestrator.data.load.masking import Masking
from orchestrator.job_train import Optimizer, Schedule, Train, Zero
from orchestrator.objectives.causal_lm import CausalLM, next_token_batch
from orchestrator.objectives.encoder_inputs import IDS, MASK, SEGMENTS, TARGETS
from orchestrator.objectives.masked_data import masked_tensors
from orchestrator.objectives.masked_lm import FOLLOWS, MLM, NEXT_SENTENCE, PLACES, MaskedLM
from orchestrator.objectives.protocol import Batch, Objective
from orchestrator.train.engine.torch_engine import TorchEngine
from orchestrator.train.group import TorchGroup, join_group, leave_group
from orchestrator.train.schedule import learning_rate

Precision = Literal["fp32", "bf16"]
STEPS, B, T, V = 50, 8, 32, 96
FP32_TOLERANCE = 1e-4
"""Nats: the losses of each of the steps."""
BF16_TOLERANCE = 0.005
"""Share of the loss: bf16 has 8 significant bits, so 0.4 % a rounding, and sums even them out."""
SPECIAL, MASK_ID = 5, 4
"""Ids below the first are no text; one of them hides a token."""
COMMON = 24
"""Tokens that are frequent."""
SIZES: dict[str, Any] = {"vocab_size": V, "layers": 2, "width": 48, "heads": 4, "hidden": 96, "context": T}


@dataclass(frozen=True)
class Case:
    """A family in training: what of it is tied and shared differs, and so does its loss."""

    config: ModelConfig
    head: HeadConfig = LM

    @property
    def objective(self) -> Objective:
        return CausalLM() if self.config.is_decoder else MaskedLM(next_sentence=self.head.kind == "pretraining")


CASES = {
    "llama": Case(ModelConfig(family="llama", kv_heads=2, tie_embeddings=False, **SIZES)),
    "gpt2": Case(ModelConfig(family="gpt2", kv_heads=4, **SIZES)),
    "bert": Case(ModelConfig(family="bert", kv_heads=4, **SIZES), HeadConfig("mlm")),
    "bert with pairs": Case(ModelConfig(family="bert", kv_heads=4, **SIZES), HeadConfig("pretraining")),
}
every_case = pytest.mark.parametrize("name", CASES)


def settings(precision: Precision) -> Train:
    return Train(
        steps=STEPS,
        batch_tokens=B * T,
        precision=precision,
        optimizer=Optimizer(learning_rate=3e-3),
        schedule=Schedule(name="cosine", warmup_steps=5),
        zero=Zero(stage=0),
    )


@pytest.fixture(scope="module")
def alone() -> Iterator[TorchGroup]:
    yield join_group()
    leave_group()


def text_of(step: int) -> np.ndarray:
    """[B, T + 1] tokens of a step: nine in ten follow from the one before, so there is something to learn."""
    rng = np.random.default_rng(step)
    ids = np.empty((B, T + 1), dtype=np.int64)
    ids[:, 0] = rng.integers(SPECIAL, V, B)
    for at in range(T):
        follows = SPECIAL + (3 * ids[:, at] + 1) % COMMON
        ids[:, at + 1] = np.where(rng.random(B) < 0.9, follows, rng.integers(SPECIAL, V, B))
    return ids


def batches_of(case: Case, step: int) -> list[Batch]:
    """A step in micro-batches of unequal size."""
    ids = text_of(step)
    shares = [slice(0, 3), slice(3, B)]
    if case.config.is_decoder:
        return [next_token_batch(ids[share]) for share in shares]
    return [hidden_batch(case, ids[share, :T], np.arange(B)[share], step) for share in shares]


def hidden_batch(case: Case, ids_BT: np.ndarray, samples: np.ndarray, step: int) -> Batch:
    """Text with tokens hidden; in pairs its second half, of a quarter's padding, is another segment."""
    masking = Masking(mask_id=MASK_ID, special_V=np.arange(V) < SPECIAL, seed=0, share=0.25)
    if case.head.kind == "mlm":
        tensors, hidden = masked_tensors(ids_BT, samples, step, masking)
        return Batch(tensors, {MLM: hidden}, ids_BT.size)
    follows_B = torch.from_numpy(np.random.default_rng((step, *samples)).integers(0, 2, len(samples)))
    ids_BT = ids_BT.copy()
    ids_BT[:, 0] = 2 + follows_B.numpy() % 2  # so that whether it follows can be learned
    ids_BT[:, -T // 4 :] = 0
    tensors, hidden = masked_tensors(ids_BT, samples, step, masking)
    kept_BT = torch.from_numpy(ids_BT != 0)
    segments_BT = (torch.arange(T) >= T // 2).long().expand_as(kept_BT) * kept_BT
    tensors |= {SEGMENTS: segments_BT, MASK: kept_BT, FOLLOWS: follows_B}
    return Batch(tensors, {MLM: hidden, NEXT_SENTENCE: len(samples)}, ids_BT.size)


@functools.cache
def ours(name: str, precision: Precision) -> list[float]:
    """The losses of our steps."""
    case, train = CASES[name], settings(precision)
    engine = TorchEngine(build(case.config, case.head).initialise(1), case.objective, train, group=TorchGroup())
    losses = []
    for step in range(1, STEPS + 1):
        batches = batches_of(case, step)
        totals = {part: float(sum(batch.counts[part] for batch in batches)) for part in case.objective.parts}
        stats = engine.step(batches, totals=totals, learning_rate=rate_of(step, train))
        losses.append(sum(stats.losses[part] / totals[part] for part in totals))
    return losses


def theirs(name: str) -> list[float]:
    """The losses of a loop as the documentation of torch and transformers would have it; whole steps, one pass each."""
    case, train = CASES[name], settings("fp32")
    model = twin(case).train()
    optimizer = plain_optimizer(model, train.optimizer)
    losses = []
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate_of(step, train)
        loss = their_loss(case, model, step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), train.gradient_clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def twin(case: Case) -> nn.Module:
    """The same network with the same weights, of transformers."""
    written = to_hf_config(case.config, case.head, bos_token_id=None, eos_token_id=3, dtype="float32")
    config = transformers.AutoConfig.for_model(written.pop("model_type"), **written)
    model: Any = getattr(transformers, written["architectures"][0])(config)
    state = to_hf_state(build(case.config, case.head).initialise(1).state_dict(), case.config, case.head)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith(("lm_head.weight", "decoder.weight", "decoder.bias")) for name in missing), missing
    model.tie_weights()
    return model  # type: ignore[no-any-return]


def plain_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    decaying = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decaying, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(settings.beta1, settings.beta2), eps=settings.eps)


def their_loss(case: Case, model: nn.Module, step: int) -> Tensor:
    """Of a decoder from its logits; an encoder's is what their model itself gives for labels."""
    if case.config.is_decoder:
        ids = torch.from_numpy(text_of(step))
        return F.cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
    parts = [batch.tensors for batch in batches_of(case, step)]
    whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    labels_BT = torch.full_like(whole[IDS], -100).scatter(1, whole[PLACES], whole[TARGETS])
    inputs = {key: whole[key] for key in (IDS, SEGMENTS, MASK) if key in whole}
    pairs = {"next_sentence_label": whole[FOLLOWS]} if FOLLOWS in whole else {}
    loss: Tensor = model(**inputs, labels=labels_BT, **pairs).loss
    return loss


def rate_of(step: int, train: Train) -> float:
    return learning_rate(step, peak=train.optimizer.learning_rate, steps=STEPS, schedule=train.schedule)


@every_case
def test_fifty_steps_have_the_losses_of_a_plain_loop_over_transformers(alone: TorchGroup, name: str) -> None:
    found, expected = ours(name, "fp32"), theirs(name)
    assert found == pytest.approx(expected, abs=FP32_TOLERANCE, rel=0)
    assert found[-1] < 0.8 * found[0], "a model that does not learn would prove little"


@every_case
def test_bf16_follows_fp32(alone: TorchGroup, name: str) -> None:
    found, expected = ours(name, "bf16"), ours(name, "fp32")
    assert found == pytest.approx(expected, rel=BF16_TOLERANCE)
    assert found != expected
