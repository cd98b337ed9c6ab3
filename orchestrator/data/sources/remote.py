"""Sources in object stores (`orchestrator.object_store`): what there is, and its bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyarrow import ArrowException, fs

from orchestrator.data.sources.file import SourceFile
from orchestrator.errors import DataError
from orchestrator.object_store import ERRORS, filesystem_of

_COPY_BLOCK_BYTES = 4 << 20


def list_remote(uri: str) -> list[SourceFile]:
    """The objects below a folder, or the one object, in sorted order; none where there is nothing.

    Raises:
        DataError: the store does not answer, or does not let us in.
    """
    system, path = open_filesystem(uri)
    scheme = uri.partition("://")[0]
    try:
        found = system.get_file_info(path)
        if found.type == fs.FileType.File:
            infos = [found]
        else:
            selector = fs.FileSelector(path, recursive=True, allow_not_found=True)
            infos = [i for i in system.get_file_info(selector) if i.type == fs.FileType.File]
    except (OSError, ArrowException) as error:
        raise _unreachable(uri, error) from None
    entries = []
    for info in sorted(infos, key=lambda i: i.path):
        relative = info.path.removeprefix(path).lstrip("/") or info.base_name
        if not any(part.startswith(".") for part in relative.split("/")):
            entries.append(SourceFile(0, relative, f"{scheme}://{info.path}", info.size or 0, info.mtime_ns or 0))
    return entries


def open_remote(uri: str) -> Any:
    """An object as a seekable input file.

    Raises:
        OSError: it cannot be read.
    """
    system, path = open_filesystem(uri)
    return system.open_input_file(path)


def read_bytes(uri: str) -> bytes:
    """A small object, whole.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with open_remote(uri) as source:
            return bytes(source.read())
    except (OSError, ArrowException) as error:
        raise _unreachable(uri, error) from None


def status_of(uri: str) -> tuple[int, int] | None:
    """Bytes and modification time (ns) of an object; None where it is gone.

    Raises:
        DataError: the store does not answer.
    """
    system, path = open_filesystem(uri)
    try:
        info = system.get_file_info(path)
    except (OSError, ArrowException) as error:
        raise _unreachable(uri, error) from None
    return (info.size or 0, info.mtime_ns or 0) if info.type == fs.FileType.File else None


def download(uri: str, into: Path) -> None:
    """Copy an object into a file, in bounded memory.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with open_remote(uri) as source, into.open("wb") as sink:
            while block := source.read(_COPY_BLOCK_BYTES):
                sink.write(block)
    except (OSError, ArrowException) as error:
        raise _unreachable(uri, error) from None


def open_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI, and the path in it.

    Raises:
        DataError: the URI names none.
    """
    try:
        return filesystem_of(uri)
    except ERRORS as error:
        raise _unreachable(uri, error) from None


def _unreachable(uri: str, error: Exception) -> DataError:
    return DataError(
        f"{uri} cannot be read: {str(error).splitlines()[0]}",
        fix="check bucket, region and credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)",
    )
