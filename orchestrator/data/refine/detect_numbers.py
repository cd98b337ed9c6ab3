"""The one pass over a text's digits, and what is told from digits alone: cards, IBANs and IP addresses. Pure.

Numbers are rare in prose and common in code, and most are short. So one search, led by a digit, picks the *runs*:
digits joined by single separators, at least seven characters; and *mixed* codes, which begin with letters. Only these
are looked at again, by each of the kinds that are made of digits.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import NamedTuple

from stdnum import iban, luhn
from stdnum.exceptions import ValidationError

SEPARATORS = " .\\-/\u00a0\u2009\u202f\u2010\u2011\u2012\u2013"
"""Between the groups of a number, as a part of a character class: no-break and thin spaces, hyphens, the en dash."""
_SHAPE = bytes(ord("0") if chr(byte).isdecimal() and byte < 128 else byte for byte in range(256))
"""Makes each digit a 0, so that the search is led by one literal character: twice as fast as by a class."""
_RUN = re.compile(
    # `?` stands for all that is not ASCII, such as a no-break space or a dash.
    rb"0(?:(?<!00)(?:[0() .\-/?]{5,}0"
    # Six digits and a letter: Finnish ids.
    rb"|(?=00000[A-FU-Y]000))"
    # Two letters in front: IBAN, NINO; four: CURP; six: codice fiscale.
    rb"|(?<=[A-Z]0)(?:(?<=(?<![A-Za-z0-9])[A-Z]{2}0)|(?<=(?<![A-Za-z0-9])[A-Z]{4}0)|(?<=(?<![A-Za-z0-9])[A-Z]{6}0))"
    rb"(?=0 ?[A-Z0]{4}))"
)
_YEARS = re.compile(r"(?:1[5-9]|20)[0-9]{2} ?[/\-\u2013] ?(?:(?:1[5-9]|20)[0-9]{2}|[0-9]{2})\Z")
"""`1939 - 1945`: by far the most frequent run in prose, and never one of the kinds."""
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{2,4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_CARD = re.compile(
    r"(?<![\w+])(?<![0-9][.,\-/])(?:[0-9]{4}([ .-])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?"
    r"|3[0-9]{3}([ .-])[0-9]{6}\2[0-9]{4,5}|[3-69][0-9]{12,18}|2[0-9]{15})(?![\w])(?![.,\-/][0-9])"
)
_ISSUERS = (  # prefixes and lengths: ISO/IEC 7812, as listed by the networks
    (re.compile(r"4"), (13, 16, 19)),  # Visa
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),  # Mastercard
    (re.compile(r"3[47]"), (15,)),  # American Express
    (re.compile(r"6011|64[4-9]|65"), (16, 19)),  # Discover
    (re.compile(r"30[0-5]|3095|36|3[89]"), (14, 16)),  # Diners Club
    (re.compile(r"35(?:2[89]|[3-8])"), (16,)),  # JCB
    (re.compile(r"62"), (16, 17, 18, 19)),  # UnionPay
    (re.compile(r"50|5[6-8]|6[37]"), (13, 16, 18, 19)),  # Maestro
)
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?<![\w.])(?<![\w.][-+])(?:{_OCTET}\.){{3}}{_OCTET}(?!\w|\.\w|-\w)")
_NOT_AN_ADDRESS = re.compile(
    r"(?:\bv|\bver|version|release|revision|\brev|build|firmware|\bfw|section|\bsec|chapter|clause|appendix|figure|\bfig"
    r"|table|upgrade|\boid|§|[=<>~!^]=|[~^])[.:s]{0,2}['\"]? ?\Z|[A-Z][A-Za-z]+/\Z",
    re.IGNORECASE,
)
_NETWORK = re.compile(
    r"(?<![\w<])(?:ip|ipv4|address|addr|host|server|nameserver|dns|ping|client|src|dst)\b", re.IGNORECASE
)
_NETWORK_AFTER = re.compile(r":[0-9]{2,5}\b|/[0-9]{1,2}\b")
_IPV6 = re.compile(r":(?<=(?<![\w:.])[23][0-9A-Fa-f]{3}:)(?=[0-9A-Fa-f:])")
_IPV6_WHOLE = re.compile(r"[0-9A-Fa-f:]{6,39}(?![\w:])")
_MAX_SECTION = 32
"""Four numbers below this may be a section or a version as well as an address: then the words around decide."""


class Run(NamedTuple):
    """A stretch of digits and separators, or (mixed) the first digit of a code with letters."""

    start: int
    end: int
    mixed: bool


def runs(text: str) -> list[Run]:
    """All runs, in order."""
    shape = text.encode("ascii", "replace").translate(_SHAPE)  # one byte a character: places stay the same
    spans = (match.span() for match in _RUN.finditer(shape))
    return [Run(a, b, b - a == 1) for a, b in spans if b - a > 13 or not _YEARS.match(text, a, b)]


def ibans(text: str, run: Run) -> Iterator[tuple[int, int]]:
    """An IBAN whose check digits begin the run (ISO 13616; structure of the country and check digits are verified)."""
    start = run.start - 2
    if start < 0 or not text[start : run.start].isalpha():
        return
    match = _IBAN.match(text, start, start + 48)
    end = match.end() if match else start
    while end - start >= 15:  # a word or number may follow: the longest part that is valid counts
        if _is_iban(text[start:end]):
            yield start, end
            return
        end = max(text.rfind(" ", start, end), start)


def cards(text: str, run: Run) -> Iterator[tuple[int, int]]:
    """Payment cards: 13 to 19 digits with an issuer's prefix and length, and a valid check digit (Luhn)."""
    if run.end - run.start < 13:
        return
    for match in _CARD.finditer(text, run.start, min(len(text), run.end + 2)):
        digits = re.sub(r"\D", "", match[0])
        if any(len(digits) in sizes and prefix.match(digits) for prefix, sizes in _ISSUERS) and luhn.is_valid(digits):
            yield match.span()


def ipv4(text: str, run: Run) -> Iterator[tuple[int, int]]:
    """Public IPv4 addresses that are not version or section numbers.

    Private, loopback, link-local, multicast, documentation and reserved ranges identify nobody and stay.
    """
    for match in _IPV4.finditer(text, run.start, min(len(text), run.end + 3)):
        if _is_public(match[0]) and not _is_version(text, match.start(), match.end()):
            yield match.span()


def ipv6(text: str) -> Iterator[tuple[int, int]]:
    """Global unicast IPv6 addresses (2000::/3, RFC 4291), without those for documentation."""
    for match in _IPV6.finditer(text):
        start = match.start() - 4
        whole = _IPV6_WHOLE.match(text, start)
        if whole is None:
            continue
        address = whole[0] if whole[0].endswith("::") else whole[0].rstrip(":")
        if _is_public(address):
            yield start, start + len(address)


def _is_iban(value: str) -> bool:
    try:
        # The check of the country's own digits needs lists of banks, which age: the structure is checked all the same.
        iban.validate(value, check_country=False)
    except ValidationError:
        return False
    return True


def _is_public(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return parsed.is_global and not parsed.is_multicast


def _is_version(text: str, start: int, end: int) -> bool:
    first = max(0, start - 24)
    first = max(first, text.rfind("\n", first, start) + 1)
    if _NOT_AN_ADDRESS.search(text, first, start):
        return True
    if all(int(part) < _MAX_SECTION for part in text[start:end].split(".")):
        return not (_NETWORK.search(text, first, start) or _NETWORK_AFTER.match(text, end))
    return False
