"""PURE. Kafka headers as the tables keep them: each byte of a value as the character of that number (latin-1), so that
any bytes are kept and what is plain text can be read as such; a list of them as a JSON text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import orjson

Headers = list[tuple[str, bytes | None]]  # as Kafka has them
Kept = Sequence[tuple[str, str | None]]  # as the tables keep them


def kept(headers: Iterable[tuple[str, bytes | None]]) -> Kept:
    """Kafka's headers, as they are kept."""
    return [(_plain(name), None if value is None else value.decode("latin-1")) for name, value in headers]


def plain(text: str) -> str:
    """A text as the value of a header that is kept: its UTF-8 bytes."""
    return text if text.isascii() else text.encode().decode("latin-1")


def written(headers: Kept) -> str:
    """Kept headers as one text, in order."""
    return orjson.dumps(headers).decode()


def read(text: str) -> Headers:
    """Kafka's headers, from what `written` wrote."""
    return sent(orjson.loads(text))


def sent(headers: Kept) -> Headers:
    """Kafka's headers, from kept ones."""
    return [
        (
            name if name.isascii() else name.encode("latin-1").decode("utf-8", "surrogateescape"),
            None if value is None else value.encode("latin-1"),
        )
        for name, value in headers
    ]


def _plain(name: str) -> str:
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("latin-1")
