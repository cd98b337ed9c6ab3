"""What a step uses of the machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from orchestrator.job import JobSpec
from orchestrator.track import metrics
from orchestrator.train.utilisation import Utilisation, measured_product_flops, peak_bytes


def test_mfu_is_the_share_of_each_workers_peak() -> None:
    line = Utilisation(flops_per_token=1e6, workers=2, stated_flops=1e9, product_flops=5e8).line(1000.0)
    assert line[metrics.MFU] == pytest.approx(0.5)
    assert line[metrics.MFU_OF_PRODUCT] == pytest.approx(1.0)
    assert line[metrics.PEAK_MEMORY] > 50e6


def test_what_is_not_known_is_absent() -> None:
    unstated = Utilisation(flops_per_token=1e6, workers=1, stated_flops=None, product_flops=1e9).line(10.0)
    assert set(unstated) == {metrics.MFU_OF_PRODUCT, metrics.PEAK_MEMORY}
    uncounted = Utilisation(flops_per_token=None, workers=1, stated_flops=1e9, product_flops=1e9).line(10.0)
    assert set(uncounted) == {metrics.PEAK_MEMORY}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_product_is_measured(tiny_job: Callable[..., JobSpec], precision: str) -> None:
    found = measured_product_flops(tiny_job(f"train.precision={precision}").training, torch.device("cpu"))
    assert 1e9 < found < 1e14


def test_the_peak_never_falls() -> None:
    before = peak_bytes()
    held = torch.ones(64 << 20, dtype=torch.uint8)
    assert peak_bytes() >= before
    assert held.numel() <= peak_bytes()
