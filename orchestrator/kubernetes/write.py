"""Manifests into a folder: whole files, and nobody's own changes overwritten unasked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchestrator.errors import JobError
from orchestrator.store import write_text


def write_files(files: Mapping[str, str], into: Path, *, force: bool) -> dict[str, list[str]]:
    """Write what is not there yet: {"written": [...], "unchanged": [...]}. Other files of the folder stay.

    Raises:
        JobError: a file there differs, and `force` is not given; then nothing is written.
    """
    into.mkdir(parents=True, exist_ok=True)
    there = {name: _content(into / name) for name in files}
    differing = sorted(name for name, found in there.items() if found not in (None, files[name]))
    if differing and not force:
        raise JobError(
            f"{into} has other content in {', '.join(differing)}",
            fix="give --force to overwrite these files, or another --out",
        )
    written = sorted(name for name, text in files.items() if there[name] != text)
    for name in written:
        write_text(into / name, files[name])
    return {"written": written, "unchanged": sorted(set(files) - set(written))}


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:  # not ours, and not equal
        return ""
