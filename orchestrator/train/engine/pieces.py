"""The state of a sharded training on disk: for each rank one file with its pieces of flattened tensors, by name.

A piece says where in its whole it begins. So any number of ranks, at any ZeRO stage, reads what it needs of what any
other number wrote, and nobody ever holds a whole. Safetensors, never pickle.

N numbers of a piece.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from orchestrator.store import as_disk_error

_FILE = re.compile(r"rank-(\d{5})-of-(\d{5})\.safetensors")
_STARTS, _NUMBERS = "starts", "numbers"


@dataclass(frozen=True)
class Piece:
    """Part of a flattened tensor."""

    start: int
    """Where in the whole it begins."""
    values_N: Tensor


@dataclass(frozen=True)
class RankState:
    """What one rank has to keep."""

    rank: int
    num_ranks: int
    """Of the ranks that have something to keep."""
    pieces: Mapping[str, Piece]
    """By name."""
    numbers: Mapping[str, float]
    """What all ranks have alike, such as the optimizer's count of steps."""

    @property
    def bytes(self) -> int:
        """Of all pieces."""
        return sum(piece.values_N.nbytes for piece in self.pieces.values())


def write_state(folder: Path, state: RankState) -> None:
    """Write one rank's file; what is empty is left out.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rank-{state.rank:05d}-of-{state.num_ranks:05d}.safetensors"
    held = {name: piece for name, piece in state.pieces.items() if piece.values_N.numel()}
    tensors = {name: piece.values_N.detach().cpu().contiguous() for name, piece in held.items()}
    said = {
        _STARTS: json.dumps({name: piece.start for name, piece in held.items()}),
        _NUMBERS: json.dumps(dict(state.numbers)),
    }
    try:
        save_file(tensors, path, metadata=said)
    except (OSError, SafetensorError) as error:
        raise as_disk_error(error, path) or OSError(errno.EIO, str(error), str(path)) from error


class PieceReader:
    """All that the ranks of an earlier group have written; open while it is read.

    Raises:
        OSError: a file is absent or garbled.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: list[Any] = []
        self._held: dict[str, list[tuple[int, int, Any]]] = {}
        """By name the pieces: start, end, and the file that has it."""
        self.numbers: dict[str, float] = {}
        try:
            for path in self._paths():
                self._open(path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PieceReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files:
            file.__exit__(None, None, None)
        self._files, self._held = [], {}

    def size(self, name: str) -> int:
        """Numbers of a whole, as far as its pieces reach."""
        return max(last for _, last, _ in self._held[name])

    @property
    def names(self) -> set[str]:
        """Of everything that was written."""
        return set(self._held)

    def read(self, name: str, start: int, end: int) -> Tensor:
        """Numbers [start, end) of a whole: [N], on the CPU, in the type in which they were written.

        Raises:
            OSError: no rank has written some of them, or a file is garbled.
        """
        parts: list[Tensor] = []
        reached = start
        for first, last, file in self._held.get(name, []):
            stop = min(last, end)
            if first <= reached < stop:
                try:
                    parts.append(file.get_slice(name)[reached - first : stop - first])
                except SafetensorError as error:
                    raise OSError(errno.EIO, str(error), str(self.folder)) from error
                reached = stop
        if reached < end:
            raise OSError(errno.EIO, f"numbers {reached} to {end} of {name} are in no file", str(self.folder))
        return torch.cat(parts) if parts else torch.empty(0)

    def _paths(self) -> list[Path]:
        """The files of all ranks, in their order."""
        found = {path.name: path for path in self.folder.iterdir() if _FILE.fullmatch(path.name)}
        groups = {match[2] for name in found if (match := _FILE.fullmatch(name))}
        if len(groups) != 1 or len(found) != int(next(iter(groups))):
            names = ", ".join(sorted(found)) or "no such file"
            raise OSError(
                errno.EIO, f"the state of all ranks of one group is needed; there are {names}", str(self.folder)
            )
        return [found[name] for name in sorted(found)]

    def _open(self, path: Path) -> None:
        try:
            file = safe_open(path, "pt").__enter__()  # type: ignore[no-untyped-call]
            self._files.append(file)
            said = file.metadata() or {}
            starts, numbers = json.loads(said[_STARTS]), json.loads(said[_NUMBERS])
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                (size,) = file.get_slice(name).get_shape()
                self._held.setdefault(name, []).append((int(starts[name]), int(starts[name]) + size, file))
                self._held[name].sort(key=lambda piece: piece[:2])
            self.numbers |= numbers
        except (SafetensorError, KeyError, ValueError) as error:
            raise OSError(errno.EIO, f"it is garbled: {error!r}", str(path)) from error
