"""The main text of HTML pages. The one home of trafilatura."""

from __future__ import annotations

import logging
import re

import trafilatura

# It logs each page that it finds nothing in; what happens to a page stands in the report already.
logging.getLogger("trafilatura").setLevel(logging.CRITICAL)

_TAGS = (
    "a|abbr|address|article|aside|audio|b|base|blockquote|body|br|button|canvas|caption|center|cite|code|col|dd|del|"
    "details|dfn|dialog|div|dl|dt|em|embed|fieldset|figcaption|figure|font|footer|form|frame|frameset|h[1-6]|head|"
    "header|hr|html|i|iframe|img|input|ins|kbd|label|legend|li|link|main|map|mark|menu|meta|nav|noscript|object|ol|"
    "optgroup|option|p|param|picture|pre|q|s|samp|script|section|select|small|source|span|strike|strong|style|sub|"
    "summary|sup|svg|table|tbody|td|textarea|tfoot|th|thead|time|title|tr|tt|u|ul|var|video"
)
_MARKUP = re.compile(rf"<(?:!doctype\s|/?(?:{_TAGS})(?:\s[^<>]*)?/?>)", re.IGNORECASE)
_PAGE = re.compile(r"<(?:!doctype|html|head|body)\b", re.IGNORECASE)
_XML_DECLARATION = re.compile(r"\s*<\?xml[^<>]*>")


def is_html(text: str) -> bool:
    """Whether a tag of HTML occurs; other words in angle brackets, such as <unk> or <EMAIL>, are text."""
    return "<" in text and _MARKUP.search(text) is not None


def main_text(page: str) -> str:
    """The text of a page or a part of one without navigation, comments of readers and other boilerplate.

    Recall before precision: in doubt text stays, and tables do. Where no main text is found, all text of the body.
    Empty where there is none, and for a page that cannot be parsed; never raises for what is in a page.
    """
    if not page.isascii():
        page = page.encode("utf-8", "ignore").decode("utf-8")  # lone surrogates would stop the parser
    page = _XML_DECLARATION.sub("", page, count=1) if page.lstrip()[:5] == "<?xml" else page
    if _PAGE.search(page) is None:
        page = f"<html><body><div>{page}</div></body></html>"  # the parser wants a whole document
    try:
        found = trafilatura.extract(page, favor_recall=True, include_comments=False, include_tables=True)
        return found or trafilatura.html2txt(page)
    except Exception:  # noqa: BLE001 - a page may break any part of a foreign parser, and must not end a job
        return ""
