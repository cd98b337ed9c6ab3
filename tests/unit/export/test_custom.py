"""The export of a network of the user's own: no code in it, proven by making the class again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from custom_fixtures import checkpoint, export, job, payments
from export_fixtures import FACTS, alter, forge_manifest
from safetensors.torch import load_file

from orchestrator.errors import ServeError, StoreError
from orchestrator.export.custom import difference, prove_custom, write_custom_export
from orchestrator.export.manifest import is_custom, read_export_manifest


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("custom"))


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def test_it_holds_weights_and_words_and_no_code(made: Path) -> None:
    files = {path.name for path in made.iterdir()}
    assert files == {"model.safetensors", "probe.safetensors", "config.json", "README.md", "manifest.json", "COMMITTED"}
    config = json.loads((made / "config.json").read_text())
    assert (config["model_type"], config["class"]) == ("slipway-custom", "examples.transactions:Fraud")
    assert config["settings"] == {"width": 16}
    assert config["columns"] == {"amounts": "float32[8]", "merchants": "int64[8]", "hour": "int64"}
    assert config["targets"] == {"fraud": "int64"}
    assert is_custom(made)


def test_the_card_says_how_to_load_it(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (made / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("PATH_OF_THIS_FOLDER", str(made))
    names: dict[str, torch.nn.Module] = {}
    exec(code, names)
    rows = {name: tensor for name, tensor in payments().items() if name != "fraud"}
    with torch.no_grad():
        found = names["network"](rows)["predictions"]
    torch.testing.assert_close(found, load_file(made / "probe.safetensors")["predictions"])


def test_a_proven_one_predicts_without_the_target(made: Path) -> None:
    proven = prove_custom(made)
    rows = {name: tensor.repeat(500, *[1] * (tensor.dim() - 1)) for name, tensor in proven.probe.items()}
    assert "fraud" not in rows
    torch.testing.assert_close(proven.predict(rows)[-6:], proven.predict(proven.probe))
    assert proven.predict(rows).shape == (3000,)
    assert not proven.module.training


def test_bf16_serves_what_is_near(made: Path, tmp_path: Path) -> None:
    low = prove_custom(made, precision="bf16")
    assert next(low.module.parameters()).dtype == torch.bfloat16
    exact = prove_custom(made).predict(low.probe)
    assert 0 < float((low.predict(low.probe) - exact).abs().max()) < 0.05
    assert prove_custom(export(tmp_path, "train.precision=bf16")).manifest.precision == "bf16"


def test_altered_bytes_are_refused_by_name(copy: Path) -> None:
    alter(copy, lambda tensors: tensors["fraud.bias"].add_(1))
    with pytest.raises(StoreError, match=r"tensor fraud\.bias has SHA-256"):
        prove_custom(copy, precision="fp32")


def test_a_forged_manifest_does_not_prove(copy: Path) -> None:
    alter(copy, lambda tensors: tensors["fraud.bias"].add_(1))
    forge_manifest(copy)
    with pytest.raises(ServeError, match="does not prove against the export's own predictions: they differ by"):
        prove_custom(copy)


def test_a_class_that_is_gone_or_other_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    for change, error, told in (
        ({"class": "examples.nowhere:Fraud"}, ServeError, "needs its class: .*cannot be imported"),
        ({"settings": {"width": 8}}, StoreError, "do not fit Fraud"),
        ({"columns": {"amounts": "float32[8]"}}, StoreError, "does not hold the columns"),
        ({"model_type": "llama"}, StoreError, "config.json is not readable"),
    ):
        (copy / "config.json").write_text(json.dumps({**config, **change}))
        forge_manifest(copy)
        with pytest.raises(error, match=told):
            prove_custom(copy)


def test_a_checkpoint_that_predicts_something_else_is_not_exported(tmp_path: Path) -> None:
    asked = job()
    saved, _ = checkpoint(tmp_path / "step-00000020", asked, payments())
    alter(saved, lambda tensors: tensors["trainer_logits"].add_(0.01), "probe.safetensors")
    into = tmp_path / "export"
    with pytest.raises(StoreError, match="does not predict what its trainer recorded: they differ by"):
        write_custom_export(job=asked, checkpoint=saved, into=into, facts=FACTS)
    assert not into.exists()


def test_code_that_changed_since_training_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = job()
    saved, _ = checkpoint(tmp_path / "step-00000020", asked, payments(), source_sha256="0" * 64)
    write_custom_export(job=asked, checkpoint=saved, into=tmp_path / "export", facts=FACTS)
    assert "has changed since step-00000020 was written" in capsys.readouterr().err


def test_what_needs_a_decoder_says_so(made: Path) -> None:
    with pytest.raises(StoreError, match="is a network of your own"):
        read_export_manifest(made)


def test_differences_never_pass_for_nan_or_another_shape() -> None:
    want = torch.tensor([0.5, 2.0])
    assert difference(want, want + 1e-4, exact=True) is None
    for exact in (True, False):
        assert difference(want, torch.tensor([0.5, float("nan")]), exact=exact) is not None
        assert difference(want, want[:1], exact=exact) is not None
        assert difference(want, want + 0.2, exact=exact) is not None
    assert difference(want, want + 0.05, exact=False) is None
