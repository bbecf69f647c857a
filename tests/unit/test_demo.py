"""The demo's judgement: whatever differs from the sample is named, and the summary fits a terminal."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from service.audit import CHECKS, Finding
from service.demo_check import Came, Sent, judge, read
from service.demo_view import Figures, LiveStream, View, row
from service.records import Record
from service.sample_shop import BOOKED, WAITS, Event, Expected, completed, dead, refused
from service.settings import Topics

TOPICS = Topics()
RETURNED = TOPICS.order_returned
ORG = 100458


def sent(expected: Expected, offset: int = 41, value: bytes | None = b"{}") -> Sent:
    headers = (("content-type", b"application/json"),)
    record = Record(RETURNED, 2, offset, 1_795_000_000_000, b"42", value, headers)
    return Sent(Event(RETURNED, b"42", value, headers, expected), record)


def published(of: Sent, body: dict[str, Any]) -> Came:
    error = body.get("errors", [{}])[0]
    headers = [("ce_id", str(of.record.outcome_id).encode())]
    headers += [("ce_errorcode", str(error["code"]).encode())] if error else []
    topic = TOPICS.reversal_failed if error else TOPICS.reversal_completed
    return read(Record(topic, 0, 0, 0, b"42", json.dumps(body).encode(), tuple(headers)), TOPICS)


def completion(of: Sent, available: str, expired: str, key: str = "RMA-1/1") -> Came:
    total = str(int(available) + int(expired))
    split = {"available": available, "expired": expired}
    body = {"orgId": ORG, "idempotencyKey": key, "pointsReversed": total, "pointsReversedDetails": split}
    return published(of, {**body, "orderId": "SO-1881", "pointsToBeReversed": total, "quantity": None})


def refusal(of: Sent, code: int, name: str, key: str = "RMA-1/1", existing: object = None) -> Came:
    error = {"code": code, "name": name, "message": "asked for 150, 50 of 200 remain"}
    return published(of, {"orgId": ORG, "idempotencyKey": key, "errors": [error], "existing": existing})


def letter(of: Sent, reason: str, value: bytes | None = b"{}") -> Came:
    place = {"topic": RETURNED, "partition": "2", "offset": str(of.record.offset), "reason": reason}
    headers = (*of.record.headers, *((f"dlq.{name}", text.encode()) for name, text in place.items()))
    return read(Record(TOPICS.dead_letters(RETURNED), 0, 0, 0, b"42", value, headers), TOPICS)


SHORT = refused(817, "insufficient_points")
FIRST, SECOND = sent(completed(100_000, 50_000)), sent(refused(902, "duplicate_reversal"), 42)
GOOD = completion(FIRST, "100", "50")


def test_what_came_as_expected_leaves_nothing_to_say() -> None:
    twice = refusal(SECOND, 902, "duplicate_reversal", existing=GOOD.body)
    broken = sent(dead("not_json"), 43)
    verdict = judge([FIRST, SECOND, broken, sent(BOOKED, 44)], [twice, GOOD, letter(broken, "not_json")], set())
    assert verdict.differences == []
    assert verdict.expected == verdict.came
    assert (verdict.available, verdict.expired) == (100_000, 50_000)


@pytest.mark.parametrize(
    ("one", "came", "waiting", "says"),
    [
        (FIRST, [], set(), "expected one completed 100 spendable + 50 expired, came 0"),
        (FIRST, [GOOD, GOOD], set(), "came 2"),
        (FIRST, [completion(FIRST, "150", "0")], set(), "came completed 150 spendable + 0 expired"),
        (FIRST, [refusal(FIRST, 817, "insufficient_points")], set(), "came failed 817 insufficient_points"),
        (FIRST, [letter(FIRST, "no_org")], set(), "came dead letter no_org"),
        (FIRST, [GOOD, letter(FIRST, "decision_raised")], set(), "came 2"),
        (FIRST, [], {(RETURNED, 2, 41)}, "still waits"),
        (SECOND, [refusal(SECOND, 902, "duplicate_reversal")], set(), "another existing reversal"),
        (SECOND, [refusal(SECOND, 887, "idempotency_key_reused")], set(), "came failed 887 idempotency_key_reused"),
        (sent(SHORT), [refusal(FIRST, 817, "insufficient_points", existing={})], set(), "another existing reversal"),
        (sent(dead("not_json")), [letter(FIRST, "no_org")], set(), "came dead letter no_org"),
        (sent(dead("not_json")), [letter(FIRST, "not_json", b"{ }")], set(), "other bytes"),
        (sent(dead("too_large")), [letter(FIRST, "too_large")], set(), "other bytes"),
        (sent(BOOKED), [letter(FIRST, "malformed_feed")], set(), "to be booked, came dead letter malformed_feed"),
        (sent(WAITS), [], set(), "does not wait any more"),
        (sent(BOOKED), [GOOD], set(), "came completed"),
        (sent(BOOKED, 99), [GOOD], set(), "which was never sent"),
    ],
)  # fmt: skip
def test_whatever_differs_is_named(one: Sent, came: list[Came], waiting: set[Any], says: str) -> None:
    [difference] = judge([one], came, waiting).differences
    assert says in difference
    assert difference.startswith(f"{RETURNED}/2@{one.record.offset}: ") or "never sent" in says


@pytest.mark.parametrize("value", [b"", b"[]", b"{}", b'{"errors": []}', b'{"errors": [{"code": 1, "name": "a"}]}'])
def test_an_outcome_that_cannot_be_read_is_nobodys_expectation(value: bytes) -> None:
    headers = (("ce_id", str(FIRST.record.outcome_id).encode()),)
    came = read(Record(TOPICS.reversal_failed, 0, 0, 0, None, value, headers), TOPICS)
    [difference] = judge([FIRST], [came], set()).differences
    assert "came failed unreadable outcome" in difference


def test_a_row_tells_what_was_asked_and_what_came_of_it() -> None:
    assert row(GOOD)[:5] == ("SO-1881", "150", "150", "100 / 50", "completed")
    assert row(refusal(SECOND, 817, "insufficient_points"))[:5] == ("-", "all", "-", "-", "817 insufficient_points")
    assert row(letter(SECOND, "no_org"))[:5] == ("-", "-", "-", "-", "dead letter: no_org")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_all_that_is_shown_fits_80_columns_in_any_encoding(encoding: str) -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding=encoding), width=80, height=30, highlight=False)
    view = View(console, console)
    expected = sent(refused(887, "idempotency_key_reused"))
    came = refusal(expected, 887, "idempotency_key_reused", existing=GOOD.body)
    verdict = judge([FIRST, expected], [GOOD, came], set())
    figures = Figures(573, 0.71, [("Kafka and Postgres", 6.3), ("in all", 12.1)], 11, 1)
    broken = [{"orgId": ORG, "fault": "x"}]
    view.summary(verdict, [Finding(check, broken, 1, 0.1) for check in CHECKS], figures)
    stream = LiveStream(console, 2)
    for one in (GOOD, came):
        stream.add(one)
    console.print(stream)
    with view.outcomes(2) as plain:
        plain.add(GOOD)
    console.file.flush()
    lines = raw.getvalue().decode(encoding).splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert text.count("887 idempotency_key_reused") == 2
    assert text.count("1 broken") == len(CHECKS)
    assert "2/2" in text
