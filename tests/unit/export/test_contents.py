"""Every family and head: transformers opens the export unchanged, and it proves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from export_fixtures import HEADS, SHAPES, alter, forge_manifest, tiny_export
from safetensors.torch import load_file
from torch import Tensor

from model.config import HeadConfig, ModelConfig
from model.families import LM
from orchestrator.errors import ServeError, StoreError
from orchestrator.export.prove import load_proven, prove_export

CASES = {
    "llama": ("llama", LM, "AutoModelForCausalLM", "LlamaForCausalLM"),
    "gpt2": ("gpt2", LM, "AutoModelForCausalLM", "GPT2LMHeadModel"),
    "mlm": ("bert", HEADS["mlm"], "AutoModelForMaskedLM", "BertForMaskedLM"),
    "pretraining": ("bert", HEADS["pretraining"], "AutoModelForPreTraining", "BertForPreTraining"),
    "classification": (
        "bert",
        HEADS["classification"],
        "AutoModelForSequenceClassification",
        "BertForSequenceClassification",
    ),
    "token-classification": (
        "bert",
        HEADS["token-classification"],
        "AutoModelForTokenClassification",
        "BertForTokenClassification",
    ),
    "question-answering": (
        "bert",
        HEADS["question-answering"],
        "AutoModelForQuestionAnswering",
        "BertForQuestionAnswering",
    ),
}
QA = "question-answering"


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def export(case: str) -> Path:
        if case not in made:
            family, head, *_ = CASES[case]
            made[case] = tiny_export(tmp_path_factory.mktemp(case), config=SHAPES[family], head=head)
        return made[case]

    return export


def theirs(outputs: dict[str, Tensor]) -> Tensor:
    for name in ("logits", "prediction_logits"):
        if name in outputs:
            return outputs[name]
    return torch.stack([outputs["start_logits"], outputs["end_logits"]], -1)


@pytest.mark.parametrize("case", CASES)
def test_transformers_opens_it_and_agrees(case: str, exports: Callable[[str], Path]) -> None:
    folder, (_, head, auto, architecture) = exports(case), CASES[case]
    model, told = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == architecture
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    probe = load_file(folder / "probe.safetensors")
    inputs = {name: tensor for name, tensor in probe.items() if not name.endswith("logits")}
    with torch.inference_mode():
        found = theirs(model.eval()(**inputs))
    torch.testing.assert_close(found, probe["logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found, probe["trainer_logits"], rtol=0, atol=1e-4)
    if head.labels:
        assert [model.config.id2label[i] for i in range(len(head.labels))] == list(head.labels)
        assert model.config.label2id == {label: i for i, label in enumerate(head.labels)}


@pytest.mark.parametrize("case", CASES)
def test_it_proves(case: str, exports: Callable[[str], Path]) -> None:
    family, head, *_ = CASES[case]
    proven = prove_export(exports(case))
    assert (proven.config, proven.manifest.head.config) == (SHAPES[family], head)
    assert (proven.manifest.family, proven.manifest.origin, proven.manifest.run) == (family, "trained", "tiny-0123")


@pytest.mark.parametrize("case", CASES)
def test_it_proves_in_bf16(case: str, tmp_path: Path) -> None:
    family, head, *_ = CASES[case]
    export = tiny_export(tmp_path, config=SHAPES[family], head=head, precision="bf16")
    prove_export(export, precision="bf16")


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("llama", "gpt2")])
def test_an_encoder_is_not_served(case: str, exports: Callable[[str], Path]) -> None:
    with pytest.raises(ServeError, match=f"is a bert with the head {case}; only decoders continue texts") as e:
        load_proven(exports(case))
    assert e.value.exit_code == 7


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return tiny_export(tmp_path, config=SHAPES["bert"], head=HEADS["classification"])


def test_an_altered_classifier_is_told_without_a_position(classifier: Path) -> None:
    alter(classifier, lambda tensors: tensors["classifier.weight"].mul_(1.5))
    forge_manifest(classifier)
    with pytest.raises(ServeError, match=r"against the export's own logits: prompt '.*': a logit differs by \d"):
        prove_export(classifier)


def test_swapped_labels_are_found_by_the_checksums(classifier: Path) -> None:
    config = json.loads((classifier / "config.json").read_text())
    config["id2label"] = {"0": "good", "1": "so so", "2": "bad"}
    (classifier / "config.json").write_text(json.dumps(config))
    with pytest.raises(StoreError, match=r"config\.json"):
        prove_export(classifier)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("token_type_ids", lambda t: t + 2, "token_type_ids of .* outside of 0 to 1"),
        ("attention_mask", lambda t: t.bool(), r"attention_mask of .* is torch.bool"),
        ("attention_mask", lambda t: t[:, :4].clone(), r"attention_mask of .* is torch.int64 \[2, 4\]"),
    ],
)
def test_a_probe_with_inputs_that_are_none_is_refused(
    classifier: Path, name: str, change: Callable[[Tensor], Tensor], message: str
) -> None:
    alter(classifier, lambda probe: probe.update({name: change(probe[name])}), "probe.safetensors")
    forge_manifest(classifier)
    with pytest.raises(StoreError, match=message):
        prove_export(classifier)


def test_the_mask_takes_part_in_the_proof(classifier: Path) -> None:
    alter(classifier, lambda probe: probe["attention_mask"].fill_(1), "probe.safetensors")
    forge_manifest(classifier)
    with pytest.raises(ServeError, match="does not prove against"):
        prove_export(classifier)


def test_the_tokenizer_of_an_encoder_pads_and_pairs(exports: Callable[[str], Path]) -> None:
    folder = exports(QA)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.cls_token, tokenizer.sep_token, tokenizer.mask_token) == ("[CLS]", "[SEP]", "[MASK]")
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.model_max_length) == (0, 1, 64)
    batch = tokenizer(["def add", "class"], ["emoji", "pass and"], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask"}
    assert batch["token_type_ids"].max() == 1
    assert tokenizer.decode(batch["input_ids"][0]).startswith("[CLS] def add [SEP] emoji [SEP]")
    answers = transformers.AutoModelForQuestionAnswering.from_pretrained(folder)(**batch)
    assert answers.start_logits.shape == batch["input_ids"].shape
    assert not (folder / "generation_config.json").exists()


def test_what_the_tokenizer_gives_a_decoder_is_what_it_reads(exports: Callable[[str], Path]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(exports("llama"))
    model = transformers.AutoModelForCausalLM.from_pretrained(exports("llama"))
    batch = tokenizer("class Ship", return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert model.generate(**batch, max_new_tokens=2, do_sample=False).shape[1] > batch["input_ids"].shape[1]


def test_a_chat_template_goes_along_and_its_turns_end(tmp_path: Path) -> None:
    from orchestrator.data.tokens.chat import CHATML

    export = tiny_export(tmp_path, chat_template=CHATML)
    tokenizer = transformers.AutoTokenizer.from_pretrained(export)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    generation = json.loads((export / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [0, tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_an_export_of_an_older_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    export = tiny_export(tmp_path)
    manifest = json.loads((export / "manifest.json").read_text())
    (export / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    with pytest.raises(StoreError, match="an export of format 1, this version reads format 2") as e:
        load_proven(export)
    assert "export the run again" in str(e.value.fix)


def test_a_head_with_other_labels_than_its_classes_is_no_model(classifier: Path) -> None:
    config = json.loads((classifier / "config.json").read_text())
    config["id2label"] = {"0": "no", "1": "yes"}
    (classifier / "config.json").write_text(json.dumps(config))
    forge_manifest(classifier)
    with pytest.raises(StoreError, match=r"classifier\.weight is \[3, 32\] in the file and \[2, 32\] by config\.json"):
        prove_export(classifier)


def test_sinusoids_are_written_out_for_others(tmp_path: Path) -> None:
    config = ModelConfig(**{**SHAPES["bert"].to_dict(), "positions": "sinusoidal"})
    export = tiny_export(tmp_path, config=config, head=HeadConfig("mlm"))
    probe = load_file(export / "probe.safetensors")
    model = transformers.AutoModelForMaskedLM.from_pretrained(export).eval()
    inputs = {name: tensor for name, tensor in probe.items() if not name.endswith("logits")}
    with torch.inference_mode():
        torch.testing.assert_close(model(**inputs).logits, probe["trainer_logits"], rtol=0, atol=1e-4)
    prove_export(export)
