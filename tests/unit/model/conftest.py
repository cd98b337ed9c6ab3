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


@pytest.fixture(scope="session")
def random_weights():
    """Gives a module weights that are large enough for every part of it to show in the logits: norms, biases too."""

    def fill(module):
        generator = torch.Generator().manual_seed(7)
        for name, parameter in module.named_parameters():
            offset = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
            parameter.data.copy_(torch.normal(offset, 0.2, parameter.shape, generator=generator))
        return module.eval()

    return fill
