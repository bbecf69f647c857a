"""PURE. From a record's bytes and headers to the event in it (contract, "Topics" and "Dead letters").

Laws: nothing here raises but `parse_json`, whatever the bytes; what is wrong first names the dead letter: no
value, too large, not JSON, not a CloudEvent that says what it must, no object, in this order. Numbers stay as
written.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, NamedTuple, NoReturn

import orjson

from service.records import DeadLetterReason, Record, Unreadable

MAX_DEPTH = 64  # of arrays and objects; the deepest event of ours, in its envelope, has 4
REQUIRED_ATTRIBUTES = ("specversion", "id", "source", "type")

_BYTE_ORDER_MARK = "\ufeff"
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_TRACEPARENT = re.compile(r"[\x21-\x7e]{1,128}")
_PLACE = re.compile(r"[A-Za-z0-9._-]{1,249}/[0-9]{1,10}/[0-9]{1,19}@-?[0-9]{1,19}")


class Number(str):
    """A JSON number by its text: `1.50` stays `1.50`. Readers tell it from a JSON string by its type."""

    __slots__ = ()


class NotJson(ValueError):
    """The bytes are no JSON that the service reads; the message says why in plain words."""


class Event(NamedTuple):
    """The data of an event and, of a CloudEvent, its source and id."""

    data: dict[str, Any]
    source: str | None = None
    id: str | None = None


def _refuse_constant(_name: str) -> NoReturn:
    raise NotJson("a number must be finite: NaN and Infinity are not JSON")


_DECODER = json.JSONDecoder(parse_float=Number, parse_int=Number, parse_constant=_refuse_constant)


def parse_json(value: bytes) -> Any:
    """The document in UTF-8 bytes: numbers as `Number`, of a repeated key the last. Raises NotJson only.

    Refused beyond the grammar: a byte order mark, a lone surrogate (also as an escape), more than MAX_DEPTH
    levels.
    """
    if value.count(b"{") + value.count(b"[") <= MAX_DEPTH:
        try:
            return _as_written(orjson.loads(value))
        except (orjson.JSONDecodeError, _TextLostError):
            pass  # the exact way tells what is wrong, or keeps the text
    return _parse_exactly(value)


class _TextLostError(Exception):
    """A number was read that does not tell how it was written."""


def _as_written(value: Any) -> Any:
    """What the quick way read, with integers by their text again; zero may have been written `-0`."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if kind is int and value != 0:
        return Number(value)
    if kind is dict:
        for name, item in value.items():
            if type(item) is not str:
                value[name] = _as_written(item)
        return value
    if kind is list:
        return [_as_written(item) for item in value]
    raise _TextLostError


def _parse_exactly(value: bytes) -> Any:
    try:
        text = value.decode()
    except UnicodeDecodeError as fault:
        raise NotJson(f"the value is not UTF-8 (byte {fault.start})") from None
    if text.startswith(_BYTE_ORDER_MARK):
        raise NotJson("the value begins with a byte order mark")
    if not text:
        raise NotJson("the value is empty")
    try:
        document = _DECODER.decode(text)
    except json.JSONDecodeError as fault:
        raise NotJson(f"the value is not JSON (line {fault.lineno}, column {fault.colno})") from None
    except RecursionError:
        raise NotJson(f"the value is nested deeper than {MAX_DEPTH} levels") from None
    if _deeper_than(document, MAX_DEPTH):
        raise NotJson(f"the value is nested deeper than {MAX_DEPTH} levels")
    if _SURROGATE_ESCAPE.search(value) and _has_lone_surrogate(document):
        raise NotJson("the value holds half of a surrogate pair")
    return document


def _deeper_than(document: Any, depth: int) -> bool:
    level = [document]
    for _ in range(depth + 1):
        containers = [item for item in level if isinstance(item, (dict, list))]
        if not containers:
            return False
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
    return True


def _has_lone_surrogate(document: Any) -> bool:
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def read_envelope(record: Record, max_bytes: int) -> Event | Unreadable:
    """The event of a record in any of its forms: structured, binary, bare. `max_bytes` bounds the value."""
    value = record.value
    if value is None:
        return Unreadable(DeadLetterReason.NOT_JSON, "the record has no value")
    if len(value) > max_bytes:
        return Unreadable(DeadLetterReason.TOO_LARGE, f"the value has {len(value)} bytes, {max_bytes} are allowed")
    try:
        document = parse_json(value)
    except NotJson as fault:
        return Unreadable(DeadLetterReason.NOT_JSON, str(fault))
    headers = _headers(record)
    if _is_structured(document, headers):
        return _structured(document)
    if "ce_specversion" in headers:
        return _binary(document, headers)
    return _event(document, None, None)


