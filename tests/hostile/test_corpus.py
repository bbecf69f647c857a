"""The corpus of hostile records: each read in this process, and all of them through the real service on a real Kafka."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from service.events import decode
from service.records import Kind, Record, Return, Unreadable
from tests.hostile.corpus import Case, corpus
from tests.process import Site, site
from tests.stack import Record as Read
from tests.stack import Sending, Stack
from tests.traffic import Findings, shop, taken, verify

CASES = corpus()
MAX_BYTES = 1024 * 1024
ORG = 100458
# What libraries, Postgres and Python say for themselves; our own words have none of it.
FOREIGN = re.compile(
    r"Traceback|Exception|[A-Za-z]Error\b|errno|pydantic|asyncpg|aiokafka|orjson|codec|decode byte|Expecting|NoneType|object at"
    r"|syntax error|input_value|type=|For further information|\.py\b|site-packages|recursion|surrogates not allowed|SQLSTATE"
)
GROWTH_BYTES = 24 * 1024 * 1024  # buffers of the largest records, and what the allocator keeps of them


def test_there_are_enough_of_every_kind() -> None:
    kinds = Counter(case.name.split("-")[0] for case in CASES)
    assert len(CASES) >= 80
    assert {kind for kind, count in kinds.items() if count >= 4} >= {
        "number", "amount", "org", "bytes", "json", "surrogate", "duplicate", "size", "type", "time", "control", "sql", "text",
        "unicode", "key", "header", "event", "issue", "customer", "redemption",
    }  # fmt: skip
    assert [case.name for case in CASES if case.reason == "too_large" and len(case.value or b"") <= MAX_BYTES] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_is_read_as_what_it_is(case: Case) -> None:
    record = Record(case.topic, 0, 7, 1_763_000_000_000, case.key, case.value, case.headers)
    message = decode(Kind(case.topic), record, MAX_BYTES)
    if isinstance(message, Unreadable):
        assert case.reason == message.reason, message
        assert_ours(message.message)
        return
    assert case.reason is None, message
    if isinstance(message, Return):
        assert bool(message.faults) == (case.error == "887 validation_error"), message.faults
        if case.field is not None:
            assert case.field in {fault.field for fault in message.faults}, message.faults
        for fault in message.faults:
            assert_ours(fault.message)


def assert_ours(text: str) -> None:
    """In the service's own words, and not many of them."""
    assert text
    assert len(text) <= 1_000
    assert not FOREIGN.search(text), text
    assert text.isprintable(), text


# Through the service


@pytest.fixture(scope="module")
def place(stack: Stack, template_database: str) -> Iterator[Site]:
    with site(stack, template_database, partitions=1) as place:
        yield place


def good(topic: str, name: str) -> dict[str, Any]:
    """What follows a hostile record: something that is decided at once and for itself."""
    match topic:
        case "order.returned":
            return {
                "orgId": ORG,
                "redemptionId": "R-2-1",
                "pointsToBeReversed": "0.001",
                "idempotencyKey": f"good/{name}",
            }
        case "points.issued":
            return {"orgId": ORG, "customerId": 2, "lotId": f"good/{name}", "points": "1"}
        case "points.redeemed":
            return {"orgId": ORG, "customerId": 2, "redemptionId": f"good/{name}", "points": "0.001"}
        case _:
            return {"orgId": ORG, "customerId": 2, "identifiers": [{"type": "EXTERNAL_ID", "value": f"good/{name}"}]}


async def send(place: Site, cases: list[Case], run: str) -> None:
    """Each case, and behind it in the same partition a good record."""
    for topic in sorted({case.topic for case in cases}):
        records = []
        for case in cases:
            if case.topic == topic:
                records.append(Sending(case.value, case.key, case.headers, 0))  # type: ignore[arg-type]
                records.append(Sending(orjson.dumps(good(topic, f"{case.name}/{run}")), b"good", (), 0))
        await place.produce(topic, records)
    await place.drained(120)


def came_of(place: Site, findings: Findings, topic: str, record: Read) -> tuple[str, Read | None]:
    """What came of a record, as a case tells it, with the record that says so."""
    origin = taken(topic, record)
    letter = findings.letters.get(origin.place)
    if letter is not None:
        return f"dlq {letter.header('dlq.reason')}", letter
    outcome = findings.outcomes.get(str(origin.outcome_id))
    if outcome is None:
        return "booked", None
    errors = orjson.loads(outcome.value or b"").get("errors")
    return (f"{errors[0]['code']} {errors[0]['name']}" if errors else "completed"), outcome


@pytest.mark.timeout(400)
async def test_the_service_decides_each_and_the_good_record_behind_it(place: Site, tmp_path: Path) -> None:
    lines = shop(customers=2, redemptions=1)
    await place.load([*lines, {"kind": "lot", "orgId": ORG, "customerId": 2, "lotId": "spare", "points": "100"}])
    service = place.start()
    await service.ready()
    await send(place, CASES, "first")
    findings = await verify(
        place
    )  # bytes and headers of dead letters untouched, one outcome each, the audit, and so on
    wrong = {}
    for topic in place.topics.inputs():
        kind = topic.removeprefix(f"{place.prefix}.")
        sent = [case for case in CASES if case.topic == kind]
        records = findings.inputs[topic]
        assert [one.offset for one in records] == list(range(2 * len(sent)))
        for case, record, behind in zip(sent, records[::2], records[1::2], strict=True):
            became, told = came_of(place, findings, topic, record)
            if became != case.becomes:
                wrong[case.name] = (became, told and told.value)
            follows, _ = came_of(place, findings, topic, behind)
            if follows != ("completed" if kind == "order.returned" else "booked"):
                wrong[case.name + ", the good record behind it"] = (follows, None)
            if told is not None:
                check_words(case, told)
    assert wrong == {}, service.said("record.raised")
    assert await place.value("select count(*) from lot where lot_id like 'good/%'") == sum(
        case.topic == "points.issued" for case in CASES
    )
    assert not service.said("lane.doubt")
    assert not service.said("record.raised")
    assert len(service.said("lane.owned")) == 4

    # The same again, more than once: nothing piles up.
    process = psutil.Process(service.process.pid)
    await send(place, CASES, "second")
    before = process.memory_info().rss
    for run in ("third", "fourth", "fifth"):
        await send(place, CASES, run)
    assert process.memory_info().rss - before < GROWTH_BYTES
    await verify(place)
    await service.stop()


def check_words(case: Case, told: Read) -> None:
    """What an outcome or a dead letter says is the service's own; what it repeats of the record is bounded."""
    if case.reason is not None:
        assert_ours(told.header("dlq.message") or "")
        return
    body = orjson.loads(told.value or b"")
    for error in body.get("errors", ()):
        assert_ours(without_given(error["message"], body))
        if case.field is not None and error["name"] == "validation_error":
            fields = {one["details"].get("field") for one in body["errors"]}
            assert case.field in fields, fields
    for name, value in told.headers:
        assert name in {"ce_subject", "content-type"} or value.isascii()
        assert not re.search(rb"[\x00-\x1f\x7f]", value), (name, value)


def without_given(message: str, body: dict[str, Any]) -> str:
    """A message less the ids that it repeats: those are the sender's words."""
    for name in ("redemptionId", "orderId", "programId", "returnId", "idempotencyKey"):
        if body.get(name):
            message = message.replace(str(body[name]), "…")
    return message
