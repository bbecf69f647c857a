"""The three forms of a record, and what of it is no event (contract, "Topics" and "Dead letters")."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.envelope import (
    MAX_DEPTH,
    Event,
    NotJson,
    Number,
    _parse_exactly,
    origin,
    parse_json,
    read_envelope,
    traceparent,
)
from service.records import DeadLetterReason, Record, Unreadable

Headers = tuple[tuple[str, bytes | None], ...]

DATA = b'{"orgId": 7, "redemptionId": "R-1"}'
BINARY: Headers = (
    ("ce_specversion", b"1.0"),
    ("ce_id", b"e-1"),
    ("ce_source", b"/shop"),
    ("ce_type", b"order.returned"),
    ("content-type", b"application/json"),
)
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def record(value: bytes | None, headers: Headers = ()) -> Record:
    return Record("order.returned", 2, 1841, 1795138201000, b"k", value, headers)


def structured(**changes: Any) -> bytes:
    event = {"specversion": "1.0", "id": "e-1", "source": "/shop", "type": "t", "data": {"orgId": 7}}
    return json.dumps({name: value for name, value in (event | changes).items() if value != ...}).encode()


def read(value: bytes | None, headers: Headers = (), max_bytes: int = 1_000) -> Event | Unreadable:
    return read_envelope(record(value, headers), max_bytes)


def reason(value: bytes | None, headers: Headers = (), max_bytes: int = 1_000) -> DeadLetterReason:
    answer = read(value, headers, max_bytes)
    assert isinstance(answer, Unreadable)
    assert answer.message
    return answer.reason


def without(name: str) -> Headers:
    return tuple(header for header in BINARY if header[0] != name)


def test_bare_json_is_the_data_of_an_event_without_a_name() -> None:
    assert read(DATA) == Event({"orgId": "7", "redemptionId": "R-1"}, None, None)


def test_binary_takes_source_and_id_from_the_headers() -> None:
    assert read(DATA, BINARY) == Event({"orgId": "7", "redemptionId": "R-1"}, "/shop", "e-1")


def test_structured_takes_all_from_the_body() -> None:
    assert read(structured()) == Event({"orgId": "7"}, "/shop", "e-1")


def test_structured_wins_over_ce_headers_beside_it() -> None:
    others: Headers = (("ce_specversion", b"0.3"), ("ce_id", b"other"), ("ce_source", b"/other"))
    assert read(structured(), others) == Event({"orgId": "7"}, "/shop", "e-1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("content-type", b"application/cloudevents+json"),
        ("Content-Type", b"Application/CloudEvents+JSON; charset=utf-8"),
        ("CONTENT-TYPE", b" application/cloudevents"),
    ],
)
def test_the_content_type_makes_a_body_structured_however_it_is_spelled(name: str, value: bytes) -> None:
    assert reason(DATA, ((name, value),)) is DeadLetterReason.BAD_ENVELOPE
    assert read(structured(), ((name, value),)) == Event({"orgId": "7"}, "/shop", "e-1")


def test_of_a_repeated_header_the_last_counts() -> None:
    assert read(DATA, (("ce_id", b"first"), *BINARY)) == read(DATA, BINARY)


def test_null_and_non_utf8_header_values_are_as_good_as_absent() -> None:
    assert isinstance(read(DATA, (("content-type", None), ("x", b"\xff"))), Event)
    assert isinstance(read(DATA, (("content-type", b"\xff\xfe"),)), Event)
    assert reason(DATA, (("ce_specversion", None),)) is DeadLetterReason.BAD_ENVELOPE
    assert reason(DATA, (*without("ce_id"), ("ce_id", b"\xff"))) is DeadLetterReason.BAD_ENVELOPE


@pytest.mark.parametrize("name", ["id", "source", "type"])
@pytest.mark.parametrize("value", [..., None, "", 7, ["x"]])
def test_a_structured_event_without_a_required_attribute_is_a_bad_envelope(name: str, value: object) -> None:
    assert reason(structured(**{name: value})) is DeadLetterReason.BAD_ENVELOPE


@pytest.mark.parametrize("version", ["", "1", "0.3", "2.0", "10", " 1.0", 1, 1.0, True, {}])
def test_a_specversion_that_does_not_begin_with_1_is_a_bad_envelope(version: object) -> None:
    assert reason(structured(specversion=version)) is DeadLetterReason.BAD_ENVELOPE
    headers = (*without("ce_specversion"), ("ce_specversion", str(version).encode()))
    if not isinstance(version, float):
        assert reason(DATA, headers) is DeadLetterReason.BAD_ENVELOPE


def test_a_later_minor_specversion_is_read() -> None:
    assert isinstance(read(structured(specversion="1.1")), Event)


def test_a_null_specversion_is_absent_so_the_body_is_bare() -> None:
    assert read(b'{"specversion": null, "orgId": 7}') == Event({"specversion": None, "orgId": "7"})


@pytest.mark.parametrize("name", ["ce_id", "ce_source", "ce_type"])
def test_a_binary_event_without_a_required_attribute_is_a_bad_envelope(name: str) -> None:
    assert reason(DATA, without(name)) is DeadLetterReason.BAD_ENVELOPE
    assert reason(DATA, (*without(name), (name, b""))) is DeadLetterReason.BAD_ENVELOPE


def test_ce_headers_without_a_specversion_make_no_event() -> None:
    assert read(DATA, without("ce_specversion")) == read(DATA)


@pytest.mark.parametrize("data", [..., None])
def test_an_event_without_data_is_not_an_object(data: object) -> None:
    assert reason(structured(data=data)) is DeadLetterReason.NOT_AN_OBJECT


@pytest.mark.parametrize("data", [[], "{}", 7, 1.5, True])
def test_data_that_is_no_object(data: object) -> None:
    assert reason(structured(data=data)) is DeadLetterReason.NOT_AN_OBJECT
    assert reason(json.dumps(data).encode()) is DeadLetterReason.NOT_AN_OBJECT
    assert reason(json.dumps(data).encode(), BINARY) is DeadLetterReason.NOT_AN_OBJECT


def test_null_is_no_object() -> None:
    assert reason(b"null") is DeadLetterReason.NOT_AN_OBJECT


def test_a_batch_of_cloudevents_is_not_an_object() -> None:
    batch: Headers = (("content-type", b"application/cloudevents-batch+json"),)
    assert reason(b"[" + structured() + b"]", batch) is DeadLetterReason.NOT_AN_OBJECT


def test_data_base64_is_decoded() -> None:
    encoded = base64.b64encode(DATA).decode()
    assert read(structured(data=..., data_base64=encoded)) == Event(
        {"orgId": "7", "redemptionId": "R-1"}, "/shop", "e-1"
    )
    assert read(structured(data=None, data_base64=encoded)) == read(structured(data=..., data_base64=encoded))
    assert read(structured(data_base64=encoded)) == read(structured())


@pytest.mark.parametrize("encoded", ["%%%", "eyJ", "eyJ9 ", "é", 7, {}, ["eyJ9"]])
def test_unreadable_data_base64_is_a_bad_envelope(encoded: object) -> None:
    assert reason(structured(data=..., data_base64=encoded)) is DeadLetterReason.BAD_ENVELOPE


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        (b"", DeadLetterReason.NOT_JSON),
        (b"{", DeadLetterReason.NOT_JSON),
        (b"\xef\xbb\xbf{}", DeadLetterReason.NOT_JSON),
        (b"\xff", DeadLetterReason.NOT_JSON),
        (b"[]", DeadLetterReason.NOT_AN_OBJECT),
        (b"null", DeadLetterReason.NOT_AN_OBJECT),
    ],
)
def test_bad_data_in_base64_is_bad_data(inside: bytes, expected: DeadLetterReason) -> None:
    assert reason(structured(data=..., data_base64=base64.b64encode(inside).decode())) is expected


NOT_JSON = {
    "no value": None,
    "empty": b"",
    "blank": b"  ",
    "cut": b'{"orgId": 7',
    "two documents": b"{} {}",
    "trailing comma": b'{"a": 1,}',
    "single quotes": b"{'a': 1}",
    "comment": b"{} // x",
    "not UTF-8": b'{"a": "\xff"}',
    "overlong UTF-8": b'{"a": "\xc0\xaf"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "raw surrogate": b'{"a": "\xed\xa0\x80"}',
    "escaped lone surrogate": b'{"a": "\\ud800"}',
    "escaped low surrogate": b'{"a": "\\uDC00"}',
    "surrogates in the wrong order": b'{"a": "\\udc00\\ud800"}',
    "surrogate in a name": b'{"\\uD83D": 1}',
    "surrogate in a field that nobody reads": b'{"orgId": 7, "x": [{"y": "\\udfff"}]}',
    "raw control character": b'{"a": "\n"}',
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "leading zero": b'{"a": 01}',
    "plus": b'{"a": +1}',
    "bare fraction": b'{"a": .5}',
    "too deep": b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
    "far too deep": b"[" * 100_000 + b"]" * 100_000,
    "far too deep and cut": b'{"a":' * 100_000,
}


@pytest.mark.parametrize("value", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_not_json(value: bytes | None) -> None:
    assert reason(value, max_bytes=2**20) is DeadLetterReason.NOT_JSON
    assert reason(value, BINARY, max_bytes=2**20) is DeadLetterReason.NOT_JSON


def test_surrogates_in_pairs_and_escaped_backslashes_are_text() -> None:
    assert parse_json(b'{"a": "\\ud83d\\ude00", "b": "\\\\ud800"}') == {"a": "😀", "b": "\\ud800"}


def test_the_deepest_that_is_read() -> None:
    value = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert parse_json(value) is not None
    assert parse_json(b"[" + b"[]," * 1_000 + b"[]]") == [[]] * 1_001
    with pytest.raises(NotJson, match="64 levels"):
        parse_json(b"[" + value + b"]")


def test_numbers_stay_as_written_and_of_a_repeated_key_the_last_counts() -> None:
    document = parse_json(b'{"a": 1, "a": 1.50, "b": 123456789012345678901234567890, "c": 1E3, "d": "1"}')
    assert document == {"a": "1.50", "b": "123456789012345678901234567890", "c": "1E3", "d": "1"}
    assert [type(value) for value in document.values()] == [Number, Number, Number, str]
    assert parse_json(b"9" * 10_000) == "9" * 10_000


def test_size_is_judged_before_content_and_the_limit_is_inclusive() -> None:
    assert reason(b"\xff" * 11, max_bytes=10) is DeadLetterReason.TOO_LARGE
    assert reason(b"\xff" * 10, max_bytes=10) is DeadLetterReason.NOT_JSON


def test_what_is_wrong_first_names_the_letter() -> None:
    bad = without("ce_id")
    assert reason(b"{", bad) is DeadLetterReason.NOT_JSON
    assert reason(b"[]", bad) is DeadLetterReason.BAD_ENVELOPE
    assert reason(structured(id=None, data=None)) is DeadLetterReason.BAD_ENVELOPE
    assert reason(structured(id=None, data=..., data_base64="%")) is DeadLetterReason.BAD_ENVELOPE


@pytest.mark.parametrize(
    ("value", "headers", "expected"),
    [
        (DATA, (("traceparent", TRACE.encode()),), TRACE),
        (DATA, (("ce_traceparent", TRACE.encode()),), TRACE),
        (DATA, (("ce_traceparent", b"other"), ("traceparent", TRACE.encode())), TRACE),
        (structured(traceparent=TRACE), (), TRACE),
        (structured(traceparent=TRACE), (("traceparent", b"newer"),), "newer"),
        (structured(traceparent=TRACE), (("traceparent", b"\xff"),), TRACE),
        (structured(traceparent=7), (), None),
        (structured(traceparent="x" * 129), (), None),
        (structured(traceparent="a\nb"), (), None),
        (b'{"orgId": 7, "traceparent": "x"}', (), None),
        (b'{"traceparent"', (), None),
        (b'["traceparent"]', (), None),
        (DATA, (("traceparent", None),), None),
        (DATA, (("traceparent", "é".encode()),), None),
        (DATA, (("traceparent", b""),), None),
        (None, (), None),
    ],
)
def test_the_trace_goes_on_where_it_is_one(value: bytes | None, headers: Headers, expected: str | None) -> None:
    assert traceparent(record(value, headers)) == expected


@pytest.mark.parametrize("place", ["order.returned/0/17@1795138201000", "a-b_c.d/12/0@-1"])
def test_a_replayed_letter_is_named_by_its_original(place: str) -> None:
    assert origin(record(DATA, (("replay-of", place.encode()),))) == place


MALFORMED = b"|\xff|t/0/1|t/0/1@|t/0/1@1 |/0/1@1|t/x/1@1|t/0/-1@1|t t/0/1@1|t/0/1@1\n|t/0/1@--1"


@pytest.mark.parametrize("header", [None, *MALFORMED.split(b"|")])
def test_a_malformed_replay_header_is_ignored(header: bytes | None) -> None:
    assert origin(record(DATA, (("replay-of", header),))) == "order.returned/2/1841@1795138201000"


JSON_PIECES = [
    b"{", b"}", b"[", b"]", b":", b",", b'"a"', b"0", b"-0", b"7", b"-5", b"1.50", b"1e3", b"18446744073709551615",
    b"18446744073709551616", b"-9223372036854775809", b"01", b"null", b"true", b'"\\ud800"', b'"\\ud83d\\ude00"',
    b"NaN", b" ", b"\n", b"\xef\xbb\xbf", b"\xff", b'"\xc3\xa9"', b'"\x01"', b'"\\u0000"', b'"\x7f"', b"\x0c",
    b"\xc2\xa0", b'{"a":-0}', b'{"a":1,"a":2.0}', b'{"a":2.0,"a":1}', b'{"a":"\\ud800","a":1}', b'{"a":{"b":[3]}}',
]  # fmt: skip


def told(document: Any) -> object:
    """The document with its types, since a Number equals the string of its text."""
    if isinstance(document, dict):
        return [(name, told(item)) for name, item in document.items()]
    return [told(item) for item in document] if isinstance(document, list) else (type(document), document)


def answer(parse: Callable[[bytes], object], value: bytes) -> object:
    try:
        return told(parse(value))
    except NotJson as fault:
        return str(fault)


def test_the_quick_way_and_the_exact_way_read_the_same() -> None:
    values_ = [value for value in NOT_JSON.values() if value is not None]
    values_ += [a + b + c for a in JSON_PIECES for b in JSON_PIECES for c in JSON_PIECES]
    values_ += [b'{"a":' + piece + b"}" for piece in JSON_PIECES] + [b"[" + piece + b"]" for piece in JSON_PIECES]
    for value in values_:
        assert answer(parse_json, value) == answer(_parse_exactly, value), value


names = st.sampled_from([name for name, _ in BINARY] + ["traceparent", "replay-of", "Content-Type", "dlq.reason"])
header_values = st.none() | st.binary(max_size=20) | st.sampled_from([b"1.0", b"application/cloudevents+json"])
headers_strategy = st.lists(st.tuples(names | st.text(max_size=5), header_values), max_size=6).map(tuple)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["specversion", "id", "source", "type", "data", "data_base64", "traceparent"])
            | st.text(max_size=3),
            inner,
            max_size=7,
        )
    ),
    max_leaves=20,
)
values = st.none() | st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode())


@given(values, headers_strategy)
def test_whatever_arrives_is_an_event_or_unreadable(value: bytes | None, headers: Headers) -> None:
    arrived = record(value, headers)
    answer = read_envelope(arrived, 1_000)
    assert isinstance(answer, (Event, Unreadable))
    trace = traceparent(arrived)
    assert trace is None or (trace.isascii() and trace.isprintable())
    assert origin(arrived)


@given(st.recursive(st.none() | st.booleans() | st.text(), lambda i: st.lists(i) | st.dictionaries(st.text(), i)))
def test_json_without_numbers_is_read_as_it_was_written(document: object) -> None:
    assert parse_json(json.dumps(document, ensure_ascii=False).encode()) == document
    assert parse_json(json.dumps(document).encode()) == document
