"""Hostile records from files, and what must come of each; README.md tells the form."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLACE = Path(__file__).parent
FIELDS = {"topic", "key", "value", "headers", "becomes", "field"}


@dataclass(frozen=True, slots=True)
class Case:
    """One file. `becomes`: what must come of the record; `field`: which its validation error must name."""

    name: str
    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    becomes: str
    field: str | None

    @property
    def reason(self) -> str | None:
        """Of a dead letter."""
        return self.becomes.removeprefix("dlq ") if self.becomes.startswith("dlq ") else None

    @property
    def error(self) -> str | None:
        """Code and name of a refusal."""
        return self.becomes if self.becomes[0].isdigit() else None


def corpus() -> list[Case]:
    """All of them, by name."""
    return [read(path) for path in sorted(PLACE.glob("*.toml"))]


def read(path: Path) -> Case:
    """The case in a file; fails where it says what no case can."""
    told = tomllib.loads(path.read_text("utf-8"))
    assert told.keys() <= FIELDS, (path.name, told.keys() - FIELDS)
    headers = tuple((_bytes(one["name"]).decode(), _bytes_or_none(one, "value")) for one in told.get("headers", ()))
    return Case(
        path.stem,
        told.get("topic", "order.returned"),
        _bytes_or_none(told, "key"),
        _bytes_or_none(told, "value"),
        headers,
        told["becomes"],
        told.get("field"),
    )


def _bytes_or_none(table: dict[str, Any], name: str) -> bytes | None:
    return _bytes(table[name]) if name in table else None


def _bytes(parts: str | Sequence[Any]) -> bytes:
    return parts.encode() if isinstance(parts, str) else b"".join(_part(part) for part in parts)


def _part(part: str | dict[str, Any]) -> bytes:
    if isinstance(part, str):
        return part.encode()
    content = bytes.fromhex(part["hex"]) if "hex" in part else part["text"].encode()
    return content * int(part.get("times", 1))
