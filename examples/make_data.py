"""The data of the examples, drawn from a seed: the same bytes on every machine.

python -m examples.make_data jobs/samples
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_IMAGES = 600
_USERS, _ITEMS, _TASTES = 60, 40, 2
_GLYPHS = (
    "010 101 101 101 010",
    "010 110 010 010 111",
    "110 001 010 100 111",
    "110 001 010 001 110",
    "101 101 111 001 001",
    "111 100 110 001 110",
    "011 100 110 101 010",
    "111 001 010 010 010",
    "010 101 010 101 010",
    "010 101 011 001 110",
)
"""Digits of 3 x 5 pixels."""


def digits() -> Iterator[dict[str, Any]]:
    """Images of 8 x 8 pixels, each a digit somewhere, in some brightness, with specks."""
    rng = random.Random(1)
    for number in range(_IMAGES):
        digit = number % len(_GLYPHS)
        top, left, ink = rng.randrange(1, 3), rng.randrange(1, 5), rng.randrange(9, 16)
        image = [[rng.randrange(4) for _ in range(8)] for _ in range(8)]
        for y, line in enumerate(_GLYPHS[digit].split()):
            for x, pixel in enumerate(line):
                if pixel == "1":
                    image[top + y][left + x] = ink - rng.randrange(3)
        yield {"pixels": image, "digit": digit}


def likes() -> Iterator[dict[str, Any]]:
    """Pairs of users and items: one likes an item whose taste is one's own, more often than not."""
    rng = random.Random(2)
    users = [[rng.uniform(-2, 2) for _ in range(_TASTES)] for _ in range(_USERS)]
    items = [[rng.uniform(-2, 2) for _ in range(_TASTES)] for _ in range(_ITEMS)]
    for user, own in enumerate(users):
        for item, its in enumerate(items):
            taste = sum(a * b for a, b in zip(own, its, strict=True))
            yield {"user": user, "item": item, "liked": int(taste + rng.uniform(-0.5, 0.5) > 0)}


def main() -> None:
    """Write both files into the folder that was named."""
    folder = Path(sys.argv[1])
    for name, rows in (("digits", digits()), ("likes", likes())):
        text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
