"""Clients ask all the time while versions come and go and parts of the service are killed: they notice nothing."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from export_fixtures import TEXTS, TINY, alter, forge_manifest, tiny_export
from serve_fixtures import Clients, Live, erring_export, live_service, slow_export, wait_until

from model.config import ModelConfig
from orchestrator.data.tokens.train import train_tokenizer
from orchestrator.errors import ServeError, SlipwayError
from orchestrator.job_data import Tokenizer as TokenizerSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def better(tmp_path_factory: pytest.TempPathFactory) -> Path:
    longer = ModelConfig(**{**TINY.to_dict(), "context": 128})
    return tiny_export(tmp_path_factory.mktemp("better"), config=longer)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slow_export(tmp_path_factory.mktemp("slow"))


@pytest.fixture(scope="module")
def erring(tmp_path_factory: pytest.TempPathFactory, good: Path) -> Path:
    return erring_export(tmp_path_factory.mktemp("erring"), good)


@pytest.fixture(scope="module")
def live(good: Path) -> Iterator[Live]:
    with live_service(good) as live:
        yield live


def test_a_good_version_rolls_out(live: Live, better: Path) -> None:
    with Clients(live.completions) as clients:
        clients.wait_answers(20)
        done = live.bring(better, canary={"share": 0.3, "for": 5.0})
        clients.wait_answers(20)
    assert (done["version"], done["verdict"]) == ("v2", "promoted")
    assert clients.failures == []
    assert set(clients.answers) == {"v1", "v2"}
    assert live.versions() == {"v2": 1.0}


def unreadable(export: Path) -> None:
    (export / "config.json").unlink()


def not_a_number(export: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][3] = float("nan")

    alter(export, spoil)
    forge_manifest(export)


def other_tokenizer(export: Path) -> None:
    other = train_tokenizer(TEXTS[1:2], TokenizerSettings(train="bpe", vocab_size=270), chat=False)
    (export / "tokenizer.json").write_text(other, encoding="utf-8")
    forge_manifest(export)


@pytest.mark.parametrize("spoil", [unreadable, not_a_number, other_tokenizer])
def test_a_version_that_does_not_prove_is_refused(live: Live, better: Path, tmp_path: Path, spoil: object) -> None:
    bad, before = Path(shutil.copytree(better, tmp_path / "step-00000020")), live.versions()
    spoil(bad)  # type: ignore[operator]
    with Clients(live.completions) as clients:
        clients.wait_answers(10)
        with pytest.raises(SlipwayError) as refused:
            live.bring(bad, canary={"share": 0.5, "for": 30.0})
        clients.wait_answers(10)
    assert refused.value.exit_code in (6, 7)
    assert (clients.failures, set(clients.answers)) == ([], set(before))
    assert live.versions() == before
    assert live.events()[-1][0] == "refused"


def test_a_slow_version_is_rolled_back(live: Live, slow: Path) -> None:
    before = live.versions()
    with Clients(live.completions, max_tokens=20) as clients:
        clients.wait_answers(20)
        with pytest.raises(ServeError, match=r"was rolled back: .* takes .* ms at the median"):
            live.bring(slow, canary={"share": 0.5, "for": 120.0})
        clients.wait_answers(20)
    assert clients.failures == []
    assert live.versions() == before


def test_an_erring_version_is_rolled_back_and_clients_do_not_see_it(live: Live, erring: Path) -> None:
    before = live.versions()
    with Clients(live.completions) as clients:
        clients.wait_answers(20)
        with pytest.raises(ServeError, match=r"was rolled back: .* requests failed"):
            live.bring(erring, canary={"share": 0.5, "for": 120.0})
        clients.wait_answers(20)
    assert live.versions() == before
    assert clients.failures == []


def test_killed_replica(live: Live) -> None:
    with Clients(live.completions) as clients:
        clients.wait_answers(20)
        live.kill("replica")
        took_s = clients.wait_answers(20)
    print(
        f"replica killed: 20 more answers after {took_s:.1f} s, {len(clients.failures)} cut, {clients.longest_s:.1f} s"
    )
    # A stream that has begun cannot be taken back; all else went to the replica that came after.
    assert all(failure.stream and failure.begun for failure in clients.failures), clients.failures
    assert len(clients.failures) <= 3


def test_killed_controller(live: Live) -> None:
    with Clients(live.completions) as clients:
        clients.wait_answers(20)
        killed = live.kill("controller")
        wait_until(lambda: live.pids("controller") not in ([], [killed]), 60, "another controller")
        clients.wait_answers(100)
    assert clients.failures == []


def test_killed_gateway(live: Live) -> None:
    """What was under way through it is cut; whoever comes later is answered by the one that takes its place."""
    with Clients(live.completions) as clients:
        clients.wait_answers(20)
        killed_at = time.monotonic()
        live.kill("gateway")
        took_s = clients.wait_answers(40, 90)
    late = [failure for failure in clients.failures if failure.ended_at > killed_at + 2.0]
    print(
        f"gateway killed: 40 more answers after {took_s:.1f} s, {len(clients.failures)} cut, {clients.longest_s:.1f} s"
    )
    assert late == []
    assert len(clients.failures) <= 6


def test_it_can_still_be_rolled_out_to(live: Live, good: Path) -> None:
    with Clients(live.completions) as clients:
        done = live.bring(good)
        clients.wait_answers(10)
    assert (done["verdict"], clients.failures) == ("promoted", [])
