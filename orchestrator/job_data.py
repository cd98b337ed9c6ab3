"""The `data` section of a job file: sources, cleaning, deduplication, privacy, tokenizer, splits, mixtures."""

from __future__ import annotations

import itertools
import math
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from orchestrator.job_section import Fraction, NotNegative, Off, Positive, Section, Switch, Threshold, off

MIN_BYTE_LEVEL_VOCAB = 257
"""256 bytes and the end-of-text token."""

Kind = Literal["text", "classification", "token-classification", "question-answering", "chat", "preference", "columns"]
Format = Literal["auto", "text", "jsonl", "csv", "tsv", "parquet", "arrow", "huggingface", "conll", "squad"]
SplitName = Literal["train", "validation", "test"]
PersonalData = Literal["email", "phone", "ip", "credit_card", "iban", "national_id", "api_key", "private_key"]
ColumnType = Literal["int64", "float32"]
_SPAN_KINDS = ("token-classification", "question-answering", "columns")
"""Kinds whose labels point into the text, or that have none: nothing in them may be replaced."""


class Source(Section):
    """Where documents come from: a file, a folder, or a glob; on a disk, `s3://` or `gs://`."""

    path: str = Field(min_length=1)
    """A file, folder or glob; `${python:stdlib}` and `${env:NAME}` are resolved where it is used. Relative
    paths start at the current directory. `.gz`, `.zst` and `.bz2` are unpacked as they are read."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Stands in reports and metrics; null: `source-N`, counted from 0."""
    format: Format = "auto"
    """`auto`: by the file's ending, and text where that says nothing. `text`: one document a file. `jsonl`: one
    a line. `csv`, `tsv`, `parquet`, `arrow`: one a row. `huggingface`: a folder that `save_to_disk` wrote. `conll`:
    a token and its tag a line. `squad`: SQuAD's JSON."""
    text: str = "text"
    """The field that holds the text."""
    fields: dict[str, str] = {}
    """For labelled data: the fields of a row that hold each part, such as `{text: sentence, label: polarity}`."""
    header: Annotated[list[str], Field(min_length=1)] | None = None
    """csv and tsv: names of the columns, where the first line is a row already."""
    document_start: str | None = Field(default=None, min_length=1)
    """text: a regular expression; each line that it matches begins a new document."""
    include: str | list[str] | None = None
    """Globs, relative to `path`, of the files to take from a folder; without one, all that the format is named for."""
    exclude: list[str] = []
    """Globs, relative to `path`, of files and folders to leave out; excluded folders are not walked."""
    split: SplitName | None = None
    """All of this source goes to this split; null: each document by a hash of its content."""
    weight: Annotated[float, Field(gt=0.0)] | None = None
    """Share of the training samples, relative to the other weights; null everywhere: each sample once an epoch."""

    @field_validator("document_start")
    @classmethod
    def _is_an_expression(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"document_start is no regular expression: {error}") from None
        return value


class Rules(Section):
    """Limits of single rules. A number replaces the preset's, `off` switches the rule off, null leaves the preset."""

    min_words: Threshold = None
    max_words: Threshold = None
    min_mean_word_length: Threshold = None
    max_mean_word_length: Threshold = None
    max_symbols_per_word: Threshold = None
    """`#` and ellipses, each divided by the number of words."""
    max_bullet_lines: Threshold = None
    """Share of lines that begin with a bullet."""
    max_ellipsis_lines: Threshold = None
    """Share of lines that end with an ellipsis."""
    min_alphabetic_words: Threshold = None
    """Share of words with a letter in them."""
    min_stop_words: Threshold = None
    """How many of the, be, to, of, and, that, have, with must occur."""
    max_duplicate_lines: Threshold = None
    max_duplicate_paragraphs: Threshold = None
    max_duplicate_line_characters: Threshold = None
    max_duplicate_paragraph_characters: Threshold = None
    max_top_2gram: Threshold = None
    """Share of characters in the most frequent pair of words; likewise for 3 and 4 words."""
    max_top_3gram: Threshold = None
    max_top_4gram: Threshold = None
    max_duplicate_5gram: Threshold = None
    """Share of characters in runs of 5 words that occurred before; likewise up to 10 words."""
    max_duplicate_6gram: Threshold = None
    max_duplicate_7gram: Threshold = None
    max_duplicate_8gram: Threshold = None
    max_duplicate_9gram: Threshold = None
    max_duplicate_10gram: Threshold = None
    line_terminal_punctuation: Switch = None
    """Lines that end without `.`, `!`, `?` or a quotation mark are taken out."""
    line_min_words: Threshold = None
    """Shorter lines are taken out."""
    line_max_word_length: Threshold = None
    """Lines with a longer word are taken out."""
    line_javascript: Switch = None
    """Lines that mention JavaScript are taken out."""
    line_policy: Switch = None
    """Lines about cookies, privacy policies and terms of use are taken out."""
    citations: Switch = None
    """Marks such as [3], [edit] and [citation needed] are taken out."""
    lorem_ipsum: Switch = None
    curly_bracket: Switch = None
    min_sentences: Threshold = None
    blocked_words: list[str] = []
    """A document with one of these words is removed."""


