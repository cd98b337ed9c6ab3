"""HTML to text: the main text stays, whatever state a page is in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.refine.clean import Cleaner
from orchestrator.data.refine.html import is_html, main_text
from orchestrator.job_data import Clean

PROSE = "The harbour lies in the north of the island, and its light has burned there for two hundred years. " * 4
PAGE = f"""<!doctype html>
<html><head><title>Harbours</title><script>var tracked = true;</script><style>p {{ color: red }}</style></head>
<body><nav><a href="/">Home</a> <a href="/ships">All ships</a></nav>
<article><h1>The harbour</h1><p>{PROSE}</p><p>Fish &amp; ships &lt;here&gt;.</p>
<table><tr><td>Depth</td><td>12 m</td></tr></table></article>
<div class="comments" id="comments"><p>First! says a reader.</p></div>
<footer>Imprint</footer></body></html>"""


def test_the_main_text_stays_and_boilerplate_goes():
    text = main_text(PAGE)
    assert PROSE.strip() in text
    assert "Fish & ships <here>." in text
    assert "Depth" in text
    assert "12 m" in text
    for gone in ("tracked", "color", "All ships", "First! says", "<p>"):
        assert gone not in text


@pytest.mark.parametrize(
    ("fragment", "text"),
    [
        ("<p>Hello <b>world</b></p>", "Hello world"),
        ("foo <b>bar</b> baz", "foo bar baz"),
        ("<p>one</p><p>two</p>", "one\ntwo"),
        ("one<br>two", "one\ntwo"),
        ("<p>never closed", "never closed"),
        ("<p>\ud800x</p>", "x"),
        ('<?xml version="1.0" encoding="latin-1"?><html><body><p>\u00e4\u6f22</p></body></html>', "\u00e4\u6f22"),
    ],
)
def test_fragments(fragment, text):
    assert main_text(fragment) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("if a < b and c > d", False),
        ("the <unk> of <EMAIL>", False),
        ("vector<int> x; a <b", False),
        ("List<String>", False),
        ("<p>", True),
        ("</DIV>", True),
        ("<br/>", True),
        ('see <a href="x">', True),
        ("<!DOCTYPE html>", True),
        ("", False),
    ],
)
def test_only_tags_of_html_make_a_page(text, expected):
    assert is_html(text) is expected


def test_text_passes_and_a_page_with_nothing_is_removed():
    cleaner = Cleaner(Clean(html=True))
    plain = "a < b, and <unk>\n\n  stays as it is"
    assert cleaner.clean(plain).text == plain
    assert cleaner.clean(plain).taken == ()
    page = "<html><head><title>T</title></head><body><script>x</script></body></html>"
    result = cleaner.clean(page)
    assert (result.rule, result.text, result.taken) == ("html", "", (("html", len(page)),))
    assert cleaner.clean("  ").rule == "empty"


def test_html_is_left_alone_where_it_is_not_asked_for():
    assert Cleaner(Clean()).clean(PAGE).text == PAGE


def test_characters_of_entities_are_cleaned_as_others_are():
    result = Cleaner(Clean(html=True)).clean("<p>Two words&#13;&#10;e&#769;nd &#xfeff;here</p>")
    assert result.text == "Two words \u00e9nd here"
    assert len("<p>Two words&#13;&#10;e&#769;nd &#xfeff;here</p>") - len(result.text.encode()) == sum(
        size for _, size in result.taken
    )


pieces = st.sampled_from(
    [
        "<p>",
        "</p>",
        "<div",
        ">",
        "<html>",
        "<body>",
        "<!--",
        "-->",
        "<![CDATA[",
        "<?xml ",
        "text",
        "&amp",
        "\x00",
        "\ud800",
    ]
)


@given(st.lists(pieces | st.text(max_size=5), max_size=30).map("".join))
def test_no_page_raises(page):
    main_text(page)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("page", ["<div>" * 20_000, "<a " * 20_000, "<p" + " " * 50_000, "<table><tr><td>" * 2000])
def test_hostile_pages_end(page):
    assert Cleaner(Clean(html=True)).clean(page + "x").rule in (None, "html")


def test_a_page_that_breaks_the_parser_yields_nothing(monkeypatch):
    def fails(*_, **__):
        raise RecursionError("too deep")

    monkeypatch.setattr("trafilatura.extract", fails)
    assert Cleaner(Clean(html=True)).clean(PAGE).rule == "html"
