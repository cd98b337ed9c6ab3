"""Tokenizers that a job trains: byte-level BPE, and BERT's WordPiece.

The same texts in the same order give the same bytes.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from orchestrator.job_data import Tokenizer as Settings

END_OF_TEXT = "<|endoftext|>"
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")
"""What the built-in chat template writes around a turn."""
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Ids 0 to 4 of a WordPiece vocabulary, in this order."""
_MAX_ALPHABET = 1000
"""Distinct characters of a WordPiece vocabulary, as BERT's; rarer ones become [UNK]."""


def special_tokens(settings: Settings, *, chat: bool = False) -> list[str]:
    """The special tokens of a tokenizer that is trained with these settings, in the order of their ids."""
    chat = chat or settings.chat_template == "chatml"  # as letters, anybody's message could write a turn's borders
    own = BERT_TOKENS if settings.train == "wordpiece" else (END_OF_TEXT,)
    return list(dict.fromkeys([*own, *(CHAT_TOKENS if chat else ()), *settings.special_tokens]))


def train_tokenizer(texts: Iterable[str], settings: Settings, *, chat: bool = False) -> str:
    """Train what `data.tokenizer.train` asks for; returns the text of its `tokenizer.json`.

    Args:
        chat: the rows are chats, so the tokens of the built-in template are added; as where the settings name it.
    """
    special = special_tokens(settings, chat=chat)
    if settings.train == "wordpiece":
        return _train_wordpiece(list(texts), settings.vocab_size, special, lowercase=settings.lowercase)
    return train_bpe(texts, settings.vocab_size, special=special)


def train_bpe(texts: Iterable[str], vocab_size: int, *, special: Iterable[str] = (END_OF_TEXT,)) -> str:
    """Train a byte-level BPE (Radford et al. 2019); returns the text of its `tokenizer.json`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str(pretty=True))


def _train_wordpiece(texts: list[str], vocab_size: int, special: list[str], *, lowercase: bool) -> str:
    """WordPiece as BERT's (Devlin et al. 2019), the vocabulary by BPE merges as the tokenizers library trains it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    alphabet = _alphabet(tokenizer.normalizer, texts, vocab_size)
    # The library numbers the "##" letters in the order of a hash table, which differs from run to run and decides
    # ties. Listed beside the special tokens they get their numbers here; they are taken off that list again below.
    letters = [*alphabet, *(f"##{c}" for c in alphabet if not _stands_alone(c))]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*special, *letters],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    parts = json.loads(tokenizer.to_str())
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["content"] in special]
    return _with_bert_template(json.dumps(parts))


def _alphabet(normalizer: normalizers.Normalizer, texts: list[str], vocab_size: int) -> list[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    ranked = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    # Each letter may take two entries; a third of a small vocabulary at least is left for words.
    return sorted(ranked[: min(_MAX_ALPHABET, vocab_size // 3)])


def _stands_alone(character: str) -> bool:
    """Whether BERT splits it off as a word of its own: punctuation, symbols of ASCII, Chinese characters."""
    if character.isascii():
        return not character.isalnum()
    return unicodedata.category(character).startswith("P") or 0x4E00 <= ord(character) <= 0x9FFF


def _with_bert_template(text: str) -> str:
    tokenizer = Tokenizer.from_str(text)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return _in_order_of_ids(json.loads(tokenizer.to_str()))


def _in_order_of_ids(parts: dict[str, object]) -> str:
    model = parts["model"]
    assert isinstance(model, dict)
    model["vocab"] = dict(sorted(model["vocab"].items(), key=lambda entry: entry[1]))
    return json.dumps(parts, ensure_ascii=False, indent=2)
