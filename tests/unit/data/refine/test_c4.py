"""The lines, citations and sentences of C4."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.refine.c4 import C4, LineRules, count_sentences, utf8_bytes, without_citations
from orchestrator.data.refine.clean import Cleaner
from orchestrator.job_data import Clean

PAGE = """\
Home | About | Contact
This is the first sentence of a page about ships.
It goes on with more words [3] about the sea. [citation needed]
Too short.
Please turn on JavaScript in your browser to go on.
We value you, so read our Privacy Policy before you go.
And here the story ends, as stories do...
He said that he would "come back to the sea."
"""


def test_a_page_keeps_its_prose():
    result = Cleaner(Clean(quality="c4")).clean(PAGE)
    assert result.rule is None
    assert result.text.split("\n") == [
        "This is the first sentence of a page about ships.",
        "It goes on with more words about the sea.",
        'He said that he would "come back to the sea."',
    ]
    sizes = {
        "citations": len(" [3]") + len(" [citation needed]"),
        "line_terminal_punctuation": len("Home | About | Contact\nAnd here the story ends, as stories do...\n\n"),
        "line_min_words": len("Too short.\n"),
        "line_javascript": len("Please turn on JavaScript in your browser to go on.\n"),
        "line_policy": len("We value you, so read our Privacy Policy before you go.\n"),
    }
    # The empty string after the last line end is a line too: its line end is the one before it.
    assert dict(result.taken) == sizes


@pytest.mark.parametrize(
    "phrase",
    [
        "terms of use",
        "privacy policy",
        "cookie policy",
        "uses cookies",
        "use of cookies",
        "USE COOKIES",
        "Terms of Use",
    ],
)
def test_policy_lines(phrase):
    text, taken = LineRules({"line_policy": 1}).apply(f"stays\nabout {phrase} here\nstays")
    assert (text, taken) == ("stays\nstays", {"line_policy": len(f"about {phrase} here\n")})


@pytest.mark.parametrize(
    ("line", "stays"),
    [
        ("An end.", True),
        ("An end!  ", True),
        ("An end?", True),
        ('An "end"', True),
        ("An \u201cend\u201d", True),
        ("No end", False),
        ("No end...", False),
        ("No end\u2026", False),
        ("No end:", False),
        ("", False),
    ],
)
def test_terminal_punctuation(line, stays):
    assert LineRules({"line_terminal_punctuation": 1}).apply(f"One.\n{line}")[0] == (
        f"One.\n{line}" if stays else "One."
    )


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("word [12] word", "word word"),
        ("word.[1][2]", "word."),
        ("History[edit]\nText", "History\nText"),
        ("so [citation needed].", "so."),
        ("none []", "none"),
        ("kept [a] [1, 2] [\u0661]", "kept [a] [1, 2] [\u0661]"),
        ("\n[1] first", "\n first"),
    ],
)
def test_citations(text, mended):
    assert without_citations(text) == mended


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        (" \n\n", 0),
        ("One.", 1),
        ("One", 1),
        ("One. Two", 2),
        ("One.\nTwo\nThree!", 3),
        ("What?! Really...", 2),
        ("He said \u201cno.\u201d (Then yes.) \n", 2),
        ("Version 3.11 of it.", 1),
        ("\u4eca\u65e5\u306f\u3002\u306f\u3044\uff01", 2),
    ],
)
def test_sentences(text, count):
    assert count_sentences(text) == count


def test_lorem_ipsum_counts_only_in_lines_that_stay():
    cleaner = Cleaner(Clean(quality="c4", rules={"min_sentences": "off"}))
    kept = "Here are enough words to stay in."
    assert cleaner.clean(f"{kept}\nLorem ipsum").rule is None
    assert cleaner.clean(f"{kept}\nLorem ipsum dolor sit amet, consectetur.").rule == "lorem_ipsum"


def test_a_page_without_a_line_left_is_empty():
    result = Cleaner(Clean(quality="c4")).clean("Home\nAbout")
    assert (result.text, result.rule, result.taken) == ("", "empty", (("line_terminal_punctuation", 10),))


@given(st.lists(st.sampled_from(["", "Five words stand in here.", "no", "\u4e2d javascript.", "w" * 1001, "é"])))
def test_what_the_lines_lose_adds_up(lines):
    text = "\n".join(lines)
    kept, taken = LineRules(C4).apply(text)
    assert utf8_bytes(text) - utf8_bytes(kept) == sum(taken.values())
    assert all(taken.values())


@pytest.mark.timeout(20)
@pytest.mark.parametrize("preset", ["c4", "gopher"])
@pytest.mark.parametrize("piece", ["[", "[1", " ", ".", '."', "'", "\n", "[ ", "\n ", "a ", "#"])
def test_no_text_takes_long(preset, piece):
    Cleaner(Clean(quality=preset, rules={"max_words": "off"})).clean("The start of " + piece * 200_000 + "x and.")
