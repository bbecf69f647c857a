"""Reading returns and feeds: fields, faults, keys (contract, "Values" and "order.returned")."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service import fields
from service.envelope import parse_json
from service.events import (
    LotLine,
    RedemptionLine,
    decode,
    read_feed,
    read_lot_line,
    read_redemption_line,
)
from service.records import (
    CustomerUpdated,
    DeadLetterReason,
    Fault,
    Feed,
    Identifier,
    Kind,
    PointsIssued,
    PointsRedeemed,
    Record,
    Return,
    Unreadable,
)
from tests.unit.test_envelope import BINARY, Headers, headers_strategy, values

ORG = 100458
LEAST = {"orgId": ORG, "redemptionId": "R-1"}
CUSTOMER = {"orgId": ORG, "customerId": 42}
LOT = CUSTOMER | {"lotId": "L-1", "points": "10.5"}
REDEMPTION = CUSTOMER | {"redemptionId": "R-1", "points": "10.5"}


def record(data: object, headers: Headers = (), kind: Kind = Kind.ORDER_RETURNED) -> Record:
    value = data if isinstance(data, bytes) else json.dumps(data).encode()
    return Record(kind.value, 2, 1841, 1795138201000, b"k", value, headers)


def the_return(data: object, headers: Headers = ()) -> Return:
    message = decode(Kind.ORDER_RETURNED, record(data, headers), 2**20)
    assert isinstance(message, Return)
    return message


def faults_of(data: object) -> list[str]:
    return [fault.field for fault in the_return(data).faults]


def feed(kind: Kind, data: dict[str, Any]) -> Feed | tuple[Fault, ...]:
    return read_feed(kind, parse_json(json.dumps(data).encode()))


def feed_faults(kind: Kind, data: dict[str, Any]) -> list[str]:
    faults = feed(kind, data)
    assert isinstance(faults, tuple)
    message = decode(kind, record(data, kind=kind), 2**20)
    assert isinstance(message, Unreadable)
    return [fault.field for fault in faults]


def test_the_contracts_example() -> None:
    value = b"""{"orgId": 100458, "orderId": "SO-1881", "returnId": "RMA-77", "redemptionId": "R-5001",
        "pointsToBeReversed": "150.5", "identifier": {"type": "PHONE", "value": "+6591234567"},
        "idempotencyKey": "RMA-77/1", "reason": "size does not fit", "programId": "main",
        "returnedAt": "2026-11-20T09:30:00+08:00"}"""
    assert the_return(value) == Return(
        org_id=100458,
        key="RMA-77/1",
        order_id="SO-1881",
        return_id="RMA-77",
        redemption_id="R-5001",
        points=150_500,
        points_text="150.5",
        points_decimals=1,
        identifier=Identifier("PHONE", "+6591234567", "6591234567"),
        reason="size does not fit",
        program_id="main",
        returned_at=datetime(2026, 11, 20, 1, 30, tzinfo=UTC),
    )


def test_the_least_that_a_return_says() -> None:
    expected = "record:order.returned/2/1841@1795138201000"
    assert the_return(LEAST) == Return(org_id=ORG, key=expected, redemption_id="R-1")


def test_snake_case_is_read_too() -> None:
    value = {
        "org_id": ORG,
        "order_id": "O",
        "return_id": "T",
        "redemption_id": "R",
        "points_to_be_reversed": "1",
        "idempotency_key": "K",
        "program_id": "P",
        "returned_at": "2026-01-01T00:00:00Z",
    }
    message = the_return(value)
    assert (message.key, message.order_id, message.return_id, message.redemption_id) == ("K", "O", "T", "R")
    assert (message.points, message.program_id) == (1_000, "P")
    assert message.returned_at == datetime(2026, 1, 1, tzinfo=UTC)
    assert faults_of({"org_id": ORG, "redemption_id": ""}) == ["redemptionId"]


def test_camel_case_wins_where_both_stand_unless_it_is_null() -> None:
    for names in (("orderId", "order_id"), ("order_id", "orderId")):
        both = {"orgId": ORG} | {name: name for name in names}
        assert the_return(both).order_id == "orderId"
    assert the_return({"orgId": ORG, "orderId": None, "order_id": "snake"}).order_id == "snake"
    assert the_return({"orgId": ORG, "orderId": "camel", "order_id": None}).order_id == "camel"
    assert faults_of({"orgId": ORG, "orderId": "", "order_id": "snake"}) == ["orderId"]


def test_null_means_absent_within_objects_too() -> None:
    value = LEAST | {"identifier": {"type": None, "value": "1"}}
    assert faults_of(value) == ["identifier.type"]
    assert the_return(LEAST | {"identifier": None}).identifier is None


def test_of_a_repeated_key_the_last_counts() -> None:
    assert the_return(b'{"orgId": 1, "orderId": "a", "orgId": 2, "orderId": "b"}').order_id == "b"


@pytest.mark.parametrize("org", [..., None, 0, -1, 2**63, 10**30, 1.0, 1.5, "100458", "", True, [], {}, [1]])
def test_a_record_without_an_org_cannot_be_attributed(org: object) -> None:
    value = {name: item for name, item in {**LEAST, **REDEMPTION, **LOT, "orgId": org}.items() if item != ...}
    for kind in Kind:
        message = decode(kind, record(value, kind=kind), 2**20)
        assert isinstance(message, Unreadable)
        assert message.reason is DeadLetterReason.NO_ORG
        assert message.message.startswith("orgId ")


def test_the_org_comes_before_every_other_fault() -> None:
    message = decode(Kind.POINTS_ISSUED, record({"lotId": 1.5}), 2**20)
    assert isinstance(message, Unreadable)
    assert message.reason is DeadLetterReason.NO_ORG


def test_every_fault_is_told_and_every_readable_field_kept() -> None:
    message = the_return(
        {
            "orgId": ORG,
            "redemptionId": "R" * 256,
            "orderId": "SO-1",
            "returnId": "T",
            "pointsToBeReversed": "0",
            "quantity": 0,
            "identifier": {"type": "phone", "value": ""},
            "idempotencyKey": "a\nb",
            "reason": "",
            "programId": "main",
            "returnedAt": "yesterday",
        }
    )
    assert {fault.field: fault.message for fault in message.faults} == {
        "redemptionId": "redemptionId is 256 characters long, 255 are allowed",
        "pointsToBeReversed": "pointsToBeReversed must be more than zero",
        "quantity": "give pointsToBeReversed or quantity, not both",
        "identifier.type": "identifier.type must be one of ID, PHONE, EMAIL, EXTERNAL_ID",
        "identifier.value": "identifier.value must not be empty",
        "idempotencyKey": "idempotencyKey has a control character or line separator at position 2",
        "reason": "reason must not be empty",
        "returnedAt": "returnedAt must be an RFC 3339 time with an offset, such as 2026-11-20T09:30:00+08:00",
    }
    assert [fault.field for fault in message.faults].count("quantity") == 2
    kept = Return(ORG, "return:T/SO-1", order_id="SO-1", return_id="T", program_id="main")
    assert message == replace(kept, faults=message.faults)


def test_a_fault_never_repeats_a_librarys_words() -> None:
    hostile = [{}, [], True, "", "\x00", 1.5, "x" * 600, {"type": []}, [[]]]
    for name in ("redemptionId", "pointsToBeReversed", "quantity", "identifier", "reason", "returnedAt"):
        for value in hostile:
            for fault in the_return(LEAST | {name: value}).faults:
                assert "pydantic" not in fault.message
                assert "Value error" not in fault.message
                assert "cannot be read" not in fault.message
                assert fault.message.startswith(name)


def test_a_redemption_or_an_order_is_required() -> None:
    faults = the_return({"orgId": ORG, "returnId": "T"}).faults
    assert faults == (Fault("redemptionId", "redemptionId or orderId is required"),)
    assert faults_of({"orgId": ORG, "redemptionId": 1.5}) == ["redemptionId"]
    assert faults_of({"orgId": ORG, "orderId": "O", "redemptionId": None}) == []


def test_quantity_and_points_exclude_each_other_even_when_one_is_unreadable() -> None:
    assert faults_of(LEAST | {"quantity": 1, "pointsToBeReversed": "1"}) == ["quantity"]
    assert faults_of(LEAST | {"quantity": 1, "pointsToBeReversed": "x"}) == ["pointsToBeReversed", "quantity"]
    assert faults_of(LEAST | {"quantity": 1, "pointsToBeReversed": None}) == []


@pytest.mark.parametrize("quantity", [0, -1, 1.0, 1.5, "1", True, 10**9 + 1, 10**400, [], {}])
def test_quantity_is_whole_units(quantity: object) -> None:
    message = the_return(LEAST | {"quantity": quantity})
    assert [fault.message for fault in message.faults] == ["quantity must be a whole number from 1 to 1000000000"]
    assert message.quantity is None


@pytest.mark.parametrize(
    ("written", "points", "text", "decimals"),
    [
        ('"150"', 150_000, "150", 0),
        ("150", 150_000, "150", 0),
        ('"1.5000"', 1_500, "1.5", 1),
        ("1.5000", 1_500, "1.5", 1),
        ("0.1", 100, "0.1", 1),
        ('"0.30000000000000004"', None, "0.30000000000000004", 17),
        ("0.30000000000000", 300, "0.3", 1),
        ('"1.2345"', None, "1.2345", 4),
        ("1.23450", None, "1.2345", 4),
        ("999999999999999", 999_999_999_999_999_000, "999999999999999", 0),
        ('"999999999999999.999"', 999_999_999_999_999_999, "999999999999999.999", 3),
        ("9007199254740.993", None, None, 0),
        ("1e3", None, None, 0),
        ("15E-1", None, None, 0),
        ("-1", None, None, 0),
        ("-0", None, None, 0),
        ("0", None, None, 0),
        ('"0.0000"', None, None, 0),
        ('"1e3"', None, None, 0),
        ("true", None, None, 0),
    ],
)
def test_points_are_read_by_their_text(written: str, points: int | None, text: str | None, decimals: int) -> None:
    value = f'{{"orgId": 1, "redemptionId": "R", "pointsToBeReversed": {written}}}'
    message = the_return(value.encode())
    assert (message.points, message.points_text, message.points_decimals) == (points, text, decimals)
    assert bool(message.faults) == (text is None)


def test_ids_may_be_json_integers_read_as_their_digits() -> None:
    message = the_return(b'{"orgId": 1, "orderId": 18446744073709551616, "returnId": -5, "programId": 0}')
    assert (message.order_id, message.return_id, message.program_id) == ("18446744073709551616", "-5", "0")
    assert type(message.order_id) is str
    assert faults_of(b'{"orgId": 1, "orderId": 1.0, "returnId": 1e3}') == ["orderId", "returnId"]


PRINTABLE = ["a", " ", "é", "日本", "😀", "\u00a0", "\u200b", "\u202e", "\ufeff", "\ue000", "x" * 255]
UNPRINTABLE = ["", "\x00", "\x1f", "a\x7f", "\x80", "\x9f", "\u2028", "\u2029", "a\r\n", "x" * 256]


@pytest.mark.parametrize("text", PRINTABLE)
def test_printable_text_is_kept_as_it_is(text: str) -> None:
    assert the_return(LEAST | {"orderId": text}).order_id == text


@pytest.mark.parametrize("text", UNPRINTABLE)
def test_unprintable_empty_or_overlong_text_is_a_fault(text: str) -> None:
    assert faults_of(LEAST | {"orderId": text}) == ["orderId"]


def test_a_reason_may_have_500_characters_and_line_separators_but_no_control_characters() -> None:
    assert the_return(LEAST | {"reason": "x" * 499 + "\u2028"}).reason == "x" * 499 + "\u2028"
    assert the_return(LEAST).reason == "order returned"
    for reason in ("x" * 501, "", "a\nb", "\x7f", 7):
        assert faults_of(LEAST | {"reason": reason}) == ["reason"]


@pytest.mark.parametrize(
    ("kind", "value", "lookup"),
    [
        ("PHONE", "+65 9123-4567", "6591234567"),
        ("PHONE", "(65) [91]23.45.67", "6591234567"),
        ("PHONE", "(+65)91234567", "6591234567"),
        ("PHONE", "65\u00a09123\u20114567", "6591234567"),
        ("PHONE", 6591234567, "6591234567"),
        ("EMAIL", "  Mei.TAN@Example.COM ", "mei.tan@example.com"),
        ("EXTERNAL_ID", " Crm-1 ", " Crm-1 "),
        ("ID", 42, "42"),
        ("ID", "042", "042"),
    ],
)
def test_identifiers_are_compared_by_what_counts(kind: str, value: object, lookup: str) -> None:
    assert the_return(LEAST | {"identifier": {"type": kind, "value": value}}).identifier == Identifier(
        kind, str(value), lookup
    )


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("PHONE", "+"),
        ("PHONE", "call me"),
        ("PHONE", "++65"),
        ("PHONE", "65+1"),
        ("PHONE", "٦٥"),
        ("PHONE", "---"),
        ("EMAIL", "   "),
        ("EMAIL", "İ" * 200),
    ],
)
def test_an_identifier_that_leaves_nothing_to_compare_is_a_fault(kind: str, value: str) -> None:
    message = the_return(LEAST | {"identifier": {"type": kind, "value": value}})
    assert [fault.field for fault in message.faults] == ["identifier.value"]
    assert message.identifier is None


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-20T09:30:00+08:00", datetime(2026, 11, 20, 1, 30, tzinfo=UTC)),
        ("2026-11-20t01:30:00z", datetime(2026, 11, 20, 1, 30, tzinfo=UTC)),
        ("2026-11-20T01:30:00-00:00", datetime(2026, 11, 20, 1, 30, tzinfo=UTC)),
        ("2026-11-20T01:30:00.1Z", datetime(2026, 11, 20, 1, 30, 0, 100_000, tzinfo=UTC)),
        ("2026-11-20T01:30:00.1234Z", datetime(2026, 11, 20, 1, 30, 0, 123_400, tzinfo=UTC)),
        ("2026-11-20T01:30:00.123456789Z", datetime(2026, 11, 20, 1, 30, 0, 123_456, tzinfo=UTC)),
        ("2026-11-20T01:30:00.999999999999999999Z", datetime(2026, 11, 20, 1, 30, 0, 999_999, tzinfo=UTC)),
        ("2024-02-29T23:59:59+23:59", datetime(2024, 2, 29, 0, 0, 59, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59.999999Z", datetime.max.replace(tzinfo=UTC)),
    ],
)
def test_times_are_moments(text: str, moment: datetime) -> None:
    read = the_return(LEAST | {"returnedAt": text}).returned_at
    assert read == moment
    assert read.tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-20T09:30:00",
        "2026-11-20",
        "2026-11-20 09:30:00Z",
        "2026-11-20T09:30Z",
        "2026-11-20T09:30:00+0800",
        "2026-11-20T09:30:00+08",
        "2026-11-20T09:30:00+24:00",
        "2026-11-20T09:30:00+08:60",
        "2026-11-20T24:00:00Z",
        "2026-12-31T23:59:60Z",
        "2026-02-29T00:00:00Z",
        "2026-04-31T00:00:00Z",
        "2026-00-10T00:00:00Z",
        "2026-13-10T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "2026-11-20T09:30:00.Z",
        "2026-11-20T09:30:00,5Z",
        "2026-11-20T09:30:00." + "1" * 19 + "Z",
        "20261120T093000Z",
        "2026-W47-5T09:30:00Z",
        "2026-324T09:30:00Z",
        "٢٠٢٦-11-20T09:30:00Z",
        "12026-11-20T09:30:00Z",
        " 2026-11-20T09:30:00Z",
        "2026-11-20T09:30:00Z\n",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "now",
        "",
        1795138200,
    ],
)
def test_what_is_no_rfc_3339_time_with_an_offset_is_a_fault(text: object) -> None:
    assert faults_of(LEAST | {"returnedAt": text}) == ["returnedAt"]


@given(st.datetimes(timezones=st.timezones()))
def test_every_moment_that_python_writes_is_read(moment: datetime) -> None:
    try:
        in_utc = moment.astimezone(UTC)
    except OverflowError:
        return
    offset = moment.utcoffset()
    if offset is not None and offset.total_seconds() % 60 == 0:
        assert fields.read_time(moment.isoformat()) == in_utc


def test_keys_in_order_of_precedence() -> None:
    full = LEAST | {"orderId": "O", "returnId": "T", "idempotencyKey": "K"}
    assert the_return(full, BINARY).key == "K"
    assert the_return(full | {"idempotencyKey": None}, BINARY).key == "return:T/R-1"
    assert the_return({"orgId": ORG, "orderId": "O", "returnId": "T"}, BINARY).key == "return:T/O"
    assert the_return(LEAST, BINARY).key == "event:%2Fshop#e-1"
    assert the_return(LEAST).key == "record:order.returned/2/1841@1795138201000"
    replayed = (("replay-of", b"order.returned/0/7@-1"),)
    assert the_return(LEAST, replayed).key == "record:order.returned/0/7@-1"
    assert the_return(LEAST, BINARY + replayed).key == "event:%2Fshop#e-1"
    assert the_return({"orgId": ORG, "returnId": "T"}).key.startswith("record:")


def test_parts_of_a_derived_key_cannot_run_into_each_other() -> None:
    one = the_return({"orgId": ORG, "returnId": "a/b", "orderId": "c"}).key
    other = the_return({"orgId": ORG, "returnId": "a", "orderId": "b/c"}).key
    assert (one, other) == ("return:a%2Fb/c", "return:a/b%2Fc")
    assert the_return({"orgId": ORG, "returnId": "é~%", "orderId": "+ "}).key == "return:%C3%A9~%25/%2B%20"


def test_a_derived_key_of_more_than_255_characters_becomes_its_digest() -> None:
    longest = {"orgId": ORG, "returnId": "x" * 200, "orderId": "y" * 47}
    assert the_return(longest).key == f"return:{'x' * 200}/{'y' * 47}"
    longer = longest | {"orderId": "y" * 48}
    digest = hashlib.sha256(f"return:{'x' * 200}/{'y' * 48}".encode()).hexdigest()
    assert the_return(longer).key == f"sha256:{digest}"


def test_the_same_request_in_another_spelling_has_the_same_fingerprint() -> None:
    one = LEAST | {"pointsToBeReversed": "1.50", "identifier": {"type": "PHONE", "value": "+65 91"}}
    other = {
        "org_id": ORG,
        "redemption_id": "R-1",
        "points_to_be_reversed": 1.5,
        "identifier": {"type": "PHONE", "value": "6591"},
        "reason": "changed my mind",
    }
    assert the_return(one).fingerprint() == the_return(other).fingerprint()
    assert the_return(one | {"orderId": "O"}).fingerprint() != the_return(one).fingerprint()


def test_a_customer() -> None:
    value = CUSTOMER | {
        "status": "fraud",
        "lockedUntil": "2026-12-01T00:00:00Z",
        "identifiers": [{"type": "PHONE", "value": "+65 91"}, {"type": "EMAIL", "value": "A@b"}],
        "updatedAt": "2026-11-01T00:00:00Z",
    }
    assert feed(Kind.CUSTOMER_UPDATED, value) == CustomerUpdated(
        org_id=ORG,
        customer_id=42,
        status="fraud",
        locked_until=datetime(2026, 12, 1, tzinfo=UTC),
        locked_until_given=True,
        identifiers=(Identifier("PHONE", "+65 91", "6591"), Identifier("EMAIL", "A@b", "a@b")),
        updated_at=datetime(2026, 11, 1, tzinfo=UTC),
    )
    assert feed(Kind.CUSTOMER_UPDATED, CUSTOMER) == CustomerUpdated(ORG, 42)


def test_only_an_explicit_null_unlocks() -> None:
    time, moment = "2026-12-01T00:00:00Z", datetime(2026, 12, 1, tzinfo=UTC)
    cases: list[tuple[dict[str, Any], tuple[bool, datetime | None]]] = [
        ({}, (False, None)),
        ({"lockedUntil": None}, (True, None)),
        ({"locked_until": None}, (True, None)),
        ({"lockedUntil": time, "locked_until": None}, (True, moment)),
        ({"lockedUntil": None, "locked_until": time}, (True, None)),
        ({"locked_until": time}, (True, moment)),
    ]
    for given_fields, expected in cases:
        customer = feed(Kind.CUSTOMER_UPDATED, CUSTOMER | given_fields)
        assert isinstance(customer, CustomerUpdated)
        assert (customer.locked_until_given, customer.locked_until) == expected


def test_identifiers_are_a_set_without_the_customers_own_id() -> None:
    given_set = [
        {"type": "PHONE", "value": "+65 91"},
        {"type": "PHONE", "value": "6591"},
        {"type": "ID", "value": 42},
        {"type": "ID", "value": "42"},
    ]
    customer = feed(Kind.CUSTOMER_UPDATED, CUSTOMER | {"identifiers": given_set})
    assert isinstance(customer, CustomerUpdated)
    assert customer.identifiers == (Identifier("PHONE", "+65 91", "6591"),)
    empty = feed(Kind.CUSTOMER_UPDATED, CUSTOMER | {"identifiers": []})
    assert isinstance(empty, CustomerUpdated)
    assert empty.identifiers == ()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"customerId": "42"}, ["customerId"]),
        ({"customerId": 0}, ["customerId"]),
        ({"customerId": 2**63}, ["customerId"]),
        ({"status": "ACTIVE"}, ["status"]),
        ({"lockedUntil": 7}, ["lockedUntil"]),
        ({"identifiers": {}}, ["identifiers"]),
        ({"identifiers": [None, "x"]}, ["identifiers[0]", "identifiers[1]"]),
        ({"identifiers": [{"type": "PHONE"}]}, ["identifiers[0].value"]),
        (
            {"identifiers": [{"type": "ID", "value": "43"}, {"type": "PHONE", "value": "x"}]},
            ["identifiers[0].value", "identifiers[1].value"],
        ),
        ({"identifiers": [{"type": "EXTERNAL_ID", "value": "x"}] * 101}, ["identifiers"]),
    ],
)
def test_a_malformed_customer(changes: dict[str, Any], expected: list[str]) -> None:
    assert feed_faults(Kind.CUSTOMER_UPDATED, CUSTOMER | changes) == expected


def test_a_lot() -> None:
    times = {"expiresAt": "2027-01-01T00:00:00Z", "issuedAt": "2026-01-01T00:00:00Z"}
    assert feed(Kind.POINTS_ISSUED, LOT | times | {"programId": "main"}) == PointsIssued(
        ORG, 42, "L-1", 10_500, "main", datetime(2027, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
    )
    assert feed(Kind.POINTS_ISSUED, LOT) == PointsIssued(ORG, 42, "L-1", 10_500)


@pytest.mark.parametrize("points", [None, "0", 0, "-1", "1.2345", 1.2345, "1e3", "", True, 10**15])
def test_a_lot_of_no_exact_points_is_malformed(points: object) -> None:
    assert feed_faults(Kind.POINTS_ISSUED, LOT | {"points": points}) == ["points"]


def test_a_redemption() -> None:
    value = REDEMPTION | {
        "orderId": "O",
        "programId": "main",
        "type": "UNIT_BASED",
        "rewardId": "MUG",
        "quantity": 3,
        "redeemedAt": "2026-11-01T00:00:00Z",
        "lots": [{"lotId": "b", "points": "10"}, {"lot_id": "a", "points": 0.5}],
    }
    assert feed(Kind.POINTS_REDEEMED, value) == PointsRedeemed(
        org_id=ORG,
        customer_id=42,
        redemption_id="R-1",
        points=10_500,
        order_id="O",
        program_id="main",
        type="UNIT_BASED",
        reward_id="MUG",
        quantity=3,
        redeemed_at=datetime(2026, 11, 1, tzinfo=UTC),
        lots=(("b", 10_000), ("a", 500)),
    )
    assert feed(Kind.POINTS_REDEEMED, REDEMPTION) == PointsRedeemed(ORG, 42, "R-1", 10_500)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"type": "UNIT_BASED"}, ["quantity"]),
        ({"type": "RAW", "quantity": 1}, ["quantity"]),
        ({"quantity": 1}, ["quantity"]),
        ({"type": "AMOUNT"}, ["type"]),
        ({"lots": []}, ["lots"]),
        ({"lots": [{"lotId": "a", "points": "10"}]}, ["lots"]),
        ({"lots": [{"lotId": "a", "points": "10"}, {"lotId": "a", "points": "0.5"}]}, ["lots[1].lotId"]),
        ({"lots": [{"lotId": "a", "points": "10.5"}, {"lotId": "b", "points": "0"}]}, ["lots[1].points"]),
        ({"lots": [{"lotId": 1.5, "points": None}, 7]}, ["lots[0].lotId", "lots[0].points", "lots[1]"]),
        ({"lots": [{"lotId": str(i), "points": "0.001"} for i in range(1001)]}, ["lots"]),
    ],
)
def test_a_malformed_redemption(changes: dict[str, Any], expected: list[str]) -> None:
    assert feed_faults(Kind.POINTS_REDEEMED, REDEMPTION | changes) == expected


def test_a_thousand_lots_are_read() -> None:
    lots = [{"lotId": str(i), "points": "0.001"} for i in range(1000)]
    assert isinstance(feed(Kind.POINTS_REDEEMED, REDEMPTION | {"points": 1, "lots": lots}), PointsRedeemed)


def test_a_malformed_feed_says_all_that_is_wrong_within_bounds() -> None:
    lots = [{"lotId": "", "points": "x"}] * 1000
    message = decode(Kind.POINTS_REDEEMED, record(REDEMPTION | {"lots": lots}), 2**20)
    assert isinstance(message, Unreadable)
    assert message.reason is DeadLetterReason.MALFORMED_FEED
    assert message.message.startswith("lots[0].lotId must not be empty; lots[0].points must be digits")
    assert len(message.message) == 1_000


def line(**values_: Any) -> dict[str, Any]:
    parsed = parse_json(json.dumps(values_).encode())
    assert isinstance(parsed, dict)
    return parsed


def test_a_lot_line() -> None:
    lot = PointsIssued(ORG, 42, "L-1", 10_500)
    assert read_lot_line(line(kind="lot", **LOT)) == LotLine(lot, 10_500)
    assert read_lot_line(line(**LOT, remaining="0")) == LotLine(lot, 0)
    assert read_lot_line(line(**LOT, remaining="10.501")) == (
        Fault("remaining", "remaining is 10.501, but the lot was issued with 10.5"),
    )
    faults = read_lot_line(line(orgId="x", lotId="", points="0"))
    assert [fault.field for fault in faults if isinstance(fault, Fault)] == [
        "orgId",
        "customerId",
        "lotId",
        "points",
    ]


def test_a_redemption_line() -> None:
    redemption = PointsRedeemed(ORG, 42, "R-1", 10_500)
    assert read_redemption_line(line(**REDEMPTION)) == RedemptionLine(redemption, 0, None)
    assert read_redemption_line(line(**REDEMPTION, reversed="10.5")) == RedemptionLine(redemption, 10_500, None)
    units = REDEMPTION | {"type": "UNIT_BASED", "quantity": 3}
    assert read_redemption_line(line(**units))[1:] == (0, 0)
    assert read_redemption_line(line(**units, reversed=3.5, reversedQuantity=1))[1:] == (3_500, 1)
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"reversed": "10.501"}, ["reversed"]),
        ({"reversedQuantity": 0}, ["reversedQuantity"]),
        ({"type": "UNIT_BASED", "quantity": 3, "reversedQuantity": 4}, ["reversedQuantity"]),
        ({"type": "UNIT_BASED", "reversedQuantity": 4}, ["quantity"]),
        ({"quantity": 3, "reversed": "11"}, ["quantity", "reversed"]),
    ]
    for changes, fields_ in cases:
        faults = read_redemption_line(line(**REDEMPTION | changes))
        assert [fault.field for fault in faults if isinstance(fault, Fault)] == fields_


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("1.5"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
identifiers = st.fixed_dictionaries(
    {}, optional={"type": st.sampled_from(fields.IDENTIFIER_TYPES) | anything, "value": anything}
)
lots_taken = st.lists(st.fixed_dictionaries({}, optional={"lotId": anything, "points": anything}), max_size=3)
NAMES = [
    "redemptionId", "orderId", "return_id", "returnId", "pointsToBeReversed", "quantity", "idempotencyKey",
    "reason", "programId", "returnedAt", "customerId", "lotId", "points", "status", "lockedUntil", "type",
]  # fmt: skip
objects = st.fixed_dictionaries(
    {"orgId": st.integers(1, 9) | anything},
    optional=dict.fromkeys(NAMES, anything)
    | {"identifier": identifiers | anything, "lots": lots_taken | anything}
    | {"identifiers": st.lists(identifiers, max_size=3) | anything},
)


@given(st.sampled_from(Kind), values | objects.map(lambda data: json.dumps(data).encode()), headers_strategy)
@example(Kind.ORDER_RETURNED, b'{"orgId": 1, "org_Id": [], "_": 1, "__": {}}', ())
def test_decoding_never_raises(kind: Kind, value: bytes | None, headers: Headers) -> None:
    message = decode(kind, Record("t", 0, 0, -1, None, value, headers), 5_000)
    assert isinstance(message, (Return, CustomerUpdated, PointsIssued, PointsRedeemed, Unreadable))
    if isinstance(message, Return):
        assert 1 <= len(message.key) <= 255
        assert all(fault.message.isprintable() for fault in message.faults)
        assert len(message.fingerprint()) == 16
    if isinstance(message, Unreadable):
        assert 1 <= len(message.message) <= 1_000
