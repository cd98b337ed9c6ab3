"""Finds API keys and tokens. Pure.

Keys of known services are told by their published prefix and length. Other secrets are told by their place: after
`Bearer`, in a URL before `@`, or assigned to a name such as `api_key` when the value looks random. Each pattern begins
with a literal character, which is what makes the search fast.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterator

_EDGE = r"(?<![A-Za-z0-9])"
_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        # GitHub (ghp_ ... and fine-grained), Stripe, Hugging Face, npm
        rf"_(?=[A-Za-z0-9]{{16}}|pat_|live_|test_)(?:(?<={_EDGE}gh[pousr]_)[A-Za-z0-9]{{36,251}}|(?<={_EDGE}github_)pat_[A-Za-z0-9]{{22}}_[A-Za-z0-9]{{59}}"
        rf"|(?<={_EDGE}[sr]k_)(?:live|test)_[A-Za-z0-9]{{16,247}}|(?<={_EDGE}hf_)[A-Za-z0-9]{{30,64}}"
        rf"|(?<={_EDGE}npm_)[A-Za-z0-9]{{36}})(?![A-Za-z0-9])",
        # GitLab, Slack, Anthropic, OpenAI, PyPI
        rf"-(?=[\w-]{{16}})(?:(?<={_EDGE}glpat-)[\w-]{{20,64}}|(?<={_EDGE}xox[abeoprs]-)(?=[\w-]*\d)[A-Za-z0-9-]{{20,250}}"
        rf"|(?<={_EDGE}sk-)(?=[\w-]{{0,40}}\d)(?:ant|proj|svcacct|admin)-[\w-]{{20,250}}|(?<={_EDGE}sk-)[A-Za-z0-9]{{32,128}}"
        rf"|(?<={_EDGE}pypi-)AgE[\w-]{{50,250}})(?![A-Za-z0-9])",
        # AWS access key ids, Google
        r"A(?<![A-Za-z0-9]A)(?:[KS]IA[A-Z2-7]{16}|Iza[\w-]{35})(?![\w-])",
        # SendGrid, Twilio
        r"S(?<![A-Za-z0-9]S)(?:G\.[\w-]{22}\.[\w-]{43}|K[0-9a-f]{32})(?![\w-])",
        # JSON Web Tokens: RFC 7519; `eyJ` is base64url of `{"`
        r"J(?<=(?<![\w-])eyJ)[\w-]{8,4000}\.eyJ[\w-]{8,8000}\.[\w-]{16,1000}",
    )
)
_LONGEST_PREFIX = 8
_LETTERS = string.ascii_letters
_BEARER = re.compile(r"B(?=e)earer ([A-Za-z0-9._~+/-]{16,4000}=*)(?![\w<$])")
_BASIC = re.compile(
    r"z(?<=uthoriz)ation['\"]?[:=] ?['\"]?(?i:basic|token|bearer) ([A-Za-z0-9._~+/-]{12,4000}=*)(?![\w<$])"
)
_URL_PASSWORD = re.compile(r"://[^/\s:@<>\"']{1,64}:([^/\s:@<>\"'${}]{8,128})@")
_ASSIGNED = tuple(
    re.compile(rf"{sign}(?= ?[\"'`]?([A-Za-z0-9+/_-]{{16,512}}={{0,2}})(?![A-Za-z0-9(.\[<$@]))") for sign in ("=", ":")
)
_SECRET_NAME = re.compile(
    r"(?:api[_-]?key|secret|token|passw(?:or)?d|pwd|credential|access[_-]?key|private[_-]?key)[\w-]{0,24}"
    r"[\"'\])]{0,3} ?\Z",
    re.IGNORECASE,
)
_NAME_LIMIT = 64


def api_keys(text: str) -> Iterator[tuple[int, int]]:
    """The (start, end) of each key or token; they may overlap."""
    yield from _of_known_services(text)
    for pattern in (_BEARER, _BASIC):
        yield from (match.span(1) for match in pattern.finditer(text) if any(c.isdigit() for c in match[1]))
    yield from (match.span(1) for match in _URL_PASSWORD.finditer(text) if _looks_random(match[1], 3.0))
    for pattern in _ASSIGNED:
        for match in pattern.finditer(text):
            if _looks_random(match[1], 3.3) and _is_secret_name(text, match.start()):
                yield match.span(1)


def _of_known_services(text: str) -> Iterator[tuple[int, int]]:
    for pattern in _PATTERNS:
        for match in pattern.finditer(text):
            start = match.start()
            if text[start] in "_-J":  # the pattern began at the end of its prefix
                first = max(0, start - _LONGEST_PREFIX)
                start = first + len(text[first:start].rstrip(_LETTERS))
            yield start, match.end()


def _looks_random(value: str, bits_per_character: float) -> bool:
    """Letters and digits mixed, with at least this Shannon entropy; so no words, numbers or paths."""
    digits = sum(c.isdigit() for c in value)
    both_cases = any(c.islower() for c in value) and any(c.isupper() for c in value)
    if not any(c.isalpha() for c in value) or digits < (1 if both_cases else 2):
        return False
    counts = Counter(value)
    entropy = -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values())
    return entropy >= bits_per_character


def _is_secret_name(text: str, end: int) -> bool:
    return _SECRET_NAME.search(text[max(0, end - _NAME_LIMIT) : end]) is not None
