"""What `train.from` asks for is found, named by its weights, and not exchanged later."""

from __future__ import annotations

from pathlib import Path

import pytest
from export_fixtures import alter, forge_manifest, tiny_export
from weights_fixtures import make_hf, make_run

from orchestrator.checkpoint.origin import Origin, find_origin, identity_of_source, require_unchanged
from orchestrator.errors import JobError, StoreError
from orchestrator.store import Store


def test_a_run_is_found_by_name_and_its_newest_checkpoint_is_taken(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=(20, 40))
    store = Store(tmp_path)
    newest = run / "checkpoints" / "step-00000040"
    for asked in ("tiny-0123", "tiny", "runs/tiny-0123", str(run)):
        assert find_origin(asked, store).folder == newest
    (newest / "model.safetensors").write_bytes(b"")  # cut short: the one before is taken
    assert find_origin("tiny", store).folder == run / "checkpoints" / "step-00000020"


def test_a_source_that_is_none_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    make_run(tmp_path, steps=())
    (tmp_path / "empty").mkdir()
    for asked, said in (
        ("nothing", "no run 'nothing' in .*; the store has: tiny-0123"),
        ("tiny", "tiny-0123 has no checkpoint yet"),
        (str(tmp_path / "empty"), "is no run, checkpoint, export or Hugging Face folder"),
    ):
        with pytest.raises(JobError, match=said):
            find_origin(asked, store)


def test_the_identity_is_of_weights_and_network_alone(tmp_path: Path) -> None:
    first, second = make_hf(tmp_path / "a"), make_hf(tmp_path / "b")
    assert identity_of_source(first) == identity_of_source(second)
    (second / "README.md").write_text("other words")
    assert identity_of_source(first) == identity_of_source(second)
    alter(second, lambda tensors: tensors["model.norm.weight"].add_(1))
    assert identity_of_source(first) != identity_of_source(second)
    export = tiny_export(tmp_path / "export")
    before = identity_of_source(export)
    alter(export, lambda tensors: tensors["model.norm.weight"].add_(1))
    assert identity_of_source(export) == before  # quick: it is what the manifest says, which `load_initial` verifies
    forge_manifest(export)
    assert identity_of_source(export) != before


def test_a_run_does_not_go_on_from_other_weights(tmp_path: Path) -> None:
    source = make_hf(tmp_path / "hf")
    origin = find_origin(str(source), Store(tmp_path))
    require_unchanged(origin)
    alter(source, lambda tensors: tensors["model.norm.weight"].add_(1))
    with pytest.raises(StoreError, match=r"they are .* now"):
        require_unchanged(origin)
    with pytest.raises(StoreError, match="which is gone"):
        require_unchanged(Origin(tmp_path / "gone", origin.identity))