def _headers(record: Record) -> dict[str, bytes | None]:
    """By lower-case name; of a repeated one the last, as Kafka's own clients read them."""
    return {name.lower(): value for name, value in record.headers} if record.headers else {}


def _text(headers: dict[str, bytes | None], name: str) -> str | None:
    """A header as text; None when absent, null or not UTF-8."""
    value = headers.get(name)
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _is_structured(document: Any, headers: dict[str, bytes | None]) -> bool:
    if isinstance(document, dict) and document.get("specversion") is not None:
        return True
    content_type = headers.get("content-type")
    return content_type is not None and content_type.strip().lower().startswith(b"application/cloudevents")


def _structured(document: Any) -> Event | Unreadable:
    if not isinstance(document, dict):
        return Unreadable(DeadLetterReason.NOT_AN_OBJECT, f"a CloudEvent must be an object, not {_kind(document)}")
    attributes = {name: document.get(name) for name in REQUIRED_ATTRIBUTES}
    wrong = _attributes_fault(attributes)
    if wrong is not None:
        return wrong
    data = document.get("data")
    encoded = document.get("data_base64")
    if data is None and encoded is not None:
        if type(encoded) is not str:
            return Unreadable(DeadLetterReason.BAD_ENVELOPE, "data_base64 must be a string")
        try:
            content = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            return Unreadable(DeadLetterReason.BAD_ENVELOPE, "data_base64 is not base64")
        try:
            data = parse_json(content)
        except NotJson as fault:
            return Unreadable(DeadLetterReason.NOT_JSON, f"in data_base64, {fault}")
    return _event(data, document["source"], document["id"])


def _binary(document: Any, headers: dict[str, bytes | None]) -> Event | Unreadable:
    attributes: dict[str, Any] = {name: _text(headers, "ce_" + name) for name in REQUIRED_ATTRIBUTES}
    wrong = _attributes_fault(attributes, prefix="ce_")
    if wrong is not None:
        return wrong
    return _event(document, attributes["source"], attributes["id"])


def _attributes_fault(attributes: dict[str, Any], prefix: str = "") -> Unreadable | None:
    for name, value in attributes.items():
        if type(value) is not str or not value:
            message = f"the CloudEvent's {prefix}{name} must be a non-empty text"
            return Unreadable(DeadLetterReason.BAD_ENVELOPE, message)
    if not attributes["specversion"].startswith("1."):
        return Unreadable(DeadLetterReason.BAD_ENVELOPE, f'the CloudEvent\'s {prefix}specversion must begin with "1."')
    return None


def _event(data: Any, source: str | None, event_id: str | None) -> Event | Unreadable:
    if isinstance(data, dict):
        return Event(data, source, event_id)
    message = "the event has no data" if data is None else f"the data must be an object, not {_kind(data)}"
    return Unreadable(DeadLetterReason.NOT_AN_OBJECT, message)


def _kind(document: Any) -> str:
    names = {list: "an array", str: "a string", Number: "a number", bool: "true or false", type(None): "null"}
    return names[type(document)]


def traceparent(record: Record) -> str | None:
    """The trace that the record belongs to, to be passed on unchanged: of the headers `traceparent` and
    `ce_traceparent`, else of a structured event's attribute.

    None where there is none, or it is not 1 to 128 visible ASCII characters.
    """
    if record.headers:
        headers = _headers(record)
        for name in ("traceparent", "ce_traceparent"):
            text = _text(headers, name)
            if text is not None and _TRACEPARENT.fullmatch(text):
                return text
    if record.value is None or b'"traceparent"' not in record.value:
        return None
    try:
        document = parse_json(record.value)
    except NotJson:
        return None
    if not isinstance(document, dict) or not _is_structured(document, _headers(record)):
        return None
    text = document.get("traceparent")
    return text if type(text) is str and _TRACEPARENT.fullmatch(text) else None


def origin(record: Record) -> str:
    """The place that names the record in a derived key: that of the original for a replayed dead letter (a
    well-formed `replay-of` header), else its own."""
    if record.headers:
        text = _text(_headers(record), "replay-of")
        if text is not None and _PLACE.fullmatch(text):
            return text
    return record.place
