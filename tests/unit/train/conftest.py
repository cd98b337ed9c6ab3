"""Settings for tests that use torch: tiny models, one thread, one group."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from orchestrator.train.group import TorchGroup, join_group, leave_group


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def alone() -> Iterator[TorchGroup]:
    """A group of one, for all modules: DeepSpeed keeps the first group that it has seen."""
    yield join_group()
    leave_group()
