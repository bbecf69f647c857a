"""Outcomes and dead letters as bytes and headers (contract, "Outcomes", "Topics" and "Dead letters")."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Code, Error
from service.headers import Headers, sent
from service.ledger import Entry, Redemption
from service.outcomes import Completed, Notice, Part, Refused
from service.published import (
    CompletedBody,
    LotBody,
    RefusedBody,
    dead_letter_headers,
    encode_completed,
    encode_refused,
    exact_time,
    outcome_headers,
    plain_time,
)
from service.records import Fault, Identifier, Record, Return

EXAMPLES = Path(__file__).parents[2] / "schemas" / "examples" / "valid"
NOW = datetime(2026, 11, 20, 1, 30, 2, 123_456, tzinfo=UTC)
REQUEST = Return(
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
    returned_at=datetime(2026, 11, 20, 9, 30, tzinfo=timezone(timedelta(hours=8))),
)
REDEMPTION = Redemption(
    org_id=100458,
    redemption_id="R-5001",
    customer_id=42,
    program_id="main",
    order_id="SO-1881",
    type="AMOUNT_BASED",
    points=200_000,
    reversed=150_500,
    quantity=None,
    reversed_quantity=None,
    reward_id=None,
    redeemed_at=NOW,
    lots=(("L-7", 99_500), ("L-9", 100_500)),
)
COMPLETED = Completed(
    request=REQUEST,
    reversal_id="0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b",
    redemption=REDEMPTION,
    asked=150_500,
    points=150_500,
    available=100_500,
    units=None,
    parts=(
        Part("L-9", 100_500, datetime(2027, 1, 31, tzinfo=UTC), expired=False),
        Part("L-7", 50_000, datetime(2026, 10, 31, tzinfo=UTC), expired=True),
    ),
    new_lots=(),
    reversed_after=150_500,
    remaining_after=49_500,
    balance_after=1_100_500,
    sequence=17,
    warnings=(),
    entry=Entry(100458, "0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2c", "reversal", NOW, 42, "R-5001", postings=()),
    created_at=NOW,
)
REFUSED = Refused(
    request=replace(REQUEST, key="RMA-79/1", return_id="RMA-79", points=150_000, points_text="150", program_id=None),
    errors=(
        Error(
            Code.INSUFFICIENT_POINTS,
            "asked for 150, 49.5 of 200 remain",
            {"asked": "150", "points": "200", "reversed": "150.5", "remaining": "49.5"},
        ),
    ),
    customer_id=42,
    sequence=20,
    redemption_id="R-5001",
    order_id="SO-1881",
    existing=None,
    failed_at=datetime(2026, 11, 20, 1, 30, 5, 1, tzinfo=UTC),
)
RECORD = Record("order.returned", 2, 1841, 1795138201000, b"k", b"{}", (("a", b"1"), ("b", None), ("a", b"\xff")))


def told(record: Record, **given: Any) -> Headers:
    """An outcome's headers as they are published."""
    return sent(outcome_headers(record, **given))


def letter(record: Record, reason: str, message: str, group: str) -> Headers:
    """A dead letter's headers as they are published."""
    return sent(dead_letter_headers(record, reason, message, group))


def compact(path: str) -> bytes:
    document = json.loads((EXAMPLES / path).read_text())
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def test_a_completed_reversal_is_the_example_byte_for_byte() -> None:
    assert encode_completed(COMPLETED) == compact("reversal-completed/partial.json")


def test_a_refused_return_is_the_example_byte_for_byte() -> None:
    assert encode_refused(REFUSED) == compact("reversal-failed/insufficient-points.json")


def test_fields_stand_in_the_models_order() -> None:
    assert list(json.loads(encode_completed(COMPLETED))) == list(get_type_hints(CompletedBody))
    assert list(json.loads(encode_refused(REFUSED))) == list(get_type_hints(RefusedBody))


def test_a_new_lot_names_its_origin_and_others_have_no_such_field() -> None:
    parts = (Part("N-1", 500, None, expired=False, restored_from="L-7"), *COMPLETED.parts)
    lots = json.loads(encode_completed(replace(COMPLETED, parts=parts)))["lots"]
    assert lots[0] == {
        "lotId": "N-1",
        "points": "0.5",
        "expiresAt": None,
        "expired": False,
        "restoredFrom": "L-7",
    }
    assert list(lots[0]) == list(get_type_hints(LotBody))
    assert "restoredFrom" not in lots[1]


def test_units_and_warnings_are_told() -> None:
    told = replace(COMPLETED, units=2, warnings=(Notice("expired_lot_extended", "until then"),))
    document = json.loads(encode_completed(told))
    assert document["quantity"] == 2
    assert document["warnings"] == [{"name": "expired_lot_extended", "message": "until then"}]


def test_existing_is_the_record_as_it_was_published() -> None:
    published = b'{"spelled" : "as it was", "points":"1.50"}'
    refused = replace(REFUSED, existing=published)
    assert b'"existing":' + published + b"," in encode_refused(refused)
    assert encode_refused(refused, with_existing=False) == encode_refused(REFUSED)


