"""PURE. What the demo found on the topics against what the sample expects: exactly one end for each record, that one.

Outcomes are told by their `ce_id`, dead letters by where they came from.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from service.points import format_points
from service.records import Record
from service.sample_shop import End, Event, Expected, completed, dead, refused
from service.settings import Topics

PUBLISHED = (End.COMPLETED, End.FAILED, End.DEAD)
UNREADABLE = Expected(End.FAILED, None, "unreadable outcome")

Place = tuple[str, int, int]  # topic, partition, offset


class Sent(NamedTuple):
    """An event of the sample, and the record that it became."""

    event: Event
    record: Record

    @property
    def names(self) -> tuple[str, str]:
        """Under which an outcome of it is found, and a dead letter."""
        return str(self.record.outcome_id), "/".join(map(str, place(self.record)))


@dataclass(frozen=True, slots=True)
class Came:
    """A record of an output topic. `of`: the `ce_id`, or of a dead letter the place that it came from; `message`: why
    it was refused or could not be read; `body`: the outcome's, None of a dead letter."""

    of: str
    end: Expected
    record: Record
    message: str = ""
    body: dict[str, Any] | None = None


@dataclass(slots=True)
class Verdict:
    """`differences`: what is not as expected, a line each. `counts`: by end, how many were expected and how many came.
    Points in thousandths."""

    differences: list[str] = field(default_factory=list)
    expected: Counter[tuple[End, int | None, str]] = field(default_factory=Counter)
    came: Counter[tuple[End, int | None, str]] = field(default_factory=Counter)
    examples: dict[tuple[End, int | None, str], str] = field(default_factory=dict)
    available: int = 0
    expired: int = 0


def place(record: Record) -> Place:
    return record.topic, record.partition, record.offset


def read(record: Record, topics: Topics) -> Came:
    """What a record of an output topic says; what cannot be read is no end that anybody expects."""
    headers = {name: value.decode(errors="replace") for name, value in record.headers if value is not None}
    if record.topic.endswith(topics.dead_letter_suffix):
        of = "/".join(headers.get(f"dlq.{name}", "?") for name in ("topic", "partition", "offset"))
        return Came(of, dead(headers.get("dlq.reason", "?")), record, headers.get("dlq.message", ""))
    of = headers.get("ce_id", "?")
    try:
        body = json.loads(record.value or b"")
        end = _end(body, failed=record.topic == topics.reversal_failed, code=headers.get("ce_errorcode"))
    except (ValueError, LookupError, TypeError, ArithmeticError):
        return Came(of, UNREADABLE, record, "", {})
    return Came(of, end, record, body["errors"][0]["message"] if end.end is End.FAILED else "", body)


def _end(body: dict[str, Any], *, failed: bool, code: str | None) -> Expected:
    if failed:
        error = body["errors"][0]
        if str(error["code"]) != code:
            raise ValueError(f"the header says {code}, the body {error['code']}")
        return refused(error["code"], error["name"])
    split = body["pointsReversedDetails"]
    available, expired = _thousandths(split["available"]), _thousandths(split["expired"])
    if available + expired != _thousandths(body["pointsReversed"]):
        raise ValueError(f"{body['pointsReversed']} is not split into {split}")
    return completed(available, expired)


def _thousandths(points: str) -> int:
    return int(Decimal(points) * 1000)


def key_of(end: Expected) -> tuple[End, int | None, str]:
    """What the summary counts by."""
    return end.end, end.code, end.name


def judge(sent: list[Sent], came: Iterable[Came], waiting: set[Place]) -> Verdict:
    """`came`: all that was published since the demo began; `waiting`: the records of its orgs that wait at the end."""
    verdict = Verdict()
    found: dict[str, list[Came]] = {}
    for one in came:
        found.setdefault(one.of, []).append(one)
        verdict.came[key_of(one.end)] += 1
        verdict.examples.setdefault(key_of(one.end), one.message)
        verdict.available += one.end.available
        verdict.expired += one.end.expired
    completed_by_key = {
        (one.body["orgId"], one.body["idempotencyKey"]): one.body
        for several in found.values()
        for one in several
        if one.body and one.end.end is End.COMPLETED
    }
    for each in sent:
        wanted = each.event.expected
        if wanted.end in PUBLISHED:
            verdict.expected[key_of(wanted)] += 1
        got = [one for name in each.names for one in found.pop(name, ())]
        wrong = _fault(each, got, place(each.record) in waiting) or _existing_fault(got, completed_by_key)
        if wrong:
            verdict.differences.append(f"{_where(each)}: {wrong}")
    for of, several in found.items():
        verdict.differences.append(
            f"{several[0].record.topic} has {words(several[0].end)} of {of}, which was never sent"
        )
    return verdict


def _fault(sent: Sent, got: list[Came], waits: bool) -> str | None:
    wanted = sent.event.expected
    if waits != (wanted.end is End.WAITS):
        return "still waits" if waits else "does not wait any more"
    if wanted.end not in PUBLISHED:
        return f"expected to be {wanted.end}, came {words(got[0].end)}" if got else None
    if len(got) != 1:
        return f"expected one {words(wanted)}, came {len(got)}"
    if got[0].end != wanted:
        return f"expected {words(wanted)}, came {words(got[0].end)}"
    if wanted.end is End.DEAD:
        return _dead_letter_fault(sent.record, got[0].record)
    return None


def _dead_letter_fault(sent: Record, letter: Record) -> str | None:
    untouched = None if dict(letter.headers).get("dlq.reason") == b"too_large" else sent.value
    if letter.value != untouched or letter.key != sent.key:
        return "its dead letter has other bytes"
    if letter.headers[: len(sent.headers)] != sent.headers:
        return "its dead letter has other headers"
    return None


def _existing_fault(got: list[Came], completed_by_key: dict[tuple[int, str], dict[str, Any]]) -> str | None:
    """902 and a reused key carry the reversal that the key names, as it was published; nothing else carries one."""
    for one in got:
        if one.body and "errors" in one.body:
            named = completed_by_key.get((one.body["orgId"], one.body["idempotencyKey"]))
            repeats = one.end.name in ("duplicate_reversal", "idempotency_key_reused")
            if one.body["existing"] != (named if repeats else None) or (repeats and named is None):
                return f"{words(one.end)} carries another existing reversal than was published"
    return None


def words(end: Expected) -> str:
    """An end for a person."""
    if end.end is End.COMPLETED:
        return f"completed {format_points(end.available)} spendable + {format_points(end.expired)} expired"
    return " ".join(str(part) for part in (end.end, end.code, end.name) if part)


def _where(sent: Sent) -> str:
    record = sent.record
    return f"{record.topic}/{record.partition}@{record.offset}"