class Languages(Section):
    """Language identification (py3langid: 140 languages, offline)."""

    keep: list[str] = Field(min_length=1)
    """ISO 639-1 codes, of some languages ISO 639-3."""
    min_probability: Fraction = 0.5
    """A document below it in every language of `keep` is removed."""


class Clean(Section):
    """What is mended in a document, and which documents are removed."""

    unicode: Annotated[Literal["nfc", "nfkc", "off"], BeforeValidator(off)] = "nfc"
    control_characters: bool = True
    """Take out control characters other than tab and line end, and what does not belong in text (byte order marks)."""
    html: bool = False
    """Take the main text out of HTML pages, without navigation and other boilerplate."""
    quality: Annotated[Literal["off", "gopher", "c4"], BeforeValidator(off)] = "off"
    """The rules of Gopher (Rae et al. 2021, A.1.1) or of C4 (Raffel et al. 2020, 2.2)."""
    rules: Rules = Rules()
    language: Languages | None = None


class Near(Section):
    """MinHash with locality-sensitive hashing (Broder 1997); what it finds is compared exactly."""

    similarity: float = Field(default=0.8, gt=0.0, le=1.0)
    """Smallest Jaccard similarity of two documents' shingles that makes the later one a duplicate."""
    shingle_words: Positive = 5


class Evaluation(Section):
    """A set that a model will be measured with, and that must not be trained on."""

    path: str = Field(min_length=1)
    """A file, folder or glob, as in a source."""
    format: Format = "auto"
    text: str | None = None
    """The field that holds the text; null: every field with text."""


