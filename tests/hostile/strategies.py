"""Records that anybody might send, by mistake or on purpose: bytes, JSON, and what looks like an event.

JSON is put together as text, so that it may say what no encoder would: a name twice, NaN, halves of surrogate pairs.
"""

from __future__ import annotations

import base64
import json
from typing import TypeVar

from hypothesis import strategies as st

from service.records import Kind, Record

T = TypeVar("T")

ORG, CUSTOMER = 100458, 42
TIMESTAMP_MS = 1_763_000_000_000

Headers = tuple[tuple[str, bytes | None], ...]

# Every character there is, also halves of surrogate pairs; those that have broken something somewhere come often.
AWKWARD = (
    "\0\x01\n\r\t\x1b\x7f\x85\u00ad\u200b\u200d\u202e\u2028\u2029"
    "\u2066\ufeff\ufffe\uffff\U0010ffff'\"\\`$%{}[]<>;-/\u0130\u0661\uff11"
    "\ud800\udfff"
)
characters = st.one_of(st.sampled_from(AWKWARD), st.characters(), st.characters(categories=["Cs", "Cf", "Co", "Cn"]))
texts = st.one_of(
    st.sampled_from(AWKWARD).map(lambda character: f"R{character}1"),
    st.text(characters, max_size=12),
    st.sampled_from([
        "", " ", "R-1", "R-2", "R-u", "SO-1", "main", "L-1", "K-1", "\\N", "\\.", "NULL", "'; drop table lot; --", "$1",
        "%s", "{}",
        "x" * 255, "x" * 256, "\U0001f600" * 255, "1_000", "1e5", "NaN", "infinity", "-infinity", "now", "0", "-1", "1",
        "150.5", "0.0001",
        "999999999999999.999", "1000000000000000", "+6591234567", "return:a/b", "sha256:" + "0" * 64,
    ]),
)  # fmt: skip
numbers = st.one_of(
    st.sampled_from([
        "0", "-0", "-0.0", "1", "-1", "1.5", "1.0", "0.0001", "1e5", "1E+400", "1e999999", "1e-999999", "NaN",
        "Infinity", "-Infinity",
        "01", "1.", ".5", "+1", "0x1", "1_0", "123456789012345", "1234567890123456", "9223372036854775807",
        "9223372036854775808",
        "18446744073709551616", "9" * 400, "0." + "3" * 400, str(ORG), str(CUSTOMER),
    ]),
    st.integers().map(str),
    st.floats().map(repr),
)  # fmt: skip
times = st.one_of(
    st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
    st.sampled_from([
        "2026-11-20T09:30:00+08:00", "2026-11-20t09:30:00z", "0001-01-01T00:00:00.5Z", "9999-12-31T23:59:59Z",
        "2026-02-30T00:00:00Z",
        "0000-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59", "2026-06-30T23:59:60Z", "2026-11-20T09:30:00", "",
    ]),
)  # fmt: skip


def quoted(text: str) -> str:
    return json.dumps(text)


raw_texts = texts.map(quoted)
scalars = st.one_of(raw_texts, numbers, st.sampled_from(["null", "true", "false"]), times.map(quoted))
json_values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[" + ",".join(items) + "]"),
        st.lists(st.tuples(raw_texts, inner), max_size=3).map(
            lambda items: "{" + ",".join(f"{name}:{value}" for name, value in items) + "}"
        ),
    ),
    max_leaves=6,
)
identifiers = st.tuples(
    st.one_of(st.sampled_from(['"PHONE"', '"EMAIL"', '"ID"', '"EXTERNAL_ID"']), scalars),
    st.one_of(raw_texts, st.sampled_from([f'"{CUSTOMER}"', '"+6591234567"'])),
).map(lambda both: f'{{"type":{both[0]},"value":{both[1]}}}')
lots = st.lists(st.tuples(raw_texts, st.one_of(numbers, raw_texts)), max_size=3).map(
    lambda items: "[" + ",".join(f'{{"lotId":{lot},"points":{points}}}' for lot, points in items) + "]"
)

