"""Compile the C++ beside this file for the processor that runs it, once a machine.

The library lies in `${XDG_CACHE_HOME:-~/.cache}/slipway/native`, named by what shapes it: the sources, the flags, the
compiler and the processor. It is written aside and renamed: two processes that build at once do no harm.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

_SOURCES = Path(__file__).parent
_MAIN = "decoder.cpp"
_FLAGS = ("-std=c++20", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi", "-shared")
_FLAGS_OF_PLACE = ("-fPIC", "-pthread")
_LIMIT_S = 300


class BuildError(Exception):
    """There is no compiler, or it failed; the message says which and how."""


def compiler() -> str | None:
    """The C++ compiler that would be used: `CXX`, or the first of g++, c++ and clang++ that is there."""
    names = [name] if (name := os.environ.get("CXX")) else ["g++", "c++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def built() -> ctypes.CDLL | None:
    """The library if an earlier call has built it, on this machine; at once."""
    command = compiler()
    path = _path(command) if command else None
    return ctypes.CDLL(str(path)) if path and path.is_file() else None


def build() -> ctypes.CDLL:
    """The library; compiles for some seconds if it is not there.

    Raises:
        BuildError: it cannot be made here.
    """
    if (found := built()) is not None:
        return found
    if (command := compiler()) is None:
        raise BuildError("there is no C++ compiler; install g++, or name one in CXX")
    path = _path(command)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, aside = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        _compile(command, aside)
        Path(aside).replace(path)
    finally:
        Path(aside).unlink(missing_ok=True)
    return ctypes.CDLL(str(path))


def _compile(command: str, into: str) -> None:
    arguments = [command, *_FLAGS, *_FLAGS_OF_PLACE, str(_SOURCES / _MAIN), "-o", into]
    try:
        done = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command} did not compile {_MAIN}: {error}") from error
    if done.returncode:
        raise BuildError(f"{command} did not compile {_MAIN}: {done.stderr.strip()[-2000:]}")


@lru_cache(maxsize=4)
def _path(command: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256()
    for source in sorted((*_SOURCES.glob("*.cpp"), *_SOURCES.glob("*.h"))):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    digest.update(repr((_FLAGS, _FLAGS_OF_PLACE, _version(command), _processor())).encode())
    return cache / "slipway" / "native" / f"decoder-{digest.hexdigest()[:16]}.so"


def _version(command: str) -> str:
    """What tells one compiler from another, without starting it."""
    found = Path(command).resolve()
    return f"{found} {found.stat().st_size} {found.stat().st_mtime_ns}"


def _processor() -> str:
    """What `-march=native` goes by: a home folder may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
