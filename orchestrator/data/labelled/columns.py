"""Numbers by name: rows for models that take no text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.labelled.fields import Fields, integer, shown, type_name
from orchestrator.data.labelled.protocol import Columns
from orchestrator.data.tokens.tokenizer import Encoder
from orchestrator.data.values import Record, RowError
from orchestrator.job_data import Source

_TYPE = re.compile(r"(int64|float32)(?:\[([0-9]+)\])?")
_INT64 = range(-(1 << 63), 1 << 63)
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class FixedColumns:
    """Rows with the columns of `data.columns`; others are left out.

    Args:
        columns: name -> `int64`, `float32`, or one of these with a size, such as `float32[784]`.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._types: dict[str, tuple[str, int | None]] = {}
        for name, spelled in columns.items():
            match = _TYPE.fullmatch(spelled)
            assert match, spelled  # the job's own check has seen it
            self._types[name] = (match[1], int(match[2]) if match[2] else None)
        self._roles = {name: (name,) for name in columns}

    def record(self, fields: dict[str, Any], source: Source) -> Record:
        """As LabelledKind. Lists in lists, such as the rows of an image, are taken one after another."""
        parts = Fields(fields, source.fields, self._roles)
        values = {name: _value(parts.get(name), name, *self._types[name]) for name in self._types}
        return Record((), values)

    def labels_of(self, record: Record) -> Iterable[str]:
        """None."""
        return ()

    def schema(self) -> list[tuple[str, str]]:
        """As LabelledKind."""
        return [(name, kind if size is None else f"{kind}[{size}]") for name, (kind, size) in self._types.items()]

    def encode(self, records: Sequence[Record], encoder: Encoder | None, labels: Sequence[str]) -> Columns:
        """As LabelledKind; the tokenizer is not asked."""
        return {
            name: np.array([record.labels[name] for record in records], dtype=kind)
            for name, (kind, _) in self._types.items()
        }

    def lengths(self, columns: Columns) -> npt.NDArray[np.int64]:
        """0: there are no tokens."""
        return np.zeros(len(next(iter(columns.values()))), dtype=np.int64)


def _value(value: Any, name: str, kind: str, size: int | None) -> Any:
    if size is None:
        return _number(value, name, kind)
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise RowError(f"{name} is {type_name(value)}, not a list of {size}")
    if (numbers := _all_at_once(value, kind, size)) is not None:
        return numbers
    flat = list(_flat(value))
    if len(flat) != size:
        raise RowError(f"{name} holds {len(flat)} numbers, not {size}")
    return [_number(entry, f"{name}[{i}]", kind) for i, entry in enumerate(flat)]


def _all_at_once(value: Any, kind: str, size: int) -> list[Any] | None:
    """The numbers, if every check passes for all of them together; else the caller looks for the one at fault."""
    try:
        numbers = np.asarray(value)
    except (ValueError, OverflowError):
        return None
    if numbers.size != size or numbers.dtype.kind not in ("iu" if kind == "int64" else "iuf"):
        return None
    if numbers.dtype == np.uint64 or not (np.abs(numbers.astype(np.float64)) <= _FLOAT32_MAX).all():
        return None
    return list(numbers.reshape(-1).tolist())


def _flat(values: Any) -> Iterable[Any]:
    for value in values:
        if isinstance(value, (list, tuple, np.ndarray)):
            yield from _flat(value)
        else:
            yield value


def _number(value: Any, name: str, kind: str) -> int | float:
    if isinstance(value, np.generic):
        value = value.item()
    if kind == "int64":
        whole = int(value) if isinstance(value, float) and value.is_integer() else integer(value)
        if whole is None or whole not in _INT64:
            raise RowError(f"{name} is {shown(value)}, not a whole number of 64 bits")
        return whole
    number = _float(value)
    if number is None:
        raise RowError(f"{name} is {shown(value)}, not a number")
    if not abs(number) <= _FLOAT32_MAX:
        raise RowError(f"{name} is {number}: not a finite number of 32 bits")
    return number


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
