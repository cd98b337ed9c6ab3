"""Sizes in bytes, as people write and read them."""

from __future__ import annotations

import re

from orchestrator.errors import JobError

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([kmgtp]?)(i?)(b?)\s*", re.IGNORECASE)


def parse_bytes(text: str, *, option: str = "--gpu-memory") -> int:
    """`80GB` is 80 x 10^9 bytes, `80GiB` is 80 x 2^30; the B may be left out, the case is free.

    Raises:
        JobError: it is no size, has no unit, or is not positive; `option` says where it stood.
    """
    found = _SIZE.fullmatch(text)
    if found and (found[2] or (found[4] and not found[3])):
        unit = int((1024 if found[3] else 1000) ** _POWERS[found[2].lower()])
        size = round(float(found[1]) * unit)
        if size > 0:
            return size
    raise JobError(f"{option} {text!r} is no size", fix=f"give a number and a unit, such as {option} 80GB or 80GiB")


def human_bytes(size: float) -> str:
    """Three digits and a decimal unit: `81.6 GB`."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if size >= 1000**power:
            number = size / 1000**power
            return f"{number:.{0 if number >= 100 else 1 if number >= 10 else 2}f} {unit}"
    return f"{size:.0f} B"
