"""The demo's sample against the second reading of the contract: what it expects is what the model decides."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from aiokafka.partitioner import murmur2

from service import envelope
from service.errors import Code
from service.load_lines import read_line
from service.records import DeadLetterReason, Record, Unreadable
from service.rules import RULES
from service.sample import Sample, build
from service.sample_shop import RETURNS, End, Event, Expected, completed, dead, refused
from service.settings import Settings, Topics
from tests.model import Model
from tests.reading import Number, read_points

NOW = datetime(2026, 11, 20, 9, 30, tzinfo=UTC)
FIRST_ORG = 100458
SYNCHRONOUS_OR_OURS = {886, 896, 898, 804}
NOT_BY_A_PRODUCER = {DeadLetterReason.CORRUPT, DeadLetterReason.DECISION_RAISED}

Data = dict[str, Any]


@pytest.fixture(scope="module")
def sample() -> Sample:
    return build(NOW, FIRST_ORG)


def model_data(value: Any) -> Any:
    """The service's numbers as the model's."""
    if isinstance(value, dict):
        return {name: model_data(item) for name, item in value.items()}
    if isinstance(value, list):
        return [model_data(item) for item in value]
    return Number(value) if isinstance(value, envelope.Number) else value


def decided(outcome: Data) -> Expected:
    if "errors" in outcome:
        return refused(outcome["errors"][0]["code"], outcome["errors"][0]["name"])
    split = outcome["pointsReversedDetails"]
    return completed(read_points(split["available"], zero=True), read_points(split["expired"], zero=True))


Played = tuple[Model, list[Expected | None]]


@pytest.fixture(scope="module")
def played(sample: Sample) -> Played:
    """What the model comes to for each event, in one of the orders that the topics allow; None: no outcome."""
    model = Model()
    model.load(sample.lines, NOW)
    model.store_program({**model.program_rows[sample.contradictory], "max_reversals_count": 1})
    ends: list[Expected | None] = [None] * len(sample.events)
    parked: dict[tuple[int, str], int] = {}
    for number, event in enumerate(sample.events):
        record = Record(event.topic, 0, number, 0, event.key, event.value, event.headers)
        found = envelope.read_envelope(record, Settings().max_record_bytes)
        if isinstance(found, Unreadable):
            ends[number] = dead(found.reason)
            continue
        cloud_event = None if found.source is None else {"source": found.source, "id": found.id}
        waiting = len(model.parked)
        outcomes = model.take(event.topic, model_data(found.data), place=record.place, now=NOW, ce=cloud_event)
        if event.topic == RETURNS and outcomes:
            ends[number] = decided(outcomes.pop(0))
        if len(model.parked) > waiting:
            ask = model.parked[-1]["ask"]
            parked[ask["org_id"], ask["key"]] = number
        for outcome in outcomes:
            ends[parked.pop((outcome["orgId"], outcome["idempotencyKey"]))] = decided(outcome)
    for place, reason in model.dead:
        ends[int(place.split("/")[2].split("@")[0])] = dead(reason)
    return model, ends


def test_each_record_is_expected_to_end_as_the_model_ends_it(sample: Sample, played: Played) -> None:
    model, ends = played
    published = {End.COMPLETED, End.FAILED, End.DEAD}
    for event, end in zip(sample.events, ends, strict=True):
        assert end == (event.expected if event.expected.end in published else None), event
    assert not model.parked
    assert len(model.waiting) == sum(event.expected.end is End.WAITS for event in sample.events)


def test_rewards_come_back_into_stock(played: Played) -> None:
    model, _ = played
    assert model.reward_rows[FIRST_ORG, "tote-bag"]["status"] == "ACTIVE"


def test_the_lines_can_be_loaded(sample: Sample) -> None:
    for number, line in enumerate(sample.lines):
        rows = read_line(number, json.dumps(line).encode())
        assert isinstance(rows, list), rows


def test_it_is_a_shop_of_a_few_hundred_customers(sample: Sample) -> None:
    kinds = Counter(line["kind"] for line in sample.lines)
    assert 200 <= kinds["customer"] <= 999
    assert {line["type"] for line in sample.lines if line["kind"] == "redemption"} == {
        "RAW",
        "AMOUNT_BASED",
        "UNIT_BASED",
    }
    assert any("lots" not in line for line in sample.lines if line["kind"] == "redemption")
    expiries = {line.get("expiresAt") for line in sample.lines if line["kind"] == "lot"}
    assert None in expiries
    assert len(expiries) >= 4
    assert 400 <= sum(event.topic == RETURNS for event in sample.events) <= 600


def test_every_refusal_that_a_record_can_meet_is_among_it(sample: Sample) -> None:
    refusals = {(event.expected.code, event.expected.name) for event in sample.events if event.expected.code}
    assert refusals == {(code.number, code.label) for code in Code if code.number not in SYNCHRONOUS_OR_OURS}
    assert refusals >= {(rule.code.number, rule.code.label) for rule in RULES}


def test_every_dead_letter_that_a_producer_can_cause_is_among_it(sample: Sample) -> None:
    reasons = {event.expected.name for event in sample.events if event.expected.end is End.DEAD}
    assert reasons == set(DeadLetterReason) - NOT_BY_A_PRODUCER


def form(event: Event) -> str:
    headers = dict(event.headers)
    if event.value and b'"specversion"' in event.value:
        return "structured"
    return "binary" if "ce_specversion" in headers else "bare"


def test_the_returns_come_in_all_forms_on_all_partitions_of_all_inputs(sample: Sample) -> None:
    forms = Counter(form(event) for event in sample.events if event.topic == RETURNS)
    assert all(forms[name] > 100 for name in ("structured", "binary", "bare")), forms
    assert {event.topic for event in sample.events} == set(Topics().inputs())
    partitions = {murmur2(event.key) % Topics().partitions for event in sample.events if event.topic == RETURNS}
    assert partitions == set(range(Topics().partitions))


def test_each_return_that_waits_is_set_free_by_a_later_act(sample: Sample) -> None:
    first, _, last = sample.acts
    waiting = [event for event in first if event.waits and event.expected.end is not End.WAITS]
    assert waiting
    assert {event.key for event in waiting} <= {event.key for event in last}
    assert not any(event.waits for act in sample.acts[1:] for event in act)


def test_it_is_the_same_each_time_and_another_for_another_org(sample: Sample) -> None:
    assert build(NOW, FIRST_ORG) == sample
    again = build(NOW, FIRST_ORG + len(sample.orgs))
    assert not set(again.orgs) & set(sample.orgs)
    assert [event.expected for event in again.events] == [event.expected for event in sample.events]
