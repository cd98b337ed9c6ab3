"""The parts of a labelled row, found under the names that people use for them, and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from orchestrator.data.values import RowError
from orchestrator.errors import DataError

Roles = Mapping[str, tuple[str, ...]]
"""Part of a row -> the fields it may stand in, the likeliest first."""
_SHOWN_CHARACTERS = 40
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Fields:
    """The parts of one row.

    Args:
        fields: the row.
        given: part -> field, as the source's `fields` say.
        roles: the parts that the kind knows.

    Raises:
        DataError: `given` names a part that the kind does not know.
    """

    def __init__(self, fields: Mapping[str, Any], given: Mapping[str, str], roles: Roles) -> None:
        if unknown := sorted(set(given) - set(roles)):
            raise DataError(
                f"a source's fields name {', '.join(unknown)}; the parts of a row are {', '.join(roles)}",
                fix="mend data.sources fields: a part of the row, then the field that holds it",
            )
        self._fields, self._given, self._roles = fields, given, roles

    def has(self, role: str) -> bool:
        """Whether the row holds the part."""
        return self._field(role) is not None

    def get(self, role: str) -> Any:
        """A part as the row gives it; RowError if it is missing."""
        field = self._field(role)
        if field is None:
            wanted = self._given.get(role) or " or ".join(self._roles[role])
            raise RowError(f"no field {wanted}; the row has {', '.join(map(str, self._fields)) or 'none'}")
        return self._fields[field]

    def text(self, role: str) -> str:
        """A part that must be text and not empty."""
        return text_of(self.get(role), self._field(role) or role)

    def _field(self, role: str) -> str | None:
        names = (self._given[role],) if role in self._given else self._roles[role]
        return next((name for name in names if self._fields.get(name) is not None), None)


def text_of(value: Any, name: str) -> str:
    """The value, if it is a text with something to see in it; else RowError."""
    if not isinstance(value, str):
        raise RowError(f"{name} is {type_name(value)}, not text")
    require_encodable(value, name)
    if not value.strip():
        raise RowError(f"{name} is empty")
    return value


def require_encodable(value: str, name: str) -> None:
    """Refuse half of a surrogate pair, which JSON may spell and UTF-8 cannot hold."""
    if not value.isascii() and (found := _LONE_SURROGATE.search(value)):
        raise RowError(f"{name} holds a lone surrogate, U+{ord(found.group()):04X}")


def list_of(value: Any, name: str) -> list[Any]:
    """The value, if it is a list; else RowError."""
    if not isinstance(value, (list, tuple)):
        raise RowError(f"{name} is {type_name(value)}, not a list")
    return list(value)


def integer(value: Any) -> int | None:
    """A whole number, or one that a text spells; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    if isinstance(value, int):
        return value
    return int(value) if re.fullmatch(r"-?[0-9]{1,18}", value.strip(), re.ASCII) else None


def type_name(value: Any) -> str:
    """What a value is, in words."""
    names = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def shown(value: Any) -> str:
    """A value as a reason shows it: quoted and short."""
    text = str(value)
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")


def one_of(label: Any, labels: list[str] | None, what: str) -> str:
    """The name of a label: itself, or the one that its number counts off in `labels` (from 0).

    A label that is spelled in `labels` is that one, even if it looks like a number.

    Raises:
        RowError: it is neither a name nor a number, or not one of `labels`.
    """
    if isinstance(label, bool) or not isinstance(label, (int, str)):
        raise RowError(f"{what} is {type_name(label)}, not a name or a whole number")
    name = str(label).strip()
    require_encodable(name, what)
    if not name:
        raise RowError(f"{what} is empty")
    if labels is None or name in labels:
        return name
    number = integer(label)
    if number is not None and 0 <= number < len(labels):
        return labels[number]
    raise RowError(f"{what} {shown(name)} is not one of {', '.join(labels)}")