NAMES = {
    Kind.ORDER_RETURNED: (
        "orgId", "redemptionId", "orderId", "returnId", "pointsToBeReversed", "quantity", "identifier", "idempotencyKey",
        "reason",
        "programId", "returnedAt",
    ),
    Kind.CUSTOMER_UPDATED: ("orgId", "customerId", "status", "lockedUntil", "identifiers", "updatedAt"),
    Kind.POINTS_ISSUED: ("orgId", "customerId", "lotId", "programId", "points", "expiresAt", "issuedAt"),
    Kind.POINTS_REDEEMED: (
        "orgId", "customerId", "redemptionId", "orderId", "programId", "type", "points", "rewardId", "quantity",
        "redeemedAt", "lots",
    ),
}  # fmt: skip
# What a sound record begins with; whatever comes behind it under the same name counts.
SOUND = {
    Kind.ORDER_RETURNED: (f'"orgId":{ORG},"redemptionId":"R-1"', f'"orgId":{ORG},"orderId":"SO-1"',
    f'"orgId":{ORG},"redemptionId":"R-u"'),
    Kind.CUSTOMER_UPDATED: (f'"orgId":{ORG},"customerId":{CUSTOMER}', f'"orgId":{ORG},"customerId":43'),
    Kind.POINTS_ISSUED: (f'"orgId":{ORG},"customerId":{CUSTOMER},"lotId":"L-9","points":"5"',),
    Kind.POINTS_REDEEMED: (f'"orgId":{ORG},"customerId":{CUSTOMER},"redemptionId":"R-9","points":"5"',),
}  # fmt: skip


def _snake(name: str) -> str:
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in name)


def often(*weighted: tuple[int, st.SearchStrategy[T]]) -> st.SearchStrategy[T]:
    """One of the strategies, each so many times as often."""
    return st.sampled_from([one for times, one in weighted for _ in range(times)]).flatmap(lambda one: one)


anything = st.one_of(scalars, numbers, times.map(quoted), json_values, identifiers, lots)
OF_NAME = {
    "orgId": st.one_of(numbers, scalars),
    "pointsToBeReversed": st.one_of(numbers, raw_texts),
    "points": st.one_of(numbers, raw_texts),
    "quantity": numbers,
    "identifier": identifiers,
    "identifiers": st.lists(identifiers, max_size=2).map(lambda items: "[" + ",".join(items) + "]"),
    "lots": lots,
    **dict.fromkeys(
        ("returnedAt", "lockedUntil", "updatedAt", "expiresAt", "issuedAt", "redeemedAt"), times.map(quoted)
    ),
}


def _field(name: str) -> st.SearchStrategy[str]:
    """A field in either spelling, its value mostly of the type that it should have."""
    spelled = st.sampled_from((name, name, _snake(name))).map(quoted)
    return st.tuples(spelled, often((3, OF_NAME.get(name, raw_texts)), (1, anything))).map(":".join)


def _fields(kind: Kind) -> st.SearchStrategy[str]:
    known = often(*((1, _field(name)) for name in NAMES[kind]))
    unknown = st.tuples(raw_texts, json_values).map(":".join)
    return st.lists(often((6, known), (1, unknown)), max_size=5).map(",".join)


def objects(kind: Kind) -> st.SearchStrategy[str]:
    """An object with fields of that kind, sound, broken and unknown ones; of a name that stands twice the last counts."""
    sound = st.sampled_from(SOUND[kind])
    fields = _fields(kind)
    placed = often(
        (6, st.tuples(fields, sound)), (3, st.tuples(sound, fields)), (1, st.tuples(fields)), (1, st.tuples(sound))
    )
    return placed.map(lambda parts: "{" + ",".join(part for part in parts if part) + "}")


OBJECTS = {kind: objects(kind) for kind in Kind}


