"""Which documents are exactly the same: a digest of their content. Pure."""

from __future__ import annotations

import hashlib
import unicodedata

DIGEST_BYTES = 16
"""128 bits: among 10^12 different documents, two share a digest with probability 1.5e-15 (birthday bound)."""


def content_digest(text: str) -> bytes:
    """BLAKE2b, 16 bytes, of a text after NFC, with each run of white space as one space and none at its ends.

    Case and punctuation count. White space is what `str.split` takes for it.
    """
    composed = text if text.isascii() else unicodedata.normalize("NFC", text)
    # Text from JSON may hold lone surrogates; they have no UTF-8, and must not stop a whole preparation.
    plain = " ".join(composed.split()).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(plain, digest_size=DIGEST_BYTES).digest()
