"""PURE. Rows in the text format of Postgres' COPY, so that they can be made in one process and sent by another."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

NULL = "\\N"
_SPECIAL = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_ARRAY_SPECIAL = str.maketrans({"\\": "\\\\\\\\", '"': '\\\\"'})  # escaped for the array, then for COPY


def copy_text(rows: Iterable[tuple[Any, ...]]) -> bytes:
    """The rows, a line each. Of strings, whole numbers, booleans, times, None, and lists of strings or numbers."""
    return "".join(["\t".join([_cell(value) for value in row]) + "\n" for row in rows]).encode()


def _cell(value: Any) -> str:
    kind = type(value)
    if kind is str:
        return value if value.isalnum() else value.translate(_SPECIAL)  # type: ignore[no-any-return]
    if value is None:
        return NULL
    if kind is list:
        return "{" + ",".join([_element(item) for item in value]) + "}"
    if kind is datetime:
        return value.isoformat()  # type: ignore[no-any-return]
    return str(value)


def _element(value: str | int) -> str:
    return '"' + value.translate(_ARRAY_SPECIAL) + '"' if isinstance(value, str) else str(value)
