"""Learn from pairs of answers which is preferred: direct preference optimisation (DPO; Rafailov et al. 2023, eq. 7).

A pair costs -log sigmoid(beta ((log p(chosen) - log q(chosen)) - (log p(rejected) - log q(rejected)))), where p is the
model and q the reference, which is the model as it was at the beginning. The log probability of an answer is the sum
over its tokens. `pairs` has the samples.

B pairs, R = 2 B rows (chosen answers first), T tokens, N answer tokens, C of them in a chunk, D width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.loss import IGNORED_TARGET, default_chunk_rows
from orchestrator.objectives.pairs import PAIRS
from orchestrator.objectives.protocol import Batch, Scorer, Tensors
from orchestrator.objectives.scores.mean_loss import MeanLoss
from orchestrator.objectives.scores.preference import PreferenceScores
from orchestrator.objectives.scores.result import Scores

Reference = Callable[[nn.Module], AbstractContextManager[nn.Module]]
"""Given the model in training, the reference for as long as the context is open."""

_CHOSEN, _REJECTED = "chosen_rewards", "rejected_rewards"


class DirectPreference:
    """`Objective` of preferences.

    Args:
        beta: how strongly the model is held to the reference.
        reference: a `FrozenCopy` of the initial model, or what switches the adapters of a model off.
    """

    parts: tuple[str, ...] = (PAIRS,)

    def __init__(self, *, beta: float, reference: Reference) -> None:
        self._beta, self._reference = beta, reference

    def losses(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """As Objective."""
        chosen_B, rejected_B = self._rewards(model, tensors)
        # A pair without a single target is there for the collectives only: log 2 would be counted for it.
        counts_B = (tensors["targets"] != IGNORED_TARGET).any(1).view(2, -1).any(0)
        return {PAIRS: -(F.logsigmoid(chosen_B - rejected_B) * counts_B).sum()}

    def outputs(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """As Objective: the rewards of chosen and rejected answers, [B] each, in nats; without targets `logits`."""
        if "targets" not in tensors:
            return {"logits": model(tensors["input_ids"])}
        chosen_B, rejected_B = self._rewards(model, tensors)
        return {_CHOSEN: chosen_B, _REJECTED: rejected_B}

    def inputs(self, tensors: Tensors) -> Tensors:
        """As Objective: the ids alone."""
        return {"input_ids": tensors["input_ids"]}

    def scorer(self) -> Scorer:
        """As Objective: loss, and which answer has the higher reward by how much."""
        return PreferenceScorer()

    def _rewards(self, model: nn.Module, tensors: Tensors) -> tuple[Tensor, Tensor]:
        """What the paper calls the implicit rewards of the chosen and of the rejected answers, fp32 [B] each."""
        with torch.no_grad(), self._reference(model) as reference:
            before_R = answer_log_probs(reference, tensors)
        rewards_R = self._beta * (answer_log_probs(model, tensors) - before_R)
        chosen_B, rejected_B = rewards_R.chunk(2)
        return chosen_B, rejected_B


class FrozenCopy:
    """`Reference` that is a copy of the initial model, outside of what is trained, sharded and saved."""

    def __init__(self, model: nn.Module) -> None:
        """Before an engine has the model; later calls move the copy to where the engine has put it."""
        self._model = copy.deepcopy(model).eval().requires_grad_(False)

    @contextlib.contextmanager
    def __call__(self, model: nn.Module) -> Iterator[nn.Module]:
        """As Reference, in the precision in which the model computes."""
        like = next(model.parameters())
        yield self._model.to(device=like.device, dtype=like.dtype)


def answer_log_probs(model: nn.Module, tensors: Tensors) -> Tensor:
    """Log probabilities of the rows' answers, fp32 [R]: sums over the targets that are not ignored."""
    decoder: Any = model
    targets_RT = tensors["targets"]
    answers_RT = targets_RT != IGNORED_TARGET
    x_RTD = decoder.hidden(tensors["input_ids"])  # padding comes last, where no token sees it
    losses_N = _token_losses(
        x_RTD[answers_RT], decoder.projection_weight_VD, targets_RT[answers_RT], decoder.projection_bias_V
    )
    sums_R = torch.zeros(len(targets_RT), dtype=torch.float32, device=losses_N.device)
    return sums_R.index_add(0, answers_RT.nonzero()[:, 0], -losses_N)


def _token_losses(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, bias_V: Tensor | None) -> Tensor:
    """Cross entropy of each token, fp32 [N]. The logits of a chunk stand at a time, and again in the backward pass.

    The sum over all tokens, which needs no second pass, will not do: each row has a factor of its own, which is known
    once both of its pair's answers are.
    """
    rows = default_chunk_rows(x_ND.device.type, len(weight_VD))
    losses = [
        checkpoint(
            _chunk_losses,
            x_ND[first : first + rows],
            weight_VD,
            targets_N[first : first + rows],
            bias_V,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for first in range(0, max(1, len(x_ND)), rows)
    ]
    return torch.cat(losses)


def _chunk_losses(x_CD: Tensor, weight_VD: Tensor, targets_C: Tensor, bias_V: Tensor | None) -> Tensor:
    return F.cross_entropy(F.linear(x_CD, weight_VD, bias_V).float(), targets_C, reduction="none")


class PreferenceScorer:
    """`Scorer` of pairs: `loss` a pair, and the scores of the rewards."""

    needs_outputs = True

    def __init__(self) -> None:
        """Nothing counted."""
        self._loss, self._rewards = MeanLoss(), PreferenceScores()

    def add(self, batch: Batch, losses: Mapping[str, float], outputs: Tensors) -> None:
        """As Scorer."""
        self._loss.add(losses[PAIRS], batch.counts[PAIRS])
        self._rewards.add(outputs[_CHOSEN].numpy(), outputs[_REJECTED].numpy())

    def state(self) -> Any:
        """As Scorer."""
        return self._loss.state(), self._rewards.state()

    def result(self, states: Sequence[Any]) -> Scores:
        """As Scorer."""
        loss, rewards = MeanLoss(), PreferenceScores()
        loss.merge(state for state, _ in states)
        rewards.merge(state for _, state in states)
        return loss.beside(rewards.result())
