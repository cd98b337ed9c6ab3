"""Listing the files of sources: cheap, reads no content. Local folders here, object stores through `remote`."""

from __future__ import annotations

import dataclasses
import os
import re
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from orchestrator.data.sources.file import PACKED, REMOTE, SourceFile, is_remote
from orchestrator.data.sources.globs import glob_regex, split_glob
from orchestrator.data.values import Rejected
from orchestrator.errors import DataError, JobError
from orchestrator.job_data import Data, Format, Source, SplitName
from orchestrator.job_file import resolve_env

_ENDINGS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".conll": "conll",
}
_DEFAULT_INCLUDE: dict[Format, list[str]] = {
    "jsonl": ["**/*.jsonl", "**/*.ndjson"],
    "csv": ["**/*.csv"],
    "tsv": ["**/*.tsv"],
    "parquet": ["**/*.parquet"],
    "arrow": ["**/*.arrow", "**/*.feather"],
    "huggingface": ["**/*.arrow"],
    "conll": ["**/*.conll"],
    "squad": ["**/*.json"],
}
_SPLIT_FOLDERS: dict[str, SplitName] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
}


@dataclass(frozen=True)
class Listing:
    """All files of all sources in a fixed order, and the sources that matched none."""

    files: list[SourceFile]
    unmatched: list[str]
    against: list[SourceFile] = field(default_factory=list)
    """The files of the evaluation sets."""
    refused: list[Rejected] = field(default_factory=list)
    """Links that lead out of their source's folder."""

    def rows(self) -> list[list[str | int]]:
        """What identifies the sources: number, relative path, bytes, modification time."""
        return [[f.source, f.relative, f.size_bytes, f.mtime_ns] for f in self.files]

    def against_rows(self) -> list[list[str | int]]:
        """The same of the evaluation sets."""
        return [[f.source, f.relative, f.size_bytes, f.mtime_ns] for f in self.against]


class ListingTooSlowError(Exception):
    """The listing took longer than the caller wants to wait."""


def list_sources(data: Data, environ: Mapping[str, str], *, limit_s: float | None = None) -> Listing:
    """List the files of all sources, each once, in the order of source and path.

    Raises:
        ListingTooSlowError: it took over `limit_s`, or a source is remote and there is a limit.
        JobError: a placeholder cannot be resolved.
    """
    deadline = None if limit_s is None else time.monotonic() + limit_s
    unmatched: list[str] = []
    refused: list[Rejected] = []

    def files_of(sources: list[Source]) -> list[SourceFile]:
        found: list[SourceFile] = []
        for number, source in enumerate(sources):
            own = list(_list_one(number, source, resolve_path(source.path, environ), deadline, refused))
            found += own
            if not own:
                unmatched.append(describe(source))
        return found

    evaluations = [Source(path=e.path, format=e.format) for e in data.deduplicate.against]
    return Listing(files_of(data.sources), unmatched, files_of(evaluations), refused)


