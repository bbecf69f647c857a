"""PURE. Rows in the text format of Postgres' COPY, so that they can be made in one process and sent by another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

NULL = "\\N"
_SPECIAL = re.compile(r"[\\\t\n\r]")
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_ARRAY_SPECIAL = re.compile(r'[\\"\t\n\r]')
_ARRAY_ESCAPES = {"\\": "\\\\", '"': '\\"'}  # for the array; COPY's own come on top


def copy_text(rows: Iterable[tuple[Any, ...]]) -> bytes:
    """The rows, a line each. Of strings, whole numbers, booleans, times, None, and lists of strings or numbers."""
    cells = _CELLS
    return "".join(["\t".join([cells[type(value)](value) for value in row]) + "\n" for row in rows]).encode()


def _text(value: str) -> str:
    return value if _SPECIAL.search(value) is None else value.translate(_ESCAPES)


def _array(values: list[str] | list[int]) -> str:
    return "{" + ",".join([_element(value) for value in values]) + "}"


def _element(value: str | int) -> str:
    if not isinstance(value, str):
        return str(value)
    if _ARRAY_SPECIAL.search(value) is None:
        return f'"{value}"'
    return '"' + _text("".join(_ARRAY_ESCAPES.get(sign, sign) for sign in value)) + '"'


def _null(_: None) -> str:
    return NULL


_CELLS: dict[type, Callable[[Any], str]] = {
    str: _text,
    int: str,
    bool: str,
    datetime: datetime.isoformat,
    type(None): _null,
    list: _array,
}