def test_what_could_not_be_read_is_null() -> None:
    request = Return(7, "K", faults=(Fault("reason", "reason must not be empty"),))
    refused = replace(REFUSED, request=request, redemption_id=None, order_id=None, customer_id=None, sequence=None)
    document = json.loads(encode_refused(refused))
    assert {name for name, value in document.items() if value is not None} == {
        "orgId",
        "idempotencyKey",
        "errors",
        "failedAt",
    }
    default = json.loads(encode_refused(replace(refused, request=Return(7, "K"))))
    assert default["reason"] == "order returned"


def test_times_are_utc_with_a_z() -> None:
    singapore = timezone(timedelta(hours=8))
    assert exact_time(datetime(2026, 1, 2, 3, tzinfo=UTC)) == "2026-01-02T03:00:00.000000Z"
    assert exact_time(datetime(2026, 1, 2, 3, tzinfo=singapore)) == "2026-01-01T19:00:00.000000Z"
    assert plain_time(datetime(2026, 1, 2, 3, tzinfo=UTC)) == "2026-01-02T03:00:00Z"
    assert plain_time(datetime(2026, 1, 2, 3, 0, 0, 500_000, tzinfo=UTC)) == "2026-01-02T03:00:00.500000Z"
    assert plain_time(datetime(1, 1, 1, tzinfo=UTC)) == "0001-01-01T00:00:00Z"


def test_a_body_writes_its_times_the_same_way() -> None:
    zone = timezone(timedelta(hours=-3, minutes=-30))
    for moment in (NOW, NOW.replace(microsecond=0), NOW.astimezone(zone), datetime(1, 1, 1, tzinfo=UTC)):
        parts = (Part("L-9", 150_500, moment, expired=False),)
        completed = json.loads(encode_completed(replace(COMPLETED, parts=parts, created_at=moment)))
        assert completed["lots"][0]["expiresAt"] == plain_time(moment)
        assert completed["createdAt"] == exact_time(moment)
        request = replace(REQUEST, returned_at=moment)
        assert json.loads(encode_refused(replace(REFUSED, request=request)))["returnedAt"] == plain_time(moment)


def test_the_headers_of_a_completed_reversal() -> None:
    headers = told(
        RECORD,
        type_name="reversal-completed",
        subject="R-5001",
        org_id=100458,
        decision_moment=NOW,
        error_code=None,
        traceparent="00-x-y-01",
    )
    assert headers == [
        ("content-type", b"application/json"),
        ("ce_specversion", b"1.0"),
        ("ce_id", RECORD.outcome_id.encode()),
        ("ce_source", b"/points-reversal"),
        ("ce_type", b"reversal-completed"),
        ("ce_time", b"2026-11-20T01:30:02.123456Z"),
        ("ce_subject", b"R-5001"),
        ("ce_orgid", b"100458"),
        ("traceparent", b"00-x-y-01"),
    ]


def test_the_headers_of_a_failure_without_a_redemption() -> None:
    headers = told(
        RECORD,
        type_name="reversal-failed",
        subject=None,
        org_id=7,
        decision_moment=NOW,
        error_code=887,
        traceparent=None,
    )
    assert [name for name, _ in headers][-2:] == ["ce_orgid", "ce_errorcode"]
    assert "ce_subject" not in dict(headers)
    assert dict(headers)["ce_errorcode"] == b"887"


def test_a_dead_letter_keeps_the_headers_and_adds_its_own() -> None:
    assert letter(RECORD, "not_json", "the value is empty", "points-reversal") == [
        *RECORD.headers,
        ("dlq.reason", b"not_json"),
        ("dlq.message", b"the value is empty"),
        ("dlq.topic", b"order.returned"),
        ("dlq.partition", b"2"),
        ("dlq.offset", b"1841"),
        ("dlq.timestamp", b"2026-11-20T01:30:01.000Z"),
        ("dlq.group", b"points-reversal"),
    ]


def test_a_letter_that_dies_again_tells_the_latest_reason_only() -> None:
    first = tuple(letter(RECORD, "not_json", "first", "g"))
    again = replace(RECORD, offset=9, headers=(*first, ("replay-of", b"t/0/1@2"), ("dlq.note", b"mine")))
    headers = letter(again, "no_org", "second", "g")
    assert [value for name, value in headers if name == "dlq.reason"] == [b"no_org"]
    assert headers[: len(RECORD.headers)] == list(RECORD.headers)
    assert ("replay-of", b"t/0/1@2") in headers
    assert ("dlq.note", b"mine") in headers


@pytest.mark.parametrize("timestamp_ms", [-1, 0, 2**62, -(2**62), 253_402_300_800_000])
def test_a_timestamp_of_no_calendar_does_not_stop_a_dead_letter(timestamp_ms: int) -> None:
    headers = dict(letter(replace(RECORD, timestamp_ms=timestamp_ms), "corrupt", "m", "g"))
    written = (headers["dlq.timestamp"] or b"").decode()
    assert written.endswith("Z")
    assert datetime.fromisoformat(written).tzinfo is UTC


@given(st.text(st.characters(), max_size=20))
def test_any_message_can_be_a_header(message: str) -> None:
    headers = dict(letter(RECORD, "decision_raised", message, "g"))
    assert (headers["dlq.message"] or b"").decode() or not message