def _spoilt(kind: Kind) -> st.SearchStrategy[bytes]:
    """The bytes of an object with some of them missing, doubled or other ones."""
    return st.tuples(OBJECTS[kind], st.integers(0, 300), st.integers(0, 20), st.binary(max_size=8)).map(
        lambda drawn: (
            drawn[0].encode(errors="surrogatepass")[: drawn[1]]
            + drawn[3]
            + drawn[0].encode(errors="surrogatepass")[drawn[1] + drawn[2] :]
        )
    )


ATTRIBUTES = ("specversion", "id", "source", "type")
header_values = st.one_of(
    st.none(),
    st.binary(max_size=12),
    texts.map(lambda text: text.encode(errors="surrogatepass")),
    st.sampled_from(
        [b"1.0", b"1.", b"2.0", b"", b"\xff", b"application/json", b"application/cloudevents+json; charset=utf-8"]
    ),
)
header_names = st.one_of(
    st.sampled_from([
        *("ce_" + name for name in ATTRIBUTES), "CE_ID", "content-type", "traceparent", "ce_traceparent", "replay-of",
        "dlq.reason", "",
    ]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)  # fmt: skip
SOUND_EVENT: Headers = (("ce_specversion", b"1.0"), ("ce_id", b"e-1"), ("ce_source", b"/shop"), ("ce_type", b"t"))
harmless = st.lists(
    st.tuples(st.sampled_from(["x", "X-Y", "traceparent", "replay-of", "\u202e"]), header_values), max_size=2
)
awkward = st.lists(st.tuples(header_names, header_values), max_size=4)
headers: st.SearchStrategy[Headers] = often(
    (5, st.just(())),
    (3, harmless.map(tuple)),
    (2, harmless.map(lambda more: (*SOUND_EVENT, *more))),
    (1, awkward.map(lambda more: (*SOUND_EVENT, *more))),
    (1, awkward.map(tuple)),
)


def _structured(kind: Kind) -> st.SearchStrategy[str]:
    """A CloudEvent in structured form, some of its attributes wrong."""
    data = often(
        (6, OBJECTS[kind].map(lambda text: f'"data":{text}')),
        (3, OBJECTS[kind].map(lambda text: f'"data_base64":"{base64.b64encode(text.encode()).decode()}"')),
        (1, json_values.map(lambda text: f'"data":{text}')),
        (1, raw_texts.map(lambda text: f'"data_base64":{text}')),
        (1, st.just('"other":1')),
    )
    wrong = st.lists(st.tuples(st.sampled_from((*ATTRIBUTES, "traceparent")), scalars), min_size=1, max_size=2)
    more = often((3, st.just([])), (1, wrong))
    return st.tuples(data, more).map(
        lambda both: (
            '{"specversion":"1.0","id":"e-1","source":"/shop","type":"t",'
            + "".join(f'"{name}":{value},' for name, value in both[1])
            + both[0]
            + "}"
        )
    )


def _record(kind: Kind, values: st.SearchStrategy[bytes | None]) -> st.SearchStrategy[Record]:
    keys = st.one_of(st.none(), st.binary(max_size=6))
    return st.builds(Record, st.just(str(kind)), st.just(0), st.just(7), st.just(TIMESTAMP_MS), keys, values, headers)


def _encoded(texts: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    return texts.map(lambda text: text.encode(errors="surrogatepass"))


BYTES = {kind: _record(kind, often((1, st.none()), (4, st.binary(max_size=64)), (5, _spoilt(kind)))) for kind in Kind}
JSON = {kind: _record(kind, _encoded(often((9, OBJECTS[kind]), (1, json_values)))) for kind in Kind}
EVENTS = {kind: _record(kind, _encoded(_structured(kind))) for kind in Kind}


def _any(records: dict[Kind, st.SearchStrategy[Record]]) -> st.SearchStrategy[Record]:
    """Half of them returns, of which more can be said."""
    return often(*((3 if kind is Kind.ORDER_RETURNED else 1, of_kind) for kind, of_kind in records.items()))


any_bytes, any_json, any_event = _any(BYTES), _any(JSON), _any(EVENTS)
any_record = often((5, any_json), (2, any_event), (1, any_bytes))
