"""Finds national identity, tax and health numbers of persons; with `detect_numbers`, a home of python-stdnum. Pure.

Each number is verified by its check digits where it has any. Check digits alone say little (one number in ten passes
Luhn), so digits must also be written in the number's own groups (`536-22-4399`), or stand after a word that names it
(`SSN 536224399`). Only codes that hardly occur by chance need neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from stdnum.au import tfn
from stdnum.be import nn
from stdnum.br import cpf
from stdnum.ca import sin
from stdnum.ch import ssn as ahv
from stdnum.cl import rut
from stdnum.cn import ric
from stdnum.cz import rc
from stdnum.de import idnr
from stdnum.dk import cpr
from stdnum.es import dni, nie
from stdnum.fi import hetu
from stdnum.fr import nir
from stdnum.gb import nhs
from stdnum.ie import pps
from stdnum.in_ import aadhaar
from stdnum.it import codicefiscale
from stdnum.kr import rrn
from stdnum.mx import curp
from stdnum.nl import bsn
from stdnum.no import fodselsnummer
from stdnum.pl import pesel
from stdnum.ro import cnp
from stdnum.se import personnummer
from stdnum.tr import tckimlik
from stdnum.us import ssn
from stdnum.za import idnr as za_idnr

from orchestrator.data.refine.detect_numbers import Run

_SEPARATORS = re.compile(r"[ .\-/]")
_NINO = re.compile(r"(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z][0-9]{6}[A-D]\Z")
"""UK national insurance number: HMRC, National Insurance Manual, NIM39110."""


def _is_nino(number: str) -> bool:
    return _NINO.match(number.replace(" ", "")) is not None


def _is_ssn(number: str) -> bool:
    digits = number.replace("-", "")
    return ssn.is_valid(f"{digits[:3]}-{digits[3:5]}-{digits[5:]}")


class _Id(NamedTuple):
    """How one number is written, named and verified."""

    shape: str | None
    """In its own groups: found without a word in front."""
    words: str | None
    """Words that name it, as part of a regular expression."""
    compact: str
    """Without separators: what may follow such a word."""
    is_valid: Callable[[str], bool]


_FREE = r"(?<![0-9] )"
_END = r"(?! [0-9])"
"""Around groups that are separated by spaces: no further group, as in a row of numbers."""
_IDS = {
    "us_ssn": _Id(r"[0-9]{3}-[0-9]{2}-[0-9]{4}", r"ssn|ss#|social security(?: number| no)?", r"[0-9]{9}", _is_ssn),
    "gb_nino": _Id(
        r"[A-Z]{2} [0-9]{2} [0-9]{2} [0-9]{2} [A-D]", r"nino|ni|national insurance", r"[A-Z]{2}[0-9]{6}[A-D]", _is_nino
    ),
    "gb_nhs": _Id(None, r"nhs", r"[0-9]{10}", nhs.is_valid),
    "de_idnr": _Id(
        rf"{_FREE}[0-9]{{2}} [0-9]{{3}} [0-9]{{3}} [0-9]{{3}}{_END}",
        r"steuer-?id(?:nr)?|idnr|steuerliche identifikationsnummer|tin",
        r"[0-9]{11}",
        idnr.is_valid,
    ),
    "fr_nir": _Id(
        r"[12] [0-9]{2} [0-9]{2} (?:[0-9]{2}|2[AB]) [0-9]{3} [0-9]{3} [0-9]{2}",
        r"nir|insee|sécurité sociale|securite sociale|sécu",
        r"[1-478][0-9]{4}[0-9AB]{2}[0-9]{8}",
        nir.is_valid,
    ),
    "es_dni": _Id(r"(?:[0-9]{8}|[0-9]{2}\.[0-9]{3}\.[0-9]{3})-[A-Z]", r"dni|nif", r"[0-9]{8}[A-Z]", dni.is_valid),
    "es_nie": _Id(r"[XYZ]-[0-9]{7}-[A-Z]", r"nie", r"[XYZ][0-9]{7}[A-Z]", nie.is_valid),
    "it_cf": _Id(r"[A-Z]{6}[0-9]{2}[A-EHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z]", None, "", codicefiscale.is_valid),
    "nl_bsn": _Id(None, r"bsn|burgerservicenummer|sofinummer", r"[0-9]{9}", bsn.is_valid),
    "be_nn": _Id(
        r"[0-9]{2}\.[0-9]{2}\.[0-9]{2}-[0-9]{3}\.[0-9]{2}",
        r"nn|rijksregister(?:nummer)?|registre national|niss|insz",
        r"[0-9]{11}",
        nn.is_valid,
    ),
    "pl_pesel": _Id(None, r"pesel", r"[0-9]{11}", pesel.is_valid),
    "se_pnr": _Id(
        r"(?:[12][0-9])?[0-9]{6}[-+][0-9]{4}",
        r"personnummer|personnr|pnr",
        r"[0-9]{10}|[0-9]{12}",
        personnummer.is_valid,
    ),
    "fi_hetu": _Id(r"[0-3][0-9]{5}[-+A-FU-Y][0-9]{3}[0-9A-Y]", None, "", hetu.is_valid),
    "dk_cpr": _Id(None, r"cpr|cpr-?nr|cpr-?nummer|personnummer", r"[0-9]{10}", cpr.is_valid),
    "no_fnr": _Id(None, r"fødselsnummer|fodselsnummer|fnr|personnummer", r"[0-9]{11}", fodselsnummer.is_valid),
    "ch_ahv": _Id(r"756\.[0-9]{4}\.[0-9]{4}\.[0-9]{2}", r"ahv|avs|ahv-?nr|avs-?nr", r"756[0-9]{10}", ahv.is_valid),
    "br_cpf": _Id(r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", r"cpf", r"[0-9]{11}", cpf.is_valid),
    "in_aadhaar": _Id(
        rf"{_FREE}(?!(?:19|20)[0-9]{{2}} )[2-9][0-9]{{3}}(?: [0-9]{{4}} [0-9]{{4}}|-[0-9]{{4}}-[0-9]{{4}}){_END}",
        r"aadhaar|aadhar|uid|uidai",
        r"[2-9][0-9]{11}",
        aadhaar.is_valid,
    ),
    "cn_ric": _Id(r"[1-9][0-9]{5}(?:19|20)[0-9]{9}[0-9X]", None, "", ric.is_valid),
    "kr_rrn": _Id(r"[0-9]{6}-[0-9]{7}", r"rrn|주민등록번호", r"[0-9]{13}", rrn.is_valid),
    "ca_sin": _Id(None, r"sin|social insurance(?: number| no)?", r"[0-9]{9}", sin.is_valid),
    "au_tfn": _Id(None, r"tfn|tax file(?: number| no)?", r"[0-9]{8,9}", tfn.is_valid),
    "ie_pps": _Id(None, r"pps|ppsn|pps number", r"[0-9]{7}[A-W][A-IW]?", pps.is_valid),
    "mx_curp": _Id(r"[A-Z]{4}[0-9]{6}[HMX][A-Z]{5}[0-9A-Z][0-9]", None, "", curp.is_valid),
    "cl_rut": _Id(r"[0-9]{1,2}\.[0-9]{3}\.[0-9]{3}-[0-9K]", r"rut|run", r"[0-9]{7,8}[0-9K]", rut.is_valid),
    "tr_kimlik": _Id(None, r"kimlik|tckn|t\.?c\.?", r"[0-9]{11}", tckimlik.is_valid),
    "ro_cnp": _Id(None, r"cnp|cod numeric personal", r"[0-9]{13}", cnp.is_valid),
    "cz_rc": _Id(r"[0-9]{6}/[0-9]{3,4}", r"rodné číslo|rodne cislo|r\.č\.", r"[0-9]{9,10}", rc.is_valid),
    "za_id": _Id(None, r"id number|identity number|id no", r"[0-9]{13}", za_idnr.is_valid),
}

_GROUPED = re.compile(
    r"(?<!\w)(?<![0-9][.\-/])(?:"
    + "|".join(f"(?P<{name}>{kind.shape})" for name, kind in _IDS.items() if kind.shape)
    + r")(?!\w)(?![.\-/][0-9])"
)
_WORDS = re.compile(
    rf"(?<![\w<])(?:{'|'.join(kind.words for kind in _IDS.values() if kind.words)})(?!\w)", re.IGNORECASE
)
_NAMED = re.compile(
    r"(?<!\w)(?:[A-Z]{1,2}[ .-]?)?[0-9](?:[ .\-/]?[0-9]){5,14}(?:[ .\-/]?[A-Z]{1,2}(?![A-Za-z]))?(?!\w)"
)
_WORD_REACH = 44
_GAP_AT_MOST = 24
_LETTERS_BEFORE = 6
_LETTERS_AFTER = 20
_LONGEST_NAMED = 24
_LONGEST_PLAIN = 17


def national_ids(text: str, run: Run) -> Iterator[tuple[int, int]]:
    """The (start, end) of each number in a run, with the letters that belong to it."""
    last = min(len(text), run.end + _LETTERS_AFTER) if _may_be_grouped(text, run) else 0
    for match in _GROUPED.finditer(text, max(0, run.start - _LETTERS_BEFORE), last):
        if match.lastgroup is not None and _is_verified(_IDS[match.lastgroup], match[0]):
            yield match.span()
    if (span := _after_its_name(text, run)) is not None:
        yield span


def _may_be_grouped(text: str, run: Run) -> bool:
    """Cheap, for most runs are plain numbers: every shape has letters, signs, spaces or dots enough, or 17 digits."""
    own = text[run.start : run.end + 1]
    return (
        run.mixed
        or len(own) >= _LONGEST_PLAIN
        or "-" in own
        or "/" in own
        or "+" in own
        or own.count(" ") > 1
        or own.count(".") > 2
    )


def _after_its_name(text: str, run: Run) -> tuple[int, int] | None:
    if run.end - run.start > _LONGEST_NAMED:
        return None
    start = run.start
    while start and run.start - start < 3 and (text[start - 1].isalpha() or text[start - 1] in " .-"):
        start -= 1
    first = max(0, start - _WORD_REACH)
    first = max(first, text.rfind("\n", first, run.start) + 1)
    words = list(_WORDS.finditer(text, first, run.start))
    if not words or run.start - words[-1].end() > _GAP_AT_MOST:
        return None
    last = min(len(text), run.end + (_LETTERS_AFTER if run.mixed else 4))
    match = _NAMED.search(text, words[-1].end(), last)
    if match is None or match.start() > run.start:
        return None
    kinds = [kind for kind in _IDS.values() if kind.words and re.fullmatch(kind.words, words[-1][0], re.IGNORECASE)]
    end = match.end()
    for _ in range(3):  # another number may follow: the longest part that is valid counts
        written = text[match.start() : end]
        stripped = _SEPARATORS.sub("", written)
        if any(re.fullmatch(kind.compact, stripped) and _is_verified(kind, stripped) for kind in kinds):
            return match.start(), end
        end = match.start() + max(written.rfind(separator) for separator in " .-/")
        if end <= match.start():
            return None
    return None


def _is_verified(kind: _Id, written: str) -> bool:
    return kind.is_valid(written) or kind.is_valid(_SEPARATORS.sub("", written))
