"""Settings for the tests of the networks, whose models are tiny."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """A second thread gains nothing at these sizes, and costs tenfold where others want its core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)
