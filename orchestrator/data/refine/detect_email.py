"""Finds e-mail addresses. Pure.

Three forms: `ana.torres+news@example.com`; addresses with letters of any script on either side; and the tokenised form
of old mail corpora, `ana . torres @ example . com`, where the last label is a well-known one. The pass is led by the
character `@`, so text without one costs a scan for a single character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_LOCAL_LIMIT = 64
"""Characters of a local part at most: RFC 5321, section 4.5.3.1.1."""
_LATIN = "A-Za-z0-9\u00c0-\u024f"
_LABEL = rf"[{_LATIN}](?:[{_LATIN}-]{{0,61}}[{_LATIN}])?"
_AT = re.compile(r"@(?:(?<=[\w%+\-]@)(?=\w)|(?<=[\w] @)(?= \w))")
_LOCAL_LATIN = re.compile(rf"[{_LATIN}._%+\-]{{1,{_LOCAL_LIMIT + 1}}}")
_LOCAL_ANY = re.compile(rf"[\w.%+\-]{{1,{_LOCAL_LIMIT + 1}}}")
_DOMAIN_LATIN = re.compile(rf"(?:{_LABEL}\.){{1,8}}(?:xn--[A-Za-z0-9-]{{2,59}}|[A-Za-z]{{2,24}})(?![A-Za-z0-9_])")
_DOMAIN_ANY = re.compile(r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?!\w)")
_SPACED_LOCAL = re.compile(r"(?:[\w+\-]{1,64} [._-] ){0,3}(?:[A-Za-z]{1,32} [0-9]{1,8}|[\w+\-]{1,64}) \Z")
_SPACED_DOMAIN = re.compile(
    r" [\w-]{1,63}(?: [.-] [\w-]{1,63}){0,4} \. (?:com|net|org|edu|gov|mil|int|info|biz|co|io|[a-df-z][a-z])(?![\w])"
)
_VERSION = re.compile(r"v?\d+\.\d")
_FILE_ENDINGS = frozenset(("png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "json", "html", "shape", "size"))
"""Last labels that name a file (`logo@2x.png`) or an attribute (`w@x.shape`): no top-level domains."""
_PATH_AFTER = re.compile(r":[\w.~-]*/|/[\w-]+\.git\b")
_REPOSITORY_USERS = frozenset(("git", "hg", "svn"))
_URL_BEFORE = re.compile(r"://[^\s/@]{0,80}\Z")


def emails(text: str) -> Iterator[tuple[int, int]]:
    """The (start, end) of each address, in order."""
    for match in _AT.finditer(text):
        at = match.start()
        span = _spaced(text, at) if text[at + 1] == " " else _plain(text, at)
        if span is not None:
            yield span


def _plain(text: str, at: int) -> tuple[int, int] | None:
    domain = _DOMAIN_LATIN.match(text, at + 1, at + 256) or _DOMAIN_ANY.match(text, at + 1, at + 256)
    if domain is None or _VERSION.match(text, at + 1, domain.end()) or text.startswith("(", domain.end()):
        return None
    if text[domain.start() : domain.end()].rpartition(".")[2].lower() in _FILE_ENDINGS:
        return None
    before = text[max(0, at - _LOCAL_LIMIT - 1) : at][::-1]
    local = _LOCAL_LATIN.match(before) or _LOCAL_ANY.match(before)
    if local is None or local.end() > _LOCAL_LIMIT:
        return None
    start = at - len(local[0].rstrip(".-%"))  # reversed: what leads the local part is at its end here
    if start == at or _is_location(text, start, at, domain.end()):
        return None
    return start, domain.end()


def _is_location(text: str, start: int, at: int, end: int) -> bool:
    """Whether this is the place of a repository, a remote file, or the user of a URL, rather than a mailbox."""
    if text[start:at] in _REPOSITORY_USERS and text.startswith(":", end):
        return True
    if _PATH_AFTER.match(text, end, end + 80):
        return True
    return _URL_BEFORE.search(text[max(0, start - 84) : start]) is not None


def _spaced(text: str, at: int) -> tuple[int, int] | None:
    domain = _SPACED_DOMAIN.match(text, at + 1, at + 256)
    if domain is None:
        return None
    first = max(0, at - 2 * _LOCAL_LIMIT)
    local = _SPACED_LOCAL.search(text[first:at])
    return None if local is None else (first + local.start(), domain.end())
