"""Object stores through pyarrow.fs: `s3://` and `gs://`. Credentials come from the environment.

S3: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, and `AWS_ENDPOINT_URL` for other
stores with the same protocol. GCS: application default credentials, and `CLOUD_STORAGE_EMULATOR_ENDPOINT`.

A folder there is published as `store` does it, but for the rename, which object stores do not have: its marker, which
comes last, is all that commits it.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from urllib.parse import urlsplit

from pyarrow import ArrowException, fs

from orchestrator.store import MARKER

ERRORS = (OSError, ArrowException, ValueError)
"""What a store that does not answer, or refuses, may raise."""

_CONNECT_TIMEOUT_S = 10


def filesystem_of(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI, and the path in it.

    Raises:
        Exception: of `ERRORS`, as everything here: the URI names none.
    """
    scheme, _, path = uri.partition("://")
    return _filesystem(scheme, _endpoint()), path.rstrip("/")


def upload_folder(folder: Path, uri: str) -> None:
    """Publish a committed folder: all its files, and then its marker.

    Raises:
        Exception: of `ERRORS`: it could not be written; a reader sees nothing of it.
    """
    system, path = filesystem_of(uri)
    _forget(system, f"{path}/{MARKER}")
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MARKER):
        upload_file(file, f"{uri}/{file.relative_to(folder).as_posix()}")
    with system.open_output_stream(f"{path}/{MARKER}") as sink:
        sink.write(b"")


def upload_file(file: Path, uri: str) -> None:
    """Copy one file.

    Raises:
        Exception: of `ERRORS`: it could not be written.
    """
    system, path = filesystem_of(uri)
    fs.copy_files(str(file), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=system)


def download_folder(uri: str, into: Path, *, without: str | None = None) -> None:
    """Copy all files below a folder but markers, and but the folder `without` in it.

    Raises:
        Exception: of `ERRORS`: it could not be read.
    """
    system, path = filesystem_of(uri)
    for info in system.get_file_info(fs.FileSelector(path, recursive=True)):
        inside = info.path.removeprefix(path).lstrip("/")
        if info.type == fs.FileType.File and info.base_name != MARKER and inside.split("/")[0] != without:
            target = into / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            fs.copy_files(info.path, str(target), source_filesystem=system, destination_filesystem=fs.LocalFileSystem())


def committed_folders(uri: str) -> list[str]:
    """Names of the published folders right below a URI, sorted; none where there is nothing.

    Raises:
        Exception: of `ERRORS`: the store does not answer.
    """
    system, path = filesystem_of(uri)
    found = system.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    inside = (info.path.removeprefix(path).lstrip("/").split("/") for info in found if info.base_name == MARKER)
    return sorted(parts[0] for parts in inside if len(parts) == 2)


def delete_folder(uri: str) -> None:
    """Delete a published folder, marker first.

    Raises:
        Exception: of `ERRORS`: it could not be deleted.
    """
    system, path = filesystem_of(uri)
    _forget(system, f"{path}/{MARKER}")
    system.delete_dir(path)


def _forget(system: fs.FileSystem, path: str) -> None:
    if system.get_file_info(path).type == fs.FileType.File:
        system.delete_file(path)


@functools.cache
def _filesystem(scheme: str, endpoint: str | None) -> fs.FileSystem:
    if scheme == "gs":
        return fs.GcsFileSystem()
    place = urlsplit(endpoint) if endpoint else None
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ("us-east-1" if endpoint else None)
    return fs.S3FileSystem(
        region=region,
        endpoint_override=place.netloc if place else None,
        scheme=place.scheme if place else "https",
        connect_timeout=_CONNECT_TIMEOUT_S,
    )


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
