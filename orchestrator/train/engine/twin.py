"""A second network over the same weights: it computes in another thread, while the first one trains."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn

from orchestrator.objectives.protocol import Objective, Tensors
from orchestrator.train.engine.devices import to_device, to_host
from orchestrator.train.engine.protocol import Learner


class Twin:
    """Modules of its own in evaluation mode, which hold the parameters and buffers of the network that trains.

    So neither mode nor dropout of the one is seen by the other. It computes with what the weights are when it reads
    them: whoever changes them waits until it is done.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        device: torch.device,
        context: Callable[[], AbstractContextManager[object]],
    ) -> None:
        """`context` is entered around each pass, such as autocast, which belongs to a thread."""
        held = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self._learner = Learner(copy.deepcopy(model, dict(held)), objective).eval()
        self._device = device
        self._context = context
        self._threads = torch.get_num_threads()

    def outputs(self, tensors: Tensors) -> Tensors:
        """As `TrainEngine.outputs`, to the bit. In any thread."""
        torch.set_num_threads(self._threads)  # a thread begins with all cores: sums would be added up otherwise
        with torch.no_grad(), self._context():
            _, found = self._learner(to_device(tensors, self._device), losses=False, outputs=True)
        return to_host(found)
