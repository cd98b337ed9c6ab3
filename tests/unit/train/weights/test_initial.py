"""Weights of a run, an export or a Hugging Face folder become a model's first ones, or it is said why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from export_fixtures import HEADS, LM, SHAPES, alter, forge_manifest, tiny_export, tiny_model
from torch import Tensor, nn
from weights_fixtures import make_hf, make_run

from model.config import HeadConfig, ModelConfig
from model.families import build
from orchestrator.checkpoint.origin import find_origin
from orchestrator.data.dataset import Dataset
from orchestrator.data.shards import write_shard
from orchestrator.errors import JobError, StoreError
from orchestrator.job import JobSpec
from orchestrator.store import Store
from orchestrator.train.weights.initial import begin_at_frequencies, load_initial

CLASSES = HEADS["classification"]
BERT = SHAPES["bert"]
Load = Callable[..., dict[str, Tensor]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(
        source: Path, config: ModelConfig = SHAPES["llama"], head: HeadConfig = LM, **more: Path
    ) -> dict[str, Tensor]:
        origin = find_origin(str(source), Store(tmp_path / "elsewhere"))
        model: nn.Module = build(config, head).initialise(7)
        load_initial(model, config, head, origin, tokenizer=more.get("tokenizer", origin.tokenizer))
        return {name: tensor.detach() for name, tensor in model.named_parameters()}

    return load


def same(found: dict[str, Tensor], wanted: nn.Module, *names: str) -> bool:
    state = wanted.state_dict()
    return all(torch.equal(found[name], state[name]) for name in names or found)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["run", "checkpoint", "export", "hugging-face", "sharded"])
def test_weights_come_from_each_kind_of_source(tmp_path: Path, load: Load, family: str, kind: str) -> None:
    config = SHAPES[family]
    makers: dict[str, Callable[[], Path]] = {
        "run": lambda: make_run(tmp_path, family=family),
        "checkpoint": lambda: make_run(tmp_path, family=family) / "checkpoints" / "step-00000020",
        "export": lambda: tiny_export(tmp_path, config=config),
        "hugging-face": lambda: make_hf(tmp_path / "hf", config=config),
        "sharded": lambda: make_hf(tmp_path / "hf", config=config, shards=3),
    }
    assert same(load(makers[kind](), config), tiny_model(config))


def test_an_encoder_keeps_its_head_where_kind_and_labels_are_the_same(tmp_path: Path, load: Load) -> None:
    export = tiny_export(tmp_path, config=BERT, head=CLASSES)
    assert same(load(export, BERT, CLASSES), tiny_model(BERT, CLASSES))


@pytest.mark.parametrize("labels", [("bad", "good"), ("good", "so so", "bad")])
def test_a_head_with_other_labels_is_drawn_and_said_to_be(
    tmp_path: Path, load: Load, labels: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    head = HeadConfig("classification", labels)
    found = load(tiny_export(tmp_path, config=BERT, head=CLASSES), BERT, head)
    body = [name for name in found if name.startswith("backbone.")]
    assert same(found, tiny_model(BERT, CLASSES), *body)
    assert same(found, build(BERT, head).initialise(7), "classify.weight", "classify.bias")
    assert "not there, so drawn: classify.weight, classify.bias" in capsys.readouterr().err


def test_a_pretrained_encoder_gives_a_classifier_its_backbone_and_pooler(tmp_path: Path, load: Load) -> None:
    for source in (
        make_run(tmp_path / "own", family="bert", head=HEADS["pretraining"]),
        tiny_export(tmp_path / "export", config=BERT, head=HEADS["pretraining"]),
        make_hf(tmp_path / "hf", config=BERT, head=HEADS["pretraining"]),
    ):
        found = load(source, BERT, CLASSES)
        body = [name for name in found if name.startswith("backbone.")]
        assert "backbone.pooler.weight" in body
        assert same(found, tiny_model(BERT, HEADS["pretraining"]), *body)


def test_a_pooler_is_taken_from_a_file_whose_architecture_does_not_read_it(tmp_path: Path, load: Load) -> None:
    # Well known folders say BertForMaskedLM, and hold all that pre-training left.
    folder = make_hf(tmp_path / "hf", config=BERT, head=HEADS["pretraining"])
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, "architectures": ["BertForMaskedLM"]}))
    found = load(folder, BERT, CLASSES)
    assert same(found, tiny_model(BERT, HEADS["pretraining"]), "backbone.pooler.weight", "backbone.pooler.bias")
    assert same(load(folder, BERT, HEADS["mlm"]), tiny_model(BERT, HEADS["pretraining"]))


def test_without_a_pooler_in_the_source_it_is_drawn(
    tmp_path: Path, load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    found = load(make_run(tmp_path, family="bert", head=HEADS["mlm"]), BERT, CLASSES)
    assert same(found, build(BERT, CLASSES).initialise(7), "backbone.pooler.weight")
    assert "drawn: backbone.pooler.weight, backbone.pooler.bias, classify" in capsys.readouterr().err


def test_masked_language_models_share_their_head(tmp_path: Path, load: Load) -> None:
    found = load(make_run(tmp_path, family="bert", head=HEADS["pretraining"]), BERT, HEADS["mlm"])
    assert same(found, tiny_model(BERT, HEADS["pretraining"]))


def test_fewer_positions_are_the_first_and_more_are_refused(tmp_path: Path, load: Load) -> None:
    gpt2, llama = SHAPES["gpt2"], SHAPES["llama"]
    learned, turned = make_hf(tmp_path / "gpt2", config=gpt2), make_hf(tmp_path / "llama", config=llama)
    found = load(learned, replace(gpt2, context=16))
    torch.testing.assert_close(
        found["position.table.weight"], tiny_model(gpt2).state_dict()["position.table.weight"][:16]
    )
    with pytest.raises(JobError, match=r"model.context 65 is more than the 64 positions .*\n.*at most 64"):
        load(learned, replace(gpt2, context=65))
    assert same(load(turned, replace(llama, context=256)), tiny_model(llama))  # there is no table to outgrow


def test_another_network_is_refused_with_its_settings(tmp_path: Path, load: Load) -> None:
    source = make_hf(tmp_path / "hf")
    other = replace(SHAPES["llama"], layers=3, hidden=128, tie_embeddings=False)
    with pytest.raises(JobError) as caught:
        load(source, other)
    assert "layers 3 in the job, 2 there; hidden 128 in the job, 64 there; tie_embeddings False" in caught.value.message
    assert caught.value.fix == "set model: {layers: 2, hidden: 64, tie_embeddings: true}"
    with pytest.raises(JobError, match="family gpt2 in the job, llama there") as caught:
        load(source, SHAPES["gpt2"])
    assert "kind: gpt, form: llama" in str(caught.value.fix)


def test_a_network_that_no_job_describes_is_refused_without_false_advice(tmp_path: Path, load: Load) -> None:
    source = make_hf(tmp_path / "hf", config=replace(BERT, segments=1), head=HEADS["mlm"])
    with pytest.raises(JobError, match="segments 2 in the job, 1 there") as caught:
        load(source, BERT, HEADS["mlm"])
    assert str(caught.value.fix).startswith("take another source")


def test_dropout_is_the_jobs_choice(tmp_path: Path, load: Load) -> None:
    assert same(load(make_hf(tmp_path / "hf"), replace(SHAPES["llama"], dropout=0.1)), tiny_model())


def test_another_tokenizer_is_refused(tmp_path: Path, load: Load) -> None:
    source = make_hf(tmp_path / "hf")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    mine = tmp_path / "tokenizer.json"
    mine.write_text(json.dumps({**tokenizer, "padding": {"strategy": "BatchLongest"}}, indent=1))
    load(source, tokenizer=mine)  # spelled otherwise, and the same
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    mine.write_text(json.dumps(tokenizer))
    with pytest.raises(JobError, match=r"data.tokenizer: \{path: .*hf/tokenizer.json\}"):
        load(source, tokenizer=mine)
    (source / "tokenizer.json").unlink()
    with pytest.raises(StoreError, match=r"hf/tokenizer.json cannot be read"):
        load(source, tokenizer=mine)


def drop(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop("model.norm.weight"), "missing: model.norm.weight"),
        (lambda tensors: tensors.update(stray=torch.zeros(2)), "not expected: stray"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.zeros(33)}), r"\[33\] .* \[32\]"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.zeros(32, dtype=torch.int8)}), "int8"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, load: Load, change: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    source = make_hf(tmp_path / "hf")
    alter(source, change)
    with pytest.raises(StoreError, match=said):
        load(source)


def test_tensors_of_a_run_that_do_not_fit_are_named(tmp_path: Path, load: Load) -> None:
    folder = make_run(tmp_path) / "checkpoints" / "step-00000020"
    alter(folder, lambda tensors: tensors.update({"blocks.0.stray": tensors.pop("norm.weight")}))
    forge_manifest(folder)
    with pytest.raises(StoreError, match=r"missing norm.weight; extra blocks.0.stray"):
        load(folder)


def test_what_was_altered_is_refused(tmp_path: Path, load: Load) -> None:
    export = tiny_export(tmp_path / "export")
    run = make_run(tmp_path)
    for folder in (export, run / "checkpoints" / "step-00000020"):
        file = folder / "model.safetensors"
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(raw)
        with pytest.raises(StoreError, match="was altered"):
            load(folder)


def test_the_bias_begins_at_the_tokens_shares(tmp_path: Path, tiny_job: Callable[..., JobSpec]) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.choice(BERT.vocab_size, 50_000, p=(shares := rng.dirichlet(np.ones(BERT.vocab_size))))
    write_shard(tmp_path / "0.arrow", [tokens.astype(np.uint16)])
    row = {"path": "0.arrow", "source": 0, "tokens": len(tokens), "documents": 1}
    dataset = Dataset(tmp_path, {"vocab_size": BERT.vocab_size, "splits": {"train": {"shards": [row]}}})
    job = tiny_job(
        "model={kind: bert, layers: 1, width: 32, heads: 2, context: 16}",
        "train.zero.stage=0",
        "train.masking.frequency_bias=true",
    )
    model = build(BERT, HeadConfig("mlm")).initialise(0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "bias"}
    begin_at_frequencies(model, job, dataset)
    assert same(before, model, *before)
    assert torch.allclose(model.state_dict()["bias"].exp(), torch.from_numpy(shares).float(), atol=5e-3)
