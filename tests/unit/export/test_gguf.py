"""GGUF files, read back with llama.cpp's own reader: metadata, tensors and tokens are the export's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from export_fixtures import END_OF_TEXT, TEXTS, TINY
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from model.config import HeadConfig, ModelConfig
from model.families import build
from orchestrator.data.tokens.facts import facts
from orchestrator.data.tokens.train import train_bpe, train_tokenizer
from orchestrator.errors import StoreError
from orchestrator.export.contents import Contents, special_tokens, write_contents
from orchestrator.export.gguf import Dtype, write_gguf
from orchestrator.job_data import Tokenizer as TokenizerSettings
from orchestrator.store import MARKER, commit, read_manifest, writing

GPT2 = ModelConfig(
    family="gpt2", vocab_size=320, layers=2, width=32, heads=4, kv_heads=4, hidden=128, context=16, dropout=0.0
)


def made(folder: Path, config: ModelConfig = TINY, tokenizer: str | None = None) -> Path:
    """A committed export with random weights."""
    text = tokenizer or train_bpe(TEXTS, 300)
    found = asdict(facts(text))
    tokens = special_tokens(found)
    ids_BT = torch.arange(1, 13).reshape(1, 12)
    model = build(config).initialise(0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
        logits_BTV = model(ids_BT)
    contents = Contents(
        config=config,
        head=HeadConfig("lm"),
        state=model.state_dict(),
        tokenizer=text,
        tokenizer_size=found["vocab_size"],
        tokens=tokens,
        chat_template=None,
        ends=(tokens["eos_token"].id,),
        inputs={"input_ids": ids_BT},
        trainer_logits=logits_BTV,
        precision="fp32",
    )
    origin = {
        "name": "tiny",
        "origin": "trained",
        "run": "tiny-0123",
        "dataset": "tiny-4567",
        "source": None,
        "step": 20,
    }
    with writing(folder) as tmp:
        commit(tmp, folder, {**write_contents(tmp, contents), **origin})
    return folder


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("gguf") / "step-00000020")


@pytest.fixture
def export(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "export"))


def altered(export: Path, change: Callable[[Path], object]) -> Path:
    """The committed folder after `change`, with a manifest that fits."""
    manifest = read_manifest(export)
    with writing(export) as tmp:
        shutil.copytree(export, tmp, dirs_exist_ok=True)
        (tmp / MARKER).unlink()
        (tmp / "manifest.json").unlink()
        change(tmp)
        commit(tmp, export, {k: v for k, v in manifest.items() if k != "files"})
    return export


def with_settings(export: Path, file: str, **settings: Any) -> Path:
    def change(folder: Path) -> None:
        said = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(said | settings))

    return altered(export, change)


def with_tokenizer(export: Path, text: str) -> Path:
    return altered(export, lambda folder: (folder / "tokenizer.json").write_text(text))


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    return {
        t.name: torch.from_numpy(np.array(gguf.dequantize(t.data, t.tensor_type)))
        for t in gguf.GGUFReader(path).tensors
    }


def unpermuted(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Row by row: pair (2 i, 2 i + 1) of a head goes back to (i, i + half)."""
    width = tensor.shape[0] // heads
    back = torch.empty_like(tensor)
    for head in range(heads):
        for i in range(width // 2):
            for side in range(2):
                back[head * width + side * (width // 2) + i] = tensor[head * width + 2 * i + side]
    return back


def test_the_metadata_is_the_models(pristine: Path, tmp_path: Path) -> None:
    written = write_gguf(pristine, tmp_path / "step-00000020.gguf")
    said = fields(written)
    for key, value in {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.file_type": 0,
        "llama.context_length": 64,
        "llama.embedding_length": 32,
        "llama.block_count": 2,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
        "llama.rope.dimension_count": 8,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": 320,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.add_bos_token": False,
    }.items():
        assert said[key] == value, key
    assert "tokenizer.chat_template" not in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020.gguf"]


@pytest.mark.parametrize(("heads", "kv_heads", "tied"), [(4, 4, True), (4, 2, False), (4, 1, True)])
def test_every_tensor_is_the_exports(tmp_path: Path, heads: int, kv_heads: int, tied: bool) -> None:
    shape = {"heads": heads, "kv_heads": kv_heads, "tie_embeddings": tied}
    export = made(tmp_path / "export", ModelConfig(**{**TINY.to_dict(), **shape}))
    got = tensors_of(write_gguf(export, tmp_path / "out.gguf"))
    for i in range(2):
        for which, count in (("q", heads), ("k", kv_heads)):
            name = f"blk.{i}.attn_{which}.weight"
            got[name] = unpermuted(got[name], count)
    names = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    pairs = {f"blk.{i}.{ours}": f"model.layers.{i}.{theirs}" for i in range(2) for ours, theirs in names.items()}
    pairs |= {"token_embd": "model.embed_tokens", "output_norm": "model.norm"} | ({} if tied else {"output": "lm_head"})
    want = load_file(export / "model.safetensors")
    assert got.keys() == {f"{ours}.weight" for ours in pairs}
    assert want.keys() == {f"{theirs}.weight" for theirs in pairs.values()}
    for ours, theirs in pairs.items():
        assert torch.equal(got[f"{ours}.weight"], want[f"{theirs}.weight"]), ours


def test_the_tokens_are_the_tokenizers_and_the_padding_is_unused(pristine: Path, tmp_path: Path) -> None:
    said = fields(write_gguf(pristine, tmp_path / "out.gguf"))
    tokenizer = Tokenizer.from_file(str(pristine / "tokenizer.json"))
    tokens, types = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    assert tokens[:300] == [tokenizer.id_to_token(i) for i in range(300)]
    assert len(set(tokens)) == len(tokens) == len(types) == 320
    end = tokenizer.token_to_id(END_OF_TEXT)
    assert types[end] == gguf.TokenType.CONTROL
    assert {types[i] for i in range(300) if i != end} == {gguf.TokenType.NORMAL}
    assert set(types[300:]) == {gguf.TokenType.UNUSED}
    assert {said[f"tokenizer.ggml.{role}_token_id"] for role in ("bos", "eos", "padding")} == {end}
    merges = json.loads((pristine / "tokenizer.json").read_text())["model"]["merges"]
    assert said["tokenizer.ggml.merges"] == [" ".join(merge) for merge in merges]


def test_added_tokens_template_and_own_ends_are_kept(export: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(train_bpe(TEXTS, 290, special=(END_OF_TEXT, "<|bos|>")))
    tokenizer.add_tokens([AddedToken("[PAD310]", special=False)])
    with_tokenizer(export, tokenizer.to_str())
    with_settings(export, "config.json", bos_token_id=1)
    with_settings(export, "generation_config.json", pad_token_id=2, eos_token_id=[0, 3])
    with_settings(export, "tokenizer_config.json", chat_template="{{ messages }}")
    said = fields(write_gguf(export, tmp_path / "out.gguf"))
    assert said["tokenizer.chat_template"] == "{{ messages }}"
    assert [said[f"tokenizer.ggml.{role}_token_id"] for role in ("eos", "bos", "padding", "eot")] == [0, 1, 2, 3]
    tokens, types = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    assert types[:2] == [gguf.TokenType.CONTROL] * 2
    added = tokenizer.token_to_id("[PAD310]")
    assert (tokens[added], types[added]) == ("[PAD310]", gguf.TokenType.USER_DEFINED)
    assert len(set(tokens)) == 320


@pytest.mark.parametrize(
    ("dtype", "torch_dtype", "file_type"), [("f16", torch.float16, 1), ("bf16", torch.bfloat16, 32)]
)
def test_matrices_are_rounded_and_vectors_are_not(
    pristine: Path, tmp_path: Path, dtype: Dtype, torch_dtype: torch.dtype, file_type: int
) -> None:
    whole = write_gguf(pristine, tmp_path / "f32.gguf")
    small = write_gguf(pristine, tmp_path / "small.gguf", dtype=dtype)
    assert fields(small)["general.file_type"] == file_type
    types = {t.name: t.tensor_type.name.lower() for t in gguf.GGUFReader(small).tensors}
    want, got = tensors_of(whole), tensors_of(small)
    assert want.keys() == got.keys()
    for name, tensor in want.items():
        assert types[name] == ("f32" if tensor.dim() == 1 else dtype), name
        assert torch.equal(got[name], tensor if tensor.dim() == 1 else tensor.to(torch_dtype).float()), name
    assert small.stat().st_size < 0.75 * whole.stat().st_size


def test_a_weight_beyond_f16_is_refused_and_nothing_stays(export: Path, tmp_path: Path) -> None:
    def grow(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e5
        save_file(tensors, folder / "model.safetensors")

    altered(export, grow)
    into = tmp_path / "files" / "out.gguf"
    with pytest.raises(StoreError, match=r"blk.1.ffn_up.weight does not fit f16: its largest value is 1e\+05"):
        write_gguf(export, into, dtype="f16")
    assert list(into.parent.iterdir()) == []
    assert write_gguf(export, into, dtype="bf16") == into


def test_the_same_export_gives_the_same_bytes_and_replaces_what_was_there(pristine: Path, tmp_path: Path) -> None:
    first, again = write_gguf(pristine, tmp_path / "a.gguf"), tmp_path / "b.gguf"
    again.write_bytes(b"older")
    (tmp_path / "b.gguf.tmp-0123").write_bytes(b"half")
    write_gguf(pristine, again)
    assert again.read_bytes() == first.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


def test_gpt2_has_its_own_names_and_its_projections_the_other_way_round(tmp_path: Path) -> None:
    export = made(tmp_path / "export", GPT2)
    written = write_gguf(export, tmp_path / "out.gguf", dtype="bf16")
    said = fields(written)
    assert said["general.architecture"] == "gpt2"
    sizes = ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count")
    assert [said[f"gpt2.{size}"] for size in sizes] == [16, 32, 2, 128, 4]
    assert said["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    assert not [key for key in said if "rope" in key]
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(written).tensors}
    assert types["position_embd.weight"] == types["blk.0.attn_qkv.bias"] == "F32"
    assert types["token_embd.weight"] == types["blk.0.attn_qkv.weight"] == "BF16"

    want, got = load_file(export / "model.safetensors"), tensors_of(write_gguf(export, tmp_path / "f32.gguf"))
    assert len(got) == len(want)
    names = {"attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
    for ours, theirs in names.items():
        assert torch.equal(got[f"blk.1.{ours}.weight"], want[f"transformer.h.1.{theirs}.weight"].T), ours
        assert torch.equal(got[f"blk.1.{ours}.bias"], want[f"transformer.h.1.{theirs}.bias"]), ours
    for ours, theirs in {"attn_norm": "ln_1", "ffn_norm": "ln_2"}.items():
        assert torch.equal(got[f"blk.0.{ours}.bias"], want[f"transformer.h.0.{theirs}.bias"]), ours
    for ours, theirs in {"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f"}.items():
        assert torch.equal(got[f"{ours}.weight"], want[f"transformer.{theirs}.weight"]), ours


def test_an_encoder_is_refused(export: Path, tmp_path: Path) -> None:
    manifest = json.loads((export / "manifest.json").read_text())
    encoder = {"family": "bert", "head": {"kind": "mlm", "labels": []}}
    (export / "manifest.json").write_text(json.dumps(manifest | encoder))
    with pytest.raises(StoreError, match=r"holds a bert with the head 'mlm'; only decoders become GGUF files") as e:
        write_gguf(export, tmp_path / "out.gguf")
    assert "slipway serve" in str(e.value.fix)


def test_a_configuration_that_is_not_ours_is_refused(export: Path, tmp_path: Path) -> None:
    with_settings(export, "config.json", attention_bias=True)
    with pytest.raises(StoreError, match=r"config.json is not a model of ours: attention_bias"):
        write_gguf(export, tmp_path / "out.gguf")


def test_a_tensor_without_counterpart_is_named(export: Path, tmp_path: Path) -> None:
    def add(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        save_file(tensors | {"model.layers.0.adapter.weight": torch.zeros(2, 2)}, folder / "model.safetensors")

    with pytest.raises(StoreError, match=r"no tensor for 'model.layers.0.adapter.weight'"):
        write_gguf(altered(export, add), tmp_path / "out.gguf")


def changed_bpe(change: Callable[[Tokenizer], object]) -> str:
    tokenizer = Tokenizer.from_str(train_bpe(TEXTS, 300))
    change(tokenizer)
    return str(tokenizer.to_str())


def set_normalizer(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Lowercase()


def set_prefix_space(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def set_other_split(tokenizer: Tokenizer) -> None:
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def add_greedy_token(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens([AddedToken("<x>", special=False, lstrip=True)])


def wordpiece() -> str:
    return train_tokenizer(TEXTS, TokenizerSettings(train="wordpiece", vocab_size=300))


def ignoring_merges() -> str:
    return train_bpe(TEXTS, 300).replace('"ignore_merges": false', '"ignore_merges": true')


def add_special_greedy_token(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (wordpiece, "model.type is 'WordPiece'"),
        (lambda: changed_bpe(set_normalizer), "normalizer Lowercase"),
        (lambda: changed_bpe(set_prefix_space), "pre_tokenizer.add_prefix_space is True"),
        (lambda: changed_bpe(set_other_split), "pre_tokenizer.type is 'Sequence'"),
        (lambda: changed_bpe(add_greedy_token), "added token '<x>'"),
        (lambda: train_bpe(TEXTS, 257), "has no merges"),
        (ignoring_merges, "model.ignore_merges is True"),
    ],
    ids=["wordpiece", "normalizer", "prefix space", "other split", "greedy token", "no merges", "ignored merges"],
)
def test_a_tokenizer_that_llama_cpp_splits_otherwise_is_refused(
    export: Path, tmp_path: Path, text: Callable[[], str], reason: str
) -> None:
    with_tokenizer(export, text())
    with pytest.raises(StoreError, match=reason) as e:
        write_gguf(export, tmp_path / "out.gguf")
    assert "data.tokenizer.train: bpe" in str(e.value.fix)
    assert not (tmp_path / "out.gguf").exists()


def test_a_special_token_may_take_blanks_because_no_text_spells_it(export: Path, tmp_path: Path) -> None:
    with_tokenizer(export, changed_bpe(add_special_greedy_token))
    said = fields(write_gguf(export, tmp_path / "out.gguf"))
    assert said["tokenizer.ggml.token_type"][300] == gguf.TokenType.CONTROL


def test_an_export_that_was_altered_or_is_not_complete_is_refused(export: Path, tmp_path: Path) -> None:
    weights = export / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(StoreError, match="was altered"):
        write_gguf(export, tmp_path / "out.gguf")
    (export / MARKER).unlink()
    with pytest.raises(StoreError, match="is not complete"):
        write_gguf(export, tmp_path / "out.gguf")


def test_a_place_that_cannot_be_written_is_an_error_of_the_store(pristine: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"storage failed while writing out.gguf"):
        write_gguf(pristine, tmp_path / "file" / "out.gguf")