def require_files(listing: Listing) -> None:
    """Refuse sources that match nothing.

    Raises:
        DataError: names each.
    """
    if listing.unmatched:
        raise DataError(
            "no file matches " + ", ".join(listing.unmatched),
            fix="check path, include and exclude under data.sources, and data.deduplicate.against; relative paths "
            "start at the current directory",
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
    if "\0" in path:
        raise JobError(f"the path {path!r} holds a NUL character", fix="correct it")
    resolved = resolve_env(path.replace("${python:stdlib}", sysconfig.get_paths()["stdlib"]), environ)
    if unknown := re.search(r"\$\{[^}]*\}?", resolved):
        raise JobError(
            f"unknown placeholder {unknown.group(0)} in {path!r}",
            fix="there are ${python:stdlib} and ${env:NAME}",
        )
    if scheme := re.match(r"([a-z][a-z0-9+.-]+)://", resolved):
        if scheme.group(1) not in REMOTE:
            raise JobError(
                f"{path!r}: {scheme.group(1)}:// sources cannot be read",
                fix=f"give a path on a disk of all nodes, or one of {', '.join(f'{s}://' for s in REMOTE)}",
            )
        return resolved
    return os.path.abspath(os.path.expanduser(resolved))


def _list_one(
    number: int, source: Source, path: str, deadline: float | None, refused: list[Rejected]
) -> Iterator[SourceFile]:
    if is_remote(path):
        if deadline is not None:
            raise ListingTooSlowError
        from orchestrator.data.sources.remote import list_remote

        root, pattern = split_glob(path)
        entries = list_remote(root.rstrip("/"))
        choose = _chooser(source, pattern)
        yield from (_with_format(e, number, source) for e in entries if len(entries) == 1 or choose(e.relative))
        return
    if os.path.isfile(path):
        yield _with_format(_entry(os.path.basename(path), path), number, source)
        return
    root, pattern = (path, None) if os.path.isdir(path) else split_glob(path)
    choose = _chooser(source, pattern)
    pruned = [glob_regex(g.removesuffix("/**")) for g in source.exclude]
    walk = _Walk(os.path.realpath(root), pruned, deadline, refused)
    for relative, full in walk.files(root, "", frozenset()):
        if choose(relative):
            yield _with_format(_entry(relative, full), number, source)


def _chooser(source: Source, pattern: str | None) -> Callable[[str], bool]:
    """Whether a source takes a relative path."""
    include = [source.include] if isinstance(source.include, str) else source.include
    if pattern is not None:
        if include is not None:
            raise JobError(f"source {source.path!r} is a glob and has include too", fix="use one of the two")
        include = [pattern]
    for glob in [*(include or []), *source.exclude]:
        if ".." in glob.split("/"):
            raise JobError(
                f"the glob {glob!r} of source {source.path!r} leads out of its folder", fix="write no `..` in a glob"
            )
    wanted = [glob_regex(g) for g in include or _default_include(source.format)]
    unwanted = [glob_regex(g) for g in source.exclude]

    def choose(relative: str) -> bool:
        return any(w.fullmatch(relative) for w in wanted) and not any(u.fullmatch(relative) for u in unwanted)

    return choose


def _default_include(format_: Format) -> list[str]:
    plain = _DEFAULT_INCLUDE.get(format_, ["**/*"])
    return plain if plain == ["**/*"] else [glob + ending for glob in plain for ending in ("", *PACKED)]


@dataclass
class _Walk:
    """The files below a folder in sorted order; hidden ones and excluded folders are left out."""

    real_root: str
    pruned: list[re.Pattern[str]]
    deadline: float | None
    refused: list[Rejected]

    def files(self, folder: str, prefix: str, above: frozenset[str]) -> Iterator[tuple[str, str]]:
        """(relative, full) paths. `above` are the real paths of the folders that lead here."""
        real = os.path.realpath(folder)
        if real in above:  # a link back up: walking it would not end
            return
        try:
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError as error:
            self.refused.append(Rejected(prefix or ".", None, f"the folder cannot be read: {error.strerror}"))
            return
        for entry in entries:
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise ListingTooSlowError
            relative, kind = prefix + entry.name, _kind_of(entry)
            if kind is None or (kind == "folder" and any(p.fullmatch(relative) for p in self.pruned)):
                continue
            if entry.is_symlink() and not self._stays_inside(entry.path):
                self.refused.append(Rejected(_printable(relative), None, "a link that leads out of the source folder"))
            elif kind == "folder":
                yield from self.files(entry.path, relative + "/", above | {real})
            else:
                yield relative, entry.path

    def _stays_inside(self, path: str) -> bool:
        target = os.path.realpath(path)
        return target == self.real_root or target.startswith(self.real_root.rstrip("/") + "/")


def _kind_of(entry: os.DirEntry[str]) -> str | None:
    """`folder`, `file`, or None for what is neither: hidden, a device, a link to nowhere."""
    try:
        if entry.name.startswith("."):
            return None
        return "folder" if entry.is_dir() else "file" if entry.is_file() else None
    except OSError:  # a link to itself
        return None


def _entry(relative: str, path: str) -> SourceFile:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise DataError(
            f"{path} vanished while the sources were listed", fix="run the same command again: it lists them anew"
        ) from None
    return SourceFile(0, _printable(relative), path, status.st_size, status.st_mtime_ns)


def _printable(relative: str) -> str:
    return os.fsencode(relative).decode("utf-8", "backslashreplace")  # a name need not be UTF-8


def _with_format(file: SourceFile, number: int, source: Source) -> SourceFile:
    """The file as one of its source: how it is read, and to which split it belongs."""
    kind, split = source.format, source.split
    if kind == "auto":
        name = file.path.lower()
        bare = os.path.splitext(name)[0] if file.packing else name
        kind = _ENDINGS.get(os.path.splitext(bare)[1], "text")
    if kind == "huggingface" and split is None and "/" in file.relative:
        split = _SPLIT_FOLDERS.get(file.relative.split("/")[0])
    return dataclasses.replace(file, source=number, format=kind, split=split)
