"""How sources are cut into units of work: by sizes alone, never by the number of workers. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.data.sources.file import SourceFile
from orchestrator.data.sources.rows import Part, is_splittable
from orchestrator.job_data import Data

_UNITS_AIMED_AT = 32
_UNIT_MIN_BYTES = 1 << 20
_UNIT_MAX_BYTES = 128 << 20


def cut_into_units(files: Sequence[SourceFile], data: Data) -> list[list[Part]]:
    """Units of consecutive parts of files; a unit never holds parts of two sources or of two given splits."""
    target = sum(f.size_bytes for f in files) // _UNITS_AIMED_AT
    target = min(_UNIT_MAX_BYTES, max(_UNIT_MIN_BYTES, target))
    units: list[list[Part]] = []
    held_bytes = 0
    for file in files:
        for part in _parts(file, data, target):
            last = units[-1][-1].file if units else None
            same = last is not None and (last.source, last.split) == (file.source, file.split)
            if not same or held_bytes + part.size_bytes > target:
                units.append([])
                held_bytes = 0
            units[-1].append(part)
            held_bytes += part.size_bytes
    return units


def _parts(file: SourceFile, data: Data, target_bytes: int) -> Iterator[Part]:
    step = target_bytes
    if file.format == "text":  # pieces of long texts begin at multiples of the longest document
        step = -(-target_bytes // data.max_document_bytes) * data.max_document_bytes
    if file.size_bytes <= 2 * step or not is_splittable(file, data.sources[file.source]):
        yield Part(file)
        return
    for start in range(0, file.size_bytes, step):
        yield Part(file, start, min(start + step, file.size_bytes))


def first_rows(units: Sequence[Sequence[Part]], rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """What to add to a row's number in its part to have it in its file. `rows` are those of each part of each unit."""
    bases: list[list[int]] = []
    before = 0
    for unit, counts in zip(units, rows, strict=True):
        bases.append([])
        for part, count in zip(unit, counts, strict=True):
            # Pieces of a long text are numbered over the whole file already.
            continued = part.start > 0 and part.file.format != "text"
            before = before if continued else 0
            bases[-1].append(before)
            before += count
    return bases
