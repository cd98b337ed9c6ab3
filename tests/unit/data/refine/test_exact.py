"""The digest of a document's content."""

from __future__ import annotations

import gzip
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.refine.exact import content_digest


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a b", " a \n\t b\r\n", True),
        ("a b", "a\u00a0\u3000b", True),
        ("a b", "ab", False),
        ("a b", "A b", False),
        ("a b", "a b.", False),
        ("e\u0301t\u00e9", "\u00e9te\u0301", True),
        ("\u2002x", "x", True),
        ("ﬁ", "fi", False),
        ("\ud800", "\ud801", False),
        ("", " \n", True),
    ],
)
def test_what_is_the_same(one: str, other: str, same: bool) -> None:
    assert (content_digest(one) == content_digest(other)) is same


@given(st.text(), st.text())
def test_same_digest_same_normal_form(one: str, other: str) -> None:
    forms = [" ".join(unicodedata.normalize("NFC", text).split()) for text in (one, other)]
    assert (content_digest(one) == content_digest(other)) is (forms[0] == forms[1])


@given(st.text())
def test_the_normal_form_has_the_same_digest(text: str) -> None:
    assert content_digest(f"\n{unicodedata.normalize('NFD', text)}  ") == content_digest(text)
    assert len(content_digest(text)) == 16


def test_it_never_changes() -> None:
    """It decides splits and is stored: BLAKE2b-128 of "abc", computed with coreutils' b2sum -l 128."""
    assert content_digest(" abc\n").hex() == "cf4ab791c62b8d2b2109c90275287816"


def test_repeats_of_real_messages_are_counted() -> None:
    folder = os.environ.get("SLIPWAY_TEST_DATA")
    if not folder:
        pytest.skip("SLIPWAY_TEST_DATA is not set")
    lines = gzip.decompress(Path(folder, "messy/sms_spam.tsv.gz").read_bytes()).decode().rstrip("\n").split("\n")[1:]
    texts = [line.split("\t", 1)[1] for line in lines]
    plain = {" ".join(unicodedata.normalize("NFC", text).split()) for text in texts}
    assert len({content_digest(text) for text in texts}) == len(plain)
    assert 390 < len(texts) - len(plain) < 430  # 5,171 of 5,574 differ to the byte; some more only in white space
