"""Where text comes from: listing (cheap, no content) and reading (documents, or why a file is bad)."""

from __future__ import annotations

import json
import os
import re
import sysconfig
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import DataError, JobError
from orchestrator.job_data import Data, Source
from orchestrator.job_file import resolve_env

_GLOB_CHARACTERS = frozenset("*?[")
_DEFAULT_INCLUDE = {"text": ["**/*"], "jsonl": ["**/*.jsonl", "**/*.ndjson"]}


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    source: int
    relative: str
    path: str
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Listing:
    """All files of all sources in a fixed order, and the sources that matched none."""

    files: list[SourceFile]
    unmatched: list[str]

    def rows(self) -> list[list[str | int]]:
        """What identifies the sources: number, relative path, bytes, modification time."""
        return [[f.source, f.relative, f.size_bytes, f.mtime_ns] for f in self.files]


@dataclass(frozen=True)
class Bad:
    """A file or line that holds no document, and why."""

    where: str
    reason: str


class ListingTooSlowError(Exception):
    """The listing took longer than the caller wants to wait."""


def list_sources(data: Data, environ: Mapping[str, str], *, limit_s: float | None = None) -> Listing:
    """List the files of all sources, each once, in the order of source and path.

    Raises:
        ListingTooSlowError: it took over `limit_s`.
        JobError: a placeholder cannot be resolved.
    """
    deadline = None if limit_s is None else time.monotonic() + limit_s
    files: list[SourceFile] = []
    unmatched: list[str] = []
    for number, source in enumerate(data.sources):
        found = list(_list_one(number, source, resolve_path(source.path, environ), deadline))
        files += found
        if not found:
            unmatched.append(describe(source))
    return Listing(files, unmatched)


def require_files(listing: Listing) -> None:
    """Refuse sources that match nothing.

    Raises:
        DataError: names each.
    """
    if listing.unmatched:
        raise DataError(
            "no file matches " + ", ".join(listing.unmatched),
            fix="check path, include and exclude under data.sources; relative paths start at the current directory",
        )


def describe(source: Source) -> str:
    """A source as it is named in messages."""
    include = source.include if source.include is None or isinstance(source.include, str) else ", ".join(source.include)
    return f"{source.path!r}" + (f" (include {include})" if include else "")


def resolve_path(path: str, environ: Mapping[str, str]) -> str:
    """Replace `${python:stdlib}` and `${env:NAME}`.

    Raises:
        JobError: the variable is not set, or the placeholder is not known.
    """
    resolved = resolve_env(path.replace("${python:stdlib}", sysconfig.get_paths()["stdlib"]), environ)
    if unknown := re.search(r"\$\{[^}]*\}?", resolved):
        raise JobError(
            f"unknown placeholder {unknown.group(0)} in {path!r}",
            fix="there are ${python:stdlib} and ${env:NAME}",
        )
    if scheme := re.match(r"([a-z][a-z0-9+.-]+)://", resolved):
        raise JobError(
            f"{path!r}: {scheme.group(1)}:// sources cannot be read", fix="give a path on a disk of all nodes"
        )
    return os.path.abspath(os.path.expanduser(resolved))


def read_documents(file: SourceFile, source: Source) -> Iterator[str | Bad]:
    """The documents of a file, in order; what cannot be read comes as `Bad`."""
    try:
        raw = Path(file.path).read_bytes()
    except OSError as error:
        yield Bad(file.relative, f"not readable: {error.strerror}")
        return
    if source.format == "text":
        yield _decode(raw, file.relative)
        return
    documents = 0
    for number, line in enumerate(raw.splitlines(), start=1):
        if line.strip():
            documents += 1
            yield _document_of_line(line, f"{file.relative}:{number}", source.text)
    if not documents:
        yield Bad(file.relative, "empty")


def _decode(raw: bytes, where: str) -> str | Bad:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Bad(where, f"not UTF-8 at byte {error.start}")
    return text if text.strip() else Bad(where, "empty")


def _document_of_line(line: bytes, where: str, field: str) -> str | Bad:
    text = _decode(line, where)
    if isinstance(text, Bad):
        return text
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return Bad(where, "not JSON")
    value = row.get(field) if isinstance(row, dict) else None
    if not isinstance(value, str):
        return Bad(where, f"no text in the field {field!r}")
    try:
        value.encode("utf-8")  # JSON may spell half of a surrogate pair, which no UTF-8 text can hold
    except UnicodeEncodeError:
        return Bad(where, "a lone surrogate in the text")
    return value if value.strip() else Bad(where, "empty")


def _list_one(number: int, source: Source, path: str, deadline: float | None) -> Iterator[SourceFile]:
    if os.path.isfile(path):
        yield _entry(number, os.path.basename(path), path)
        return
    root, pattern = (path, None) if os.path.isdir(path) else _split_glob(path)
    include = [source.include] if isinstance(source.include, str) else source.include
    if pattern is not None:
        if include is not None:
            raise JobError(f"source {source.path!r} is a glob and has include too", fix="use one of the two")
        include = [pattern]
    wanted = [glob_regex(g) for g in include or _DEFAULT_INCLUDE[source.format]]
    unwanted = [glob_regex(g) for g in source.exclude]
    pruned = [glob_regex(g.removesuffix("/**")) for g in source.exclude]
    for relative, full in _walk(root, "", pruned, deadline, frozenset()):
        if any(w.fullmatch(relative) for w in wanted) and not any(u.fullmatch(relative) for u in unwanted):
            yield _entry(number, relative, full)


def _walk(
    folder: str, prefix: str, pruned: list[re.Pattern[str]], deadline: float | None, above: frozenset[str]
) -> Iterator[tuple[str, str]]:
    """Files below a folder in sorted order, hidden ones and excluded folders left out."""
    real = os.path.realpath(folder)
    if real in above:  # a link back up: walking it would not end
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError:
        return
    for entry in entries:
        if deadline is not None and time.monotonic() > deadline:
            raise ListingTooSlowError
        relative, kind = prefix + entry.name, _kind_of(entry)
        if kind == "folder" and not any(p.fullmatch(relative) for p in pruned):
            yield from _walk(entry.path, relative + "/", pruned, deadline, above | {real})
        elif kind == "file":
            yield relative, entry.path


def _kind_of(entry: os.DirEntry[str]) -> str | None:
    """`folder`, `file`, or None for what is neither: hidden, a device, a link to nowhere."""
    try:
        if entry.name.startswith("."):
            return None
        return "folder" if entry.is_dir() else "file" if entry.is_file() else None
    except OSError:  # a link to itself
        return None


def _entry(number: int, relative: str, path: str) -> SourceFile:
    status = os.stat(path)
    printable = os.fsencode(relative).decode("utf-8", "backslashreplace")  # a name need not be UTF-8
    return SourceFile(number, printable, path, status.st_size, status.st_mtime_ns)


def _split_glob(path: str) -> tuple[str, str | None]:
    """The fixed folder before the first part with a glob character, and the pattern below it."""
    parts = path.split("/")
    for i, part in enumerate(parts):
        if _GLOB_CHARACTERS & set(part):
            return "/".join(parts[:i]) or "/", "/".join(parts[i:])
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
