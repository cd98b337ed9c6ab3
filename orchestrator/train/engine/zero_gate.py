"""How DeepSpeed's optimizers are made to ask before an update. Knows them by their methods (0.19), imports nothing.

They leave an update out by themselves where the norm of the gradient is no number, gradients and counters included: so
an update that is refused is told that its norm is infinite. Without ZeRO there is torch's own optimizer, which is not
called then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch


class Gate:
    """Stands before the updates of the optimizer that `deepspeed.initialize` made.

    With fp16 the scaler takes a refusal for an overflow and may lower its scale: a few steps later it is back.
    """

    def __init__(self, optimizer: Any, *, stage: int) -> None:
        self._optimizer = optimizer
        self._ask: Callable[[float], bool] = lambda _: True
        self.admitted: bool | None = None
        """What the last step was told; None where it has not asked: DeepSpeed has found an overflow before."""
        if stage == 0:
            self._wrap("step", self._step)
        elif stage < 3:
            self._wrap("scaled_global_norm", self._norm)
        else:
            self._wrap("_get_norm_groups", self._norms)

    def begin(self, ask: Callable[[float], bool]) -> None:
        """A step that is to ask with its gradient norm, which is infinite where it is no number."""
        self._ask, self.admitted = ask, None

    def admits(self, norm: float) -> bool:
        """The answer, asked for once a step."""
        if self.admitted is None:
            self.admitted = self._ask(norm)
        return self.admitted

    @property
    def updated(self) -> bool:
        """Whether the last step has changed the weights, after it."""
        return self.admitted is not False and not getattr(self._optimizer, "overflow", False)

    def _wrap(self, method: str, by: Callable[..., Any]) -> None:
        self._inner = getattr(self._optimizer, method)
        setattr(self._optimizer, method, by)

    def _step(self, *arguments: Any, **named: Any) -> Any:
        return self._inner(*arguments, **named) if self.admitted is not False else None

    def _norm(self, *arguments: Any, **named: Any) -> Any:
        norm = self._inner(*arguments, **named)
        return norm if self.admits(self._unscaled([norm])) else torch.full_like(norm, math.inf)

    def _norms(self) -> Any:
        norms = self._inner()
        return norms if self.admits(self._unscaled(norms)) else [math.inf for _ in norms]

    def _unscaled(self, norms: list[Any]) -> float:
        """Of all groups, as `combine_grad_norm_groups` has it: a group without a norm says -1."""
        found = [float(norm) for norm in norms]
        if not all(math.isfinite(norm) and norm >= 0.0 for norm in found):
            return math.inf
        return math.hypot(*found) / float(self._optimizer.loss_scale)
