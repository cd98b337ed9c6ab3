"""Whether DeepSpeed can offload to NVMe on this machine: it compiles its `async_io` at first use, against libaio."""

from __future__ import annotations

import shutil
import subprocess

PACKAGES = "libaio-dev (apt) or libaio-devel (dnf)"
_PROGRAM = "#include <libaio.h>\nint main(void) { return io_setup(0, 0); }\n"
_LIMIT_S = 30.0


def missing() -> str | None:
    """What is not there of what the compilation needs, with the packages that have it; None: nothing."""
    compiler = shutil.which("c++")
    if compiler is None:
        return "a C++ compiler (g++)"
    if shutil.which("ninja") is None:
        return "ninja (ninja-build)"
    try:
        links = subprocess.run(
            [compiler, "-x", "c", "-", "-laio", "-o", "/dev/null"],
            input=_PROGRAM,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"a C++ compiler that works ({error})"
    return None if links.returncode == 0 else f"libaio with its headers: {PACKAGES}"
