"""What a replica refuses: every way in which an export can be other than it was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from export_fixtures import TINY, alter, forge_manifest, tiny_export
from safetensors.torch import load_file
from torch import Tensor

from orchestrator.data.tokens.tokenizer import train_bpe
from orchestrator.errors import ServeError, SlipwayError, StoreError
from orchestrator.export.prove import load_proven

Q = "model.layers.1.self_attn.q_proj.weight"


def one_weight(tensors: dict[str, Tensor]) -> None:
    tensors[Q][3, 4] += 0.5


def swap_two(tensors: dict[str, Tensor]) -> None:
    other = Q.replace("q_proj", "o_proj")
    tensors[Q], tensors[other] = tensors[other], tensors[Q]


def test_a_pristine_export_is_proven(pristine: Path) -> None:
    proven = load_proven(pristine)
    assert (proven.config, proven.eos_id, proven.allowed_size) == (TINY, 0, 300)
    assert not proven.model.training
    assert next(proven.model.parameters()).dtype == torch.float32


def test_it_serves_in_bf16_what_was_trained_in_bf16(tmp_path: Path) -> None:
    proven = load_proven(tiny_export(tmp_path, precision="bf16"), precision="bf16")
    assert {p.dtype for p in proven.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("change", [one_weight, swap_two])
def test_an_altered_tensor_is_named(export: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    alter(export, change)
    with pytest.raises(StoreError, match=r"tensor model\.layers\.1\.self_attn\.[qo]_proj\.weight has SHA-256") as e:
        load_proven(export)
    assert e.value.exit_code == 6


def test_the_smallest_change_of_one_number_is_found(export: Path) -> None:
    def next_float(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"].view(torch.int32)[0] += 1

    alter(export, next_float)
    with pytest.raises(StoreError, match=r"tensor model\.norm\.weight has SHA-256"):
        load_proven(export)


@pytest.mark.parametrize("change", [one_weight, swap_two])
def test_with_a_forged_manifest_the_probe_tells(export: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    alter(export, change)
    forge_manifest(export)
    said = r"does not prove against the export's own logits: prompt '.*', position \d+: a logit differs by \d"
    with pytest.raises(ServeError, match=said) as e:
        load_proven(export)
    assert e.value.exit_code == 7


def test_with_forged_logits_the_trainers_logits_tell(export: Path) -> None:
    alter(export, one_weight)
    from orchestrator.export.folder import logits_of, read_model

    def forge(probe: dict[str, Tensor]) -> None:
        inputs = {"input_ids": probe["input_ids"]}
        probe["logits"] = logits_of(read_model(export, load_file(export / "model.safetensors")), inputs)

    alter(export, forge, "probe.safetensors")
    forge_manifest(export)
    with pytest.raises(ServeError, match="does not prove against the trainer's logits: prompt"):
        load_proven(export)


def test_a_swapped_tokenizer_is_named(export: Path) -> None:
    (export / "tokenizer.json").write_text(train_bpe(["other text altogether"] * 3, 280))
    with pytest.raises(StoreError, match=r"tokenizer\.json has \d+ bytes, the manifest says"):
        load_proven(export)


def test_a_renamed_config_value_is_named(export: Path) -> None:
    config = export / "config.json"
    config.write_text(config.read_text().replace("10000.0", "20000.0"))
    with pytest.raises(StoreError, match=r"config\.json was altered"):
        load_proven(export)
    forge_manifest(export)
    with pytest.raises(ServeError, match="does not prove against"):
        load_proven(export)


def test_missing_and_added_tensors_are_named(export: Path) -> None:
    alter(export, lambda tensors: tensors.update(extra=torch.zeros(1)))
    with pytest.raises(StoreError, match=r"tensor extra of model\.safetensors is not in the manifest"):
        load_proven(export)
    alter(export, lambda tensors: (tensors.pop("extra"), tensors.pop(Q)))
    with pytest.raises(StoreError, match=rf"tensor {Q} is not in model\.safetensors"):
        load_proven(export)
    forge_manifest(export)
    with pytest.raises(StoreError, match=r"config\.json and model\.safetensors do not make a model"):
        load_proven(export)


def test_bf16_that_moves_the_logits_too_far_is_refused(tmp_path: Path) -> None:
    import orchestrator.export.prove as prove_module
    from orchestrator.export.compare import Difference

    export = tiny_export(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prove_module, "rounded_difference", lambda *_: Difference(1, 3, "off"))
        with pytest.raises(ServeError, match=r"served in bf16: prompt '.*', position 3: off"):
            load_proven(export, precision="bf16")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("COMMITTED", None, "has no COMMITTED marker"),
        ("manifest.json", None, r"manifest\.json is not readable"),
        ("manifest.json", b"[]", r"manifest\.json is not a manifest"),
        ("manifest.json", b'{"files": []}', r"manifest\.json is not an export's: format: Field required"),
        ("manifest.json", b"\xff\xfe", r"manifest\.json is not readable"),
        ("model.safetensors", None, r"model\.safetensors is not readable"),
        ("model.safetensors", b"\x00" * 64, r"model\.safetensors is not readable"),
        ("model.safetensors", b"", r"model\.safetensors is not readable"),
        ("tokenizer.json", None, r"tokenizer\.json is absent"),
        ("config.json", None, r"config\.json is absent"),
        ("probe.safetensors", None, r"probe\.safetensors is absent"),
        ("README.md", b"# lies\n", r"README\.md has 7 bytes"),
    ],
)
def test_missing_and_garbled_files_are_named(export: Path, file: str, content: bytes | None, message: str) -> None:
    if content is None:
        (export / file).unlink()
    else:
        (export / file).write_bytes(content)
    with pytest.raises(StoreError, match=message):
        load_proven(export)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", b"{}", r"tokenizer\.json is not readable"),
        ("config.json", b"[1]", r"do not make a model"),
        ("config.json", b'{"model_type": "gpt5"}', r"do not make a model: model_type 'gpt5' is not supported"),
        ("probe.safetensors", b"\x01", r"probe\.safetensors is not readable"),
    ],
)
def test_garbled_files_under_a_forged_manifest_are_named(export: Path, file: str, content: bytes, message: str) -> None:
    (export / file).write_bytes(content)
    forge_manifest(export)
    with pytest.raises(StoreError, match=message):
        load_proven(export)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: p.pop("logits"), StoreError, "has no 'logits'"),
        (lambda p: p.pop("input_ids"), StoreError, "has no 'input_ids'"),
        (lambda p: p.update(input_ids=p["input_ids"] + 10_000), StoreError, "input_ids of .* outside of 0 to 299"),
        (lambda p: p.update(input_ids=p["input_ids"].repeat(1, 9)), StoreError, "no prompts of at most 64"),
        (lambda p: p.update(input_ids=p["input_ids"].float()), StoreError, r"is torch.float32 \[2, 16\]"),
        (lambda p: p.update(logits=p["logits"][:, :4].clone()), ServeError, "recorded are"),
        (lambda p: p["logits"].fill_(float("nan")), ServeError, "a logit differs by nan"),
    ],
)
def test_a_probe_that_is_none_is_refused(
    export: Path, change: Callable[[dict[str, Tensor]], object], error: type[SlipwayError], message: str
) -> None:
    alter(export, change, "probe.safetensors")
    forge_manifest(export)
    with pytest.raises(error, match=message):
        load_proven(export)
