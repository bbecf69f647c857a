"""PURE. Kafka headers as the tables keep them: a JSON text of names and values, each byte of a value as the character
of that number, so that any bytes are kept and what is plain text can be read as such."""

from __future__ import annotations

from collections.abc import Iterable

import orjson

Headers = tuple[tuple[str, bytes | None], ...]


def written(headers: Iterable[tuple[str, bytes | None]]) -> str:
    """Headers as text, in order."""
    return orjson.dumps(
        [(_plain(name), None if value is None else value.decode("latin-1")) for name, value in headers]
    ).decode()


def read(text: str) -> Headers:
    """What `written` wrote."""
    return tuple(
        (name.encode("latin-1").decode("utf-8", "surrogateescape"), None if value is None else value.encode("latin-1"))
        for name, value in orjson.loads(text)
    )


def _plain(name: str) -> str:
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("latin-1")
