"""The ids that frame, mask and pad what an encoder reads, from the tokenizer of a dataset."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from orchestrator.data.dataset import Dataset
from orchestrator.data.load.next_sentence import PairIds
from orchestrator.data.tokens.facts import TokenizerFacts
from orchestrator.errors import JobError

Role = Literal["cls", "sep", "mask", "pad"]
_SPELLINGS: dict[Role, tuple[str, ...]] = {
    "cls": ("[CLS]", "<cls>", "<s>"),
    "sep": ("[SEP]", "<sep>", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "pad": ("[PAD]", "<pad>"),
}
"""By BERT, by others, by RoBERTa."""


def facts_of(dataset: Dataset) -> TokenizerFacts:
    """What the manifest says of the tokenizer."""
    return TokenizerFacts(**dataset.manifest["tokenizer"])


def frame_ids(facts: TokenizerFacts, *, purpose: str) -> PairIds:
    """What stands before, between and behind the texts of a row, and pads it.

    Padding is hidden from attention, so a tokenizer without a token for it pads with the one that ends a document.

    Raises:
        JobError: there is no [CLS] or no [SEP], which `purpose` needs.
    """
    pad = _find(facts, "pad")
    return PairIds(
        cls=_require(facts, "cls", purpose),
        sep=_require(facts, "sep", purpose),
        pad=facts.eos_token_id if pad is None else pad,
    )


def frame_ids_if_any(facts: TokenizerFacts) -> PairIds | None:
    """As `frame_ids`; None where the tokenizer lacks one of them."""
    known = _find(facts, "cls") is not None and _find(facts, "sep") is not None
    return frame_ids(facts, purpose="") if known else None


def mask_id(facts: TokenizerFacts) -> int:
    """What stands in the place of a hidden token.

    Raises:
        JobError: there is none.
    """
    return _require(facts, "mask", "masked-lm")


def special_flags(facts: TokenizerFacts) -> npt.NDArray[np.bool_]:
    """By token id: whether it is a special token, [V]."""
    flags_V = np.zeros(facts.vocab_size, dtype=np.bool_)
    flags_V[list(facts.special_tokens.values())] = True
    return flags_V


def _find(facts: TokenizerFacts, role: Role) -> int | None:
    return next((facts.special_tokens[name] for name in _SPELLINGS[role] if name in facts.special_tokens), None)


def _require(facts: TokenizerFacts, role: Role, purpose: str) -> int:
    found = _find(facts, role)
    if found is None:
        name = _SPELLINGS[role][0]
        raise JobError(
            f"{purpose} needs the special token {' or '.join(_SPELLINGS[role])}; "
            f"the tokenizer has {', '.join(facts.special_tokens)}",
            fix=f"set data.tokenizer.train: wordpiece, which brings {name}, or list [CLS], [SEP], [MASK] and [PAD] in "
            "data.tokenizer.special_tokens; of finished tokenizers (data.tokenizer.path) choose one that has it",
        )
    return found
