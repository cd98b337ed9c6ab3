"""A version in the shadow is judged by copies of what clients ask, and clients notice nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from export_fixtures import TINY, tiny_export
from harness import Result
from serve_fixtures import Clients, Live, erring_export, live_service, slow_export

from model.config import ModelConfig
from orchestrator.errors import ServeError

Slipway = Callable[..., Result]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def live(good: Path) -> Iterator[Live]:
    with live_service(good) as live:
        yield live


@pytest.mark.parametrize(
    ("export_of", "why"),
    [
        (erring_export, "requests failed"),
        (lambda root, _: slow_export(root), "takes .* ms at the median|had no room for"),
    ],
)
def test_a_bad_one_is_sent_away_and_clients_see_nothing(
    live: Live, good: Path, tmp_path: Path, export_of: Callable[[Path, Path], Path], why: str
) -> None:
    bad, before = export_of(tmp_path, good), live.versions()
    with Clients(live.completions, max_tokens=20) as clients:
        clients.wait_answers(20)
        with pytest.raises(ServeError, match=f"was rolled back: .*({why})"):
            live.bring(bad, canary={"share": 0.5, "for": 120.0, "shadow": True})
        clients.wait_answers(20)
    assert (clients.failures, clients.refused, set(clients.answers)) == ([], [], {"v1"})
    assert live.versions() == before == {"v1": 1.0}
    assert [kind for kind, _ in live.events()[-2:]] == ["shadow", "rolled back"]


def test_a_good_one_takes_over_at_its_time(live: Live, tmp_path: Path, slipway: Slipway) -> None:
    longer = ModelConfig(**{**TINY.to_dict(), "context": 128})
    better = tiny_export(tmp_path, config=longer)
    with Clients(live.completions, 3) as clients:
        clients.wait_answers(10)
        done = slipway("serve", better, "--port", live.port, "--shadow", "--canary", "100%", "--for", "4s", "--json")
        assert done.code == 0, done.stderr
        clients.wait_answers(10)
    assert "gets a copy of 100% of the requests for 4 s" in done.stderr
    assert done.document["verdict"] == "promoted"
    assert int(done.document["reason"].split()[0]) > 3
    assert (clients.failures, clients.refused) == ([], [])
    assert set(clients.answers) == {"v1", done.document["version"]}
    assert live.versions() == {done.document["version"]: 1.0}
    assert live.metric("slipway_requests_total") > 0
    assert live.events()[-2:] == [("shadow", done.document["version"]), ("promoted", done.document["version"])]
