"""Optimizers that torch has not, or not in a form that DeepSpeed can cut up: one buffer of state for each parameter.

Like torch's others they keep a parameter's state from its first gradient on, so ZeRO may exchange parameters for its
own flat ones after they are made. All memory of a step is taken before the first number changes: where it runs out,
nothing is updated.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Move(NamedTuple):
    """What of a group has a gradient, as lists of equal length."""

    group: dict[str, Any]
    params: list[Tensor]
    grads: list[Tensor]
    state: list[Tensor]


class _Elementwise(torch.optim.Optimizer):
    state_name: str

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; `closure` computes the loss again, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moves = [move for group in self.param_groups if (move := self._move(group)).params]
        for move, scratch in [(move, self._scratch(move)) for move in moves]:
            self._update(move, scratch)
        return loss

    def _move(self, group: dict[str, Any]) -> _Move:
        params = [p for p in group["params"] if p.grad is not None]
        for p in params:
            if not self.state[p]:
                self.state[p][self.state_name] = torch.zeros_like(p)
        return _Move(
            group,
            params,
            [p.grad for p in params if p.grad is not None],
            [self.state[p][self.state_name] for p in params],
        )

    @abstractmethod
    def _scratch(self, move: _Move) -> list[Tensor]:
        """What `_update` needs, and may overwrite."""

    @abstractmethod
    def _update(self, move: _Move, scratch: list[Tensor]) -> None:
        """Change parameters and state in place."""


class Lion(_Elementwise):
    """Lion (Chen et al. 2023, algorithm 2): steps of one size, in the direction of a momentum's sign.

    Args:
        betas: share of the momentum in the direction of a step, and in the next momentum.
    """

    state_name = "exp_avg"

    def __init__(self, params: Any, *, lr: float, betas: tuple[float, float], weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def _scratch(self, move: _Move) -> list[Tensor]:
        return list(torch._foreach_lerp(move.state, move.grads, 1.0 - move.group["betas"][0]))

    def _update(self, move: _Move, scratch: list[Tensor]) -> None:
        group = move.group
        torch._foreach_sign_(scratch)
        if group["weight_decay"]:
            torch._foreach_mul_(move.params, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(move.params, scratch, alpha=-group["lr"])
        torch._foreach_lerp_(move.state, move.grads, 1.0 - group["betas"][1])


class Adagrad(_Elementwise):
    """Adagrad (Duchi et al. 2011, figure 1, with diagonal matrices); the decay is a part of the gradient.

    torch's own makes its state with its parameters, for which DeepSpeed makes it anew and loses the groups (0.19).
    """

    state_name = "sum"

    def __init__(self, params: Any, *, lr: float, eps: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})

    def _scratch(self, move: _Move) -> list[Tensor]:
        decayed = torch._foreach_add(move.grads, move.params, alpha=move.group["weight_decay"])
        return [*decayed, *torch._foreach_mul(decayed, decayed)]

    def _update(self, move: _Move, scratch: list[Tensor]) -> None:
        decayed, roots = scratch[: len(move.params)], scratch[len(move.params) :]
        torch._foreach_add_(move.state, roots)
        torch._foreach_copy_(roots, move.state)
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, move.group["eps"])
        torch._foreach_addcdiv_(move.params, decayed, roots, value=-move.group["lr"])
