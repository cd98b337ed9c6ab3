"""The door to the tokenizers: train one, read one, know one, encode with it. The home of the tokenizers library."""

from orchestrator.data.tokens.encoder import Encoder, continuations
from orchestrator.data.tokens.facts import GivenTokenizer, TokenizerFacts, facts, load, read_given, read_tokenizer
from orchestrator.data.tokens.sentences import sentence_ends
from orchestrator.data.tokens.train import (
    BERT_TOKENS,
    CHAT_TOKENS,
    END_OF_TEXT,
    special_tokens,
    train_bpe,
    train_tokenizer,
)

__all__ = [
    "BERT_TOKENS",
    "CHAT_TOKENS",
    "END_OF_TEXT",
    "Encoder",
    "GivenTokenizer",
    "TokenizerFacts",
    "continuations",
    "facts",
    "load",
    "read_given",
    "read_tokenizer",
    "sentence_ends",
    "special_tokens",
    "train_bpe",
    "train_tokenizer",
]