def _evaluation(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _near(value: Any) -> Any:
    return {} if value is True else off(value)


class Deduplicate(Section):
    """Of several same documents the first stays, over all sources; evaluation splits come before training."""

    exact: bool = True
    """The same text after NFC, with runs of white space as one space; case matters."""
    near: Annotated[Near | Off, BeforeValidator(_near)] = Near()
    """`off`: none."""
    against: list[Annotated[Evaluation, BeforeValidator(_evaluation)]] = []
    """Evaluation sets, a path each: documents that share a run of `ngram_words` words with one are removed."""
    ngram_words: Positive = 13


class Privacy(Section):
    """Personal data and secrets."""

    action: Annotated[Literal["redact", "drop", "off"], BeforeValidator(off)] = "redact"
    """`redact`: replaced by a placeholder of its kind, such as `<EMAIL>`. `drop`: the document is removed."""
    kinds: list[PersonalData] = Field(
        default=["email", "phone", "ip", "credit_card", "iban", "national_id", "api_key", "private_key"], min_length=1
    )
    phone_region: str = Field(default="US", pattern=r"^[A-Z]{2}$")
    """Country whose phone numbers are known without their country code."""


class Tokenizer(Section):
    """Either trained in the job (`train`), or given (`path`)."""

    train: Literal["bpe", "wordpiece"] | None = None
    """`bpe`: byte-level byte-pair encoding; `wordpiece`: BERT's. Trained on a sample of the training split."""
    vocab_size: int = Field(default=4096, ge=MIN_BYTE_LEVEL_VOCAB, le=1_000_000)
    """Tokens to train, special tokens included. A small text may yield fewer."""
    sample_bytes: Positive = 32_000_000
    """Text that the tokenizer is trained on, at most."""
    lowercase: bool = False
    """wordpiece: letters are lowered, accents taken off."""
    special_tokens: list[Annotated[str, Field(min_length=1)]] = []
    """Further tokens of their own, beside those that the kind of tokenizer brings."""
    path: Annotated[str, Field(min_length=1)] | None = None
    """A `tokenizer.json`, or a Hugging Face folder with one, to use as it is."""
    chat_template: Annotated[str, Field(min_length=1)] | None = None
    """Chats as text: `chatml`, a Jinja file, or Jinja itself; null: the given tokenizer's own, else chatml."""

    @model_validator(mode="before")
    @classmethod
    def _one_of_two(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        if data.get("path") is not None:
            given = ("train", "vocab_size", "sample_bytes", "lowercase", "special_tokens")
            clash = sorted(key for key in given if data.get(key) is not None)
            if clash:
                raise ValueError(f"path names a finished tokenizer, so {', '.join(clash)} cannot be given beside it")
            return data
        return {"train": "bpe", **data}

    @model_serializer(mode="wrap")
    def _as_it_may_be_read(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return whole(self) if self.path is None else {"path": self.path, "chat_template": self.chat_template}


class Split(Section):
    """Shares of the documents kept out of training, chosen by a hash of their content."""

    validation: Fraction = 0.01
    test: Fraction = 0.0

    @model_validator(mode="after")
    def _leave_some_to_train(self) -> Split:
        if self.validation + self.test >= 1.0:
            raise ValueError(f"validation {self.validation} + test {self.test} leave nothing to train on")
        return self


class Component(Section):
    """A prepared dataset as a part of a mixture."""

    dataset: str = Field(min_length=1)
    """Its name in the store, or a folder; `s3://` and `gs://` are read through a local cache."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Stands in metrics and in `curriculum`; null: the dataset's name."""
    weight: Annotated[float, Field(gt=0.0)] | None = None
    """As in a source."""


class Phase(Section):
    """A range of steps with weights of its own."""

    until_step: Positive | None = None
    """The last step of the phase; null: to the end."""
    weights: dict[str, Annotated[float, Field(ge=0.0)]] = Field(min_length=1)
    """Weight by name of source or dataset; one that is not named is left out."""

    @model_validator(mode="after")
    def _some_weight(self) -> Phase:
        if not any(self.weights.values()):
            raise ValueError("a phase needs a weight above 0")
        return self


class Data(Section):
    """Text to shards."""

    kind: Kind = "text"
    """`text`: documents for pre-training. The others are labelled: a row is a sample."""
    sources: list[Source] = []
    datasets: list[Component] = []
    """Instead of sources: prepared datasets of one tokenizer, mixed without being written again."""
    clean: Clean = Clean()
    deduplicate: Deduplicate = Deduplicate()
    privacy: Privacy = Privacy()
    tokenizer: Tokenizer = Tokenizer(train="bpe")
    split: Split = Split()
    labels: list[str] | None = None
    """classification and token-classification: the labels there may be; null: those that occur, sorted."""
    columns: dict[str, ColumnType | Annotated[str, Field(pattern=r"^(int64|float32)\[[1-9][0-9]*\]$")]] = {}
    """columns: what to take of each row, by name: `int64`, `float32`, or a list of a size, such as `float32[784]`."""
    curriculum: list[Phase] = []
    """Weights by ranges of steps, in order; empty: the weights of sources or datasets all the way."""
    sentence_ends: bool = False
    """text: note where sentences end, which next-sentence prediction needs."""
    max_document_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 16 << 20
    """A longer text file is read as several documents, cut at line ends; a longer row is rejected."""
    cache_bytes: Positive = 64 << 30
    """Shards of datasets on an object store are kept on the local disk while a run reads them: at most this much, and
    no less than all that the run reads."""
    max_rejected: NotNegative = 1000
    """Rows and files that cannot be read are named in `rejected.jsonl`; more than this many stop the stage."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, data: object) -> object:
        """Labelled rows are short and often alike: near-duplicates stay. Text that labels point into is not edited."""
        if not isinstance(data, dict) or data.get("kind", "text") == "text":
            return data
        filled = dict(data)
        if isinstance(filled.setdefault("deduplicate", {}), dict):
            filled["deduplicate"] = {"near": "off", **filled["deduplicate"]}
        if data["kind"] in _SPAN_KINDS and isinstance(filled.setdefault("privacy", {}), dict):
            filled["privacy"] = {"action": "off", **filled["privacy"]}
        return filled

    @model_validator(mode="after")
    def _fits_together(self) -> Data:
        if bool(self.sources) == bool(self.datasets):
            raise ValueError("give either data.sources or data.datasets")
        names = self.part_names
        if len(set(names)) < len(names):
            raise ValueError(f"names of sources and datasets must differ; there are {', '.join(sorted(names))}")
        weights = [s.weight for s in self.sources] + [d.weight for d in self.datasets]
        if any(w is not None for w in weights) and any(w is None for w in weights):
            raise ValueError("either every source has a weight or none")
        if self.kind in _SPAN_KINDS and self.privacy.action == "redact":
            raise ValueError(f"privacy.action redact would move what labels point to in {self.kind}; use drop or off")
        self._check_text_only()
        if (self.kind == "columns") != bool(self.columns):
            raise ValueError("data.columns names what kind: columns takes of each row, and goes with it only")
        self._check_curriculum(set(names))
        return self

    def _check_text_only(self) -> None:
        """What would do nothing to labelled rows is refused, not ignored."""
        clean = self.clean
        asked = {
            "clean.html": clean.html,
            "clean.quality": clean.quality != "off",
            "clean.rules": clean.rules != Rules(),
            "clean.language": clean.language is not None,
            "sentence_ends": self.sentence_ends,
        }
        found = [f"data.{name}" for name, given in asked.items() if given]
        if self.kind != "text" and found:
            raise ValueError(f"{', '.join(found)} goes with data.kind text only, not with {self.kind}")

    def _check_curriculum(self, names: set[str]) -> None:
        for phase in self.curriculum:
            if unknown := sorted(set(phase.weights) - names):
                raise ValueError(f"curriculum weighs {', '.join(unknown)}; there are {', '.join(sorted(names))}")
        ends = [math.inf if phase.until_step is None else phase.until_step for phase in self.curriculum]
        if any(a >= b for a, b in itertools.pairwise(ends)):
            raise ValueError("curriculum needs rising until_step, and null only in the last phase")

    @property
    def part_names(self) -> list[str]:
        """The names of sources, or of datasets, in order."""
        if self.sources:
            return [s.name or f"source-{i}" for i, s in enumerate(self.sources)]
        return [d.name or d.dataset.rstrip("/").rpartition("/")[2] for d in self.datasets]
