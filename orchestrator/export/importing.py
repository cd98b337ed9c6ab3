"""`slipway import`: somebody else's weights as an export of ours, with a proof of their own.

Shapes: B prompts, T positions.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from orchestrator.errors import StoreError
from orchestrator.export.card import import_card
from orchestrator.export.contents import Contents, Disagreement, write_contents
from orchestrator.export.folder import build_model, logits_of
from orchestrator.export.given import GivenModel, read_given_model, source_files
from orchestrator.export.manifest import FORMAT, is_current
from orchestrator.identity import content_hash
from orchestrator.store import Store, commit, is_committed, lock, sha256_file, storage_errors, sweep, writing
from orchestrator.track.progress import say

_PROMPTS = (
    "The harbour lay quiet before the storm, and all boats but one had come home.",
    "Who keeps the light burning? Since 1974 it is the old keeper's daughter.",
    "Zwölf Boxkämpfer jagen Viktor: déjà vu, 漢字, (x + 1) / 2 = 0.5!",
)
_PROMPT_TOKENS = 32


def import_folder(folder: Path, store: Store) -> Path:
    """Import a Hugging Face folder into a store; the same files give the same export, made once. Returns its folder.

    The weights are kept as fp32, which changes no value of bf16 and fp16.

    Raises:
        StoreError: the folder does not hold a whole model of a supported architecture with its tokenizer; names what
            is wrong. Or storage failed.
    """
    folder = folder.resolve()
    rows = [
        {"path": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in source_files(folder)
    ]
    identity = content_hash([FORMAT, rows])
    final = store.exports / f"{_slug(folder.name)}-{identity}"
    with storage_errors(final, doing=f"importing {folder.name}"):
        store.exports.mkdir(parents=True, exist_ok=True)
        with lock(store.exports / f".{identity}.lock", holds=f"the import of {folder.name}"):
            for made in sorted(store.exports.glob(f"*-{identity}")):
                if is_committed(made) and is_current(made):
                    return made
            sweep(store.exports, final.name)
            _write(final, folder, rows)
    return final


def _write(final: Path, folder: Path, rows: list[dict[str, Any]]) -> None:
    say(f"reading {folder}")
    given = read_given_model(folder)
    name = final.name.rpartition("-")[0]
    card = import_card(
        name, config=given.config, head=given.head, source=folder.name, tokenizer_size=given.tokenizer.size
    )
    origin = {
        "name": name,
        "origin": "imported",
        "run": None,
        "dataset": None,
        "source": {"name": folder.name, "files": rows},
        "step": 0,
    }
    try:
        with writing(final) as tmp:
            about = write_contents(tmp, _contents(given))
            (tmp / "README.md").write_text(card, encoding="utf-8")
            commit(tmp, final, {**about, **origin})
    except Disagreement as difference:
        raise StoreError(
            f"what was written of {folder} computes something else than its tensors: {difference}",
            fix="check this machine's disk and memory, then import it again",
        ) from None


def _contents(given: GivenModel) -> Contents:
    inputs = _decoder_prompts(given) if given.config.is_decoder else _encoder_prompts(given)
    model = build_model(given.config, given.state, given.head)
    return Contents(
        config=given.config,
        head=given.head,
        state=given.state,
        tokenizer=given.tokenizer.text,
        tokenizer_size=given.tokenizer.size,
        tokens=given.tokenizer.tokens,
        chat_template=given.tokenizer.chat_template,
        ends=given.tokenizer.ends,
        inputs=inputs,
        trainer_logits=logits_of(model, inputs),
        precision="fp32",
    )


def _decoder_prompts(given: GivenModel) -> dict[str, Tensor]:
    """The fixed prompts, cut to one length."""
    encoder = _encoder(given)
    rows = [encoder.encode(text).ids or [given.tokenizer.tokens["eos_token"].id] for text in _PROMPTS]
    length = min(_PROMPT_TOKENS, given.config.context, *map(len, rows))
    return {"input_ids": torch.tensor([row[:length] for row in rows])}


def _encoder_prompts(given: GivenModel) -> dict[str, Tensor]:
    """A pair, and single texts beside it that are padded: segments and mask take part in the proof."""
    encoder, pad = _encoder(given), given.tokenizer.tokens.get("pad_token")
    first, second, third = _PROMPTS
    encoded = [encoder.encode(first, second), encoder.encode(first), encoder.encode(third)]
    length = max(1, min(_PROMPT_TOKENS, given.config.context, max(len(row.ids) for row in encoded)))
    last = given.config.segments - 1

    def padded(values: list[int], filler: int) -> list[int]:
        return (values + [filler] * length)[:length]

    return {
        "input_ids": torch.tensor([padded(row.ids, pad.id if pad else 0) for row in encoded]),
        "token_type_ids": torch.tensor([padded([min(t, last) for t in row.type_ids], 0) for row in encoded]),
        "attention_mask": torch.tensor([padded(row.attention_mask, 0) for row in encoded]),
    }


def _encoder(given: GivenModel) -> Tokenizer:
    tokenizer = Tokenizer.from_str(given.tokenizer.text)
    tokenizer.encode_special_tokens = True
    return tokenizer


def _slug(name: str) -> str:
    """A folder's name as a name in the store."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:40] or "model"
