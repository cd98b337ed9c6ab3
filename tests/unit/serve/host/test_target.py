"""What `slipway serve` takes: an export of any kind, proven."""

from __future__ import annotations

from pathlib import Path

import pytest
from export_fixtures import HEADS, LM, SHAPES, TINY, alter, forge_manifest, tiny_export

from model.config import HeadConfig, ModelConfig
from orchestrator.errors import ServeError, StoreError
from orchestrator.job import Serve
from orchestrator.serve.host.target import find_export, prove
from orchestrator.store import Store

BERT = SHAPES["bert"]


@pytest.mark.parametrize(
    ("config", "head", "says"),
    [
        (TINY, LM, ""),
        (BERT, HEADS["classification"], ""),
        (BERT, HEADS["mlm"], "has the head mlm, which is not served: /v1/embeddings gives the mean"),
    ],
)
def test_an_export_of_any_head_is_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: ModelConfig, head: HeadConfig, says: str
) -> None:
    export = tiny_export(tmp_path, config=config, head=head)
    found, settings, name = find_export(Store(tmp_path / "store"), str(export))
    assert (found.resolve(), settings) == (export.resolve(), Serve())
    assert name
    told = capsys.readouterr().err
    assert says in told
    assert bool(told) == bool(says)
    prove(export, settings)


def test_an_encoder_that_was_altered_does_not_prove(tmp_path: Path) -> None:
    export = tiny_export(tmp_path, config=BERT, head=HEADS["classification"])
    alter(export, lambda tensors: tensors["classifier.weight"].mul_(1.5))
    with pytest.raises(StoreError, match=r"classifier\.weight has SHA-256"):
        prove(export, Serve())
    forge_manifest(export)
    with pytest.raises(ServeError, match="does not prove against"):
        prove(export, Serve())
