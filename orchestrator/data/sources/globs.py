"""Globs over `/`-separated paths. Pure."""

from __future__ import annotations

import re

from orchestrator.errors import JobError

_CHARACTERS = frozenset("*?[")


def split_glob(path: str) -> tuple[str, str | None]:
    """The fixed folder before the first part with a glob character, and the pattern below it."""
    scheme, separator, rest = path.rpartition("://")
    parts = rest.split("/")
    for i, part in enumerate(parts):
        if _CHARACTERS & set(part):
            return f"{scheme}{separator}{'/'.join(parts[:i])}" or "/", "/".join(parts[i:])
    return path, None


def glob_regex(pattern: str) -> re.Pattern[str]:
    """A glob over `/`-separated relative paths: `**/` is any folders or none, `*`, `?` and `[]` stay within a name.

    Raises:
        JobError: it is not a glob.
    """
    out, i = "", 0
    while i < len(pattern):
        if pattern.startswith("**/", i):
            out, i = out + "(?:.*/)?", i + 3
        elif pattern.startswith("**", i):
            out, i = out + ".*", i + 2
        elif pattern[i] == "*":
            out, i = out + "[^/]*", i + 1
        elif pattern[i] == "?":
            out, i = out + "[^/]", i + 1
        elif pattern[i] == "[" and (end := pattern.find("]", i + 2)) > 0:
            inner = pattern[i + 1 : end].replace("\\", "\\\\")
            out, i = out + "(?!/)[" + ("^" + inner[1:] if inner[0] == "!" else inner) + "]", end + 1
        else:
            out, i = out + re.escape(pattern[i]), i + 1
    try:
        return re.compile(out, re.DOTALL)
    except re.error as error:
        raise JobError(f"{pattern!r} is not a glob: {error}", fix="write a range as [a-z]") from None
