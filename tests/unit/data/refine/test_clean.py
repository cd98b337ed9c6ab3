"""Mending: what is taken out, that it is counted, and that doing it twice changes nothing."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.refine.c4 import utf8_bytes
from orchestrator.data.refine.clean import Cleaner
from orchestrator.job_data import Clean

DEFAULT = Cleaner(Clean())
SETTINGS = {
    "default": Clean(),
    "nfkc": Clean(unicode="nfkc"),
    "off": Clean(unicode="off", control_characters=False),
    "gopher": Clean(quality="gopher"),
    "c4": Clean(quality="c4"),
    "blocked": Clean(rules={"blocked_words": ["a", "b c"]}),
    "html": Clean(html=True),
}
CLEANERS = {name: Cleaner(settings) for name, settings in SETTINGS.items()}

BROKEN = ("\r", "\n", "\r\n", "\x00", "\x0c", "\x85", "\ufeff", "\ufffe", "\U0001ffff", "\ud800", "\udc00", "\u200d")
COMPOSED = ("e\u0301", "\u0301", "\u1100", "\u1161", "\ufb01", "\u00a0")
FOR_RULES = ("[1]", "#", "...", "{", "- ", ". ", "a a a ", "<p>")
marks = st.sampled_from(BROKEN + COMPOSED + FOR_RULES)
any_text = st.lists(marks | st.text(max_size=6), max_size=25).map("".join)


@pytest.mark.parametrize(
    ("text", "mended", "taken"),
    [
        ("plain text\n\twith a tab", "plain text\n\twith a tab", {}),
        ("a\r\nb\rc\n", "a\nb\nc\n", {"line_ends": 1}),
        ("a\rb", "a\nb", {"line_ends": 0}),
        ("\ufeffa\x00b\x7fc\x1b[0m", "abc[0m", {"control_characters": 6}),
        ("page\x0cpage\x0bpage", "page\npage\npage", {"control_characters": 0}),
        ("one\x85two\x80", "one\ntwo", {"control_characters": 3}),
        ("a\ufdd0b\ufffec\U0010ffffd\U0002fffe", "abcd", {"control_characters": 14}),
        ("a\ud800b", "ab", {"control_characters": 3}),
        (
            "\u0645\u06cc\u200c\u062e \U0001f469\u200d\U0001f680",
            "\u0645\u06cc\u200c\u062e \U0001f469\u200d\U0001f680",
            {},
        ),
        ("\U00020000 \U000e0001 \ufffd", "\U00020000 \U000e0001 \ufffd", {}),
        ("e\u0301", "\u00e9", {"unicode": 1}),
        ("\u0958", "\u0915\u093c", {"unicode": -3}),
        ("e\x00\u0301", "\u00e9", {"control_characters": 1, "unicode": 1}),
        ("\ufb01n\u00a0\u00b2", "\ufb01n\u00a0\u00b2", {}),
    ],
)
def test_what_is_mended(text, mended, taken):
    result = DEFAULT.clean(text)
    assert (result.text, result.rule, dict(result.taken)) == (mended, None, taken)
    assert DEFAULT.normalise(text) == mended


def test_settings_switch_each_part():
    text = "\ufb01\x00e\u0301\r\n"
    assert Cleaner(Clean(unicode="nfkc")).clean(text).text == "fi\u00e9\n"
    assert Cleaner(Clean(unicode="off")).clean(text).text == "\ufb01e\u0301\n"
    assert Cleaner(Clean(control_characters=False)).clean(text).text == "\ufb01\x00\u00e9\n"


@pytest.mark.parametrize("text", ["", " \n\t", "\x00\ufeff", "\u3000\r\n"])
def test_blank_documents_are_empty(text):
    assert DEFAULT.clean(text).rule == "empty"


def test_each_character_by_its_category():
    cleaner = Cleaner(Clean(unicode="off"))
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        is_nothing = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF or code == 0xFEFF
        is_control = unicodedata.category(char) in ("Cc", "Cs") and char not in "\t\n"
        assert (cleaner.normalise(char) != char) is (is_nothing or is_control), hex(code)


@given(any_text)
def test_cleaning_twice_changes_nothing(text):
    once = DEFAULT.clean(text)
    twice = DEFAULT.clean(once.text)
    assert (twice.text, twice.rule, twice.taken) == (once.text, once.rule, ())
    assert unicodedata.is_normalized("NFC", once.text)
    once.text.encode("utf-8")


@given(any_text, st.sampled_from(sorted(CLEANERS)))
def test_no_text_raises_and_what_is_taken_adds_up(text, name):
    result = CLEANERS[name].clean(text)
    assert utf8_bytes(text) - utf8_bytes(result.text) == sum(size for _, size in result.taken)
    assert len(dict(result.taken)) == len(result.taken)


@given(any_text)
def test_a_query_is_normalised_as_the_text_was(text):
    assert DEFAULT.normalise(text) == DEFAULT.clean(text).text
    assert CLEANERS["c4"].normalise(text) == DEFAULT.normalise(text)


def test_each_step_sees_what_the_one_before_left():
    rules = {"min_sentences": 1, "line_min_words": 1, "blocked_words": ["the\u0301"]}
    cleaner = Cleaner(Clean(html=True, quality="c4", rules=rules))
    result = cleaner.clean("<p>Menu</p><p>The caf\x00e\u0301 [1] is open.</p>")
    assert (result.text, result.rule) == ("The caf\u00e9 is open.", None)
    assert [name for name, _ in result.taken] == ["html", "citations", "line_terminal_punctuation"]
    result = cleaner.clean("Menu\r\nDrink th\x00e\u0301[1]. ")
    assert (result.text, result.rule) == ("Drink th\u00e9. ", "blocked_words")
    steps = ["line_ends", "control_characters", "unicode", "citations", "line_terminal_punctuation"]
    assert [name for name, _ in result.taken] == steps


def test_results_travel_between_processes():
    result = DEFAULT.clean("a\x00")
    assert pickle.loads(pickle.dumps(result)) == result


def test_what_is_not_asked_for_is_not_imported():
    code = (
        "import sys; from orchestrator.data.refine.clean import Cleaner; from orchestrator.job_data import Clean;"
        "Cleaner(Clean(quality='gopher')); sys.exit('trafilatura' in sys.modules or 'py3langid' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.fixture(scope="module")
def real_data() -> Path:
    folder = os.environ.get("SLIPWAY_TEST_DATA")
    if not folder:
        pytest.skip("SLIPWAY_TEST_DATA is not set")
    return Path(folder)


def test_most_of_an_encyclopedia_stays(real_data):
    text = gzip.decompress((real_data / "wikitext-2" / "valid.txt.gz").read_bytes()).decode("utf-8")
    text = re.sub(r" @(.)@ ", r"\1", re.sub(r" ([.,;:!?)]|'s)", r"\1", text))
    articles = [a for a in re.split(r"(?m)^(?= = [^=].*[^=] = $)", text) if a.strip()]
    for preset in ("gopher", "c4"):
        removed = sum(CLEANERS[preset].clean(article).rule is not None for article in articles)
        assert removed <= 0.1 * len(articles)


def test_mails_with_menus_and_numbers_go(real_data):
    with gzip.open(real_data / "messy" / "enron1_emails.jsonl.gz", "rt", encoding="utf-8") as lines:
        mails = [json.loads(line)["text"] for _, line in zip(range(500), lines, strict=False)]
    kept = [CLEANERS["gopher"].clean(mail) for mail in mails]
    assert sum(result.rule is not None for result in kept) > 0.3 * len(mails)
    assert all(len(result.text.split()) >= 50 for result in kept if result.rule is None)
