"""The way of a record on a real Postgres: what is published, what the ledger holds, what the lane counted."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

import pytest

from service.commit import end
from service.headers import read
from service.records import DeadLetterReason, Unreadable
from tests.integration.desk import (
    COMPLETED,
    CUSTOMER,
    CUSTOMERS,
    DAY,
    FAILED,
    ISSUES,
    NOW,
    ORG,
    REDEMPTIONS,
    RETURNS,
    SECOND,
    Desk,
)


async def worked_example(desk: Desk) -> None:
    """Lots A 100 (expired), B 60, C 40, consumed in that order by a redemption of 200."""
    await desk.customer(CUSTOMER, ("PHONE", "6591234567"))
    await desk.lot("A", 100, 0, expires_at=NOW)
    await desk.lot("B", 60, 0, expires_at=NOW + DAY)
    await desk.lot("C", 40, 0)
    await desk.redemption("R-5001", 200, ("A", 100), ("B", 60), ("C", 40), order_id="SO-1881")


def given_back(outcome: dict[str, Any]) -> tuple[dict[str, str], str, str]:
    """Points by lot, and how much of them is available and expired."""
    details = outcome["pointsReversedDetails"]
    return {lot["lotId"]: lot["points"] for lot in outcome["lots"]}, details["available"], details["expired"]


async def test_the_contracts_example(desk: Desk) -> None:
    await worked_example(desk)
    outcomes = [
        await desk.ask(redemptionId="R-5001", returnId="1", pointsToBeReversed="50"),
        await desk.ask(redemptionId="R-5001", returnId="2", pointsToBeReversed="75"),
        await desk.ask(redemptionId="R-5001", returnId="3"),
    ]
    assert [given_back(outcome.document) for outcome in outcomes] == [
        ({"C": "40", "B": "10"}, "50", "0"),
        ({"B": "50", "A": "25"}, "50", "25"),
        ({"A": "75"}, "0", "75"),
    ]
    assert await desk.held() == {"A": 100, "B": 60, "C": 40}
    assert await desk.reversed() == {"R-5001": 200}
    fourth = await desk.ask(redemptionId="R-5001", returnId="4")
    assert fourth.refusal == "insufficient_points"


async def test_asking_for_more_than_remains_names_what_remains(desk: Desk) -> None:
    await worked_example(desk)
    await desk.take_in(
        RETURNS,
        {"redemptionId": "R-5001", "returnId": "1", "pointsToBeReversed": "50"},
        {"redemptionId": "R-5001", "returnId": "2", "pointsToBeReversed": "75"},
    )
    third = await desk.ask(redemptionId="R-5001", returnId="3", pointsToBeReversed="80")
    [error] = third.document["errors"]
    assert (error["code"], error["retryable"], error["details"]["remaining"]) == (817, False, "75")
    assert "75 of 200 remain" in error["message"]


async def test_a_completed_outcome_is_the_contracts(desk: Desk) -> None:
    await worked_example(desk)
    await desk.lot("D", 1000)
    await desk.lot("E", 7, expires_at=NOW)
    identifier = {"type": "PHONE", "value": "+65 9123-4567"}
    outcome = await desk.ask(
        orderId="SO-1881",
        returnId="RMA-77",
        redemptionId="R-5001",
        pointsToBeReversed="150.50",
        identifier=identifier,
        idempotencyKey="RMA-77/1",
        reason="size does not fit",
        programId="main",
        returnedAt="2026-11-20T09:30:00+08:00",
    )
    [reversal] = await desk.rows("select reversal_id, journal_entry_id from reversal")
    expected = {
        "orgId": ORG,
        "programId": "main",
        "customerId": CUSTOMER,
        "identifier": identifier,
        "orderId": "SO-1881",
        "returnId": "RMA-77",
        "redemptionId": "R-5001",
        "reversalId": str(reversal[0]),
        "journalEntryId": str(reversal[1]),
        "idempotencyKey": "RMA-77/1",
        "reason": "size does not fit",
        "pointsToBeReversed": "150.5",
        "pointsReversed": "150.5",
        "quantity": None,
        "pointsReversedDetails": {"available": "100", "expired": "50.5"},
        "lots": [
            {"lotId": "C", "points": "40", "expiresAt": None, "expired": False},
            {"lotId": "B", "points": "60", "expiresAt": "2026-11-21T01:30:02.123456Z", "expired": False},
            {"lotId": "A", "points": "50.5", "expiresAt": "2026-11-20T01:30:02.123456Z", "expired": True},
        ],
        "redemption": {"points": "200", "reversed": "150.5", "remaining": "49.5"},
        "balance": {"available": "1100"},
        "sequence": 1,
        "warnings": [],
        "createdAt": "2026-11-20T01:30:02.123456Z",
    }
    assert outcome.document == expected
    assert list(outcome.document) == list(expected)
    [record] = desk.partition(RETURNS).records
    assert (outcome.topic, outcome.key) == (COMPLETED, b"42")
    assert dict(outcome.headers) == {
        "content-type": b"application/json",
        "ce_specversion": b"1.0",
        "ce_id": str(record.outcome_id).encode(),
        "ce_source": b"/points-reversal",
        "ce_type": b"reversal-completed",
        "ce_time": b"2026-11-20T01:30:02.123456Z",
        "ce_subject": b"R-5001",
        "ce_orgid": b"100458",
    }


async def test_a_failed_outcome_is_the_contracts(desk: Desk) -> None:
    await worked_example(desk)
    [outcome] = await desk.process.serve(
        desk.send(
            RETURNS,
            {"orderId": "SO-1881", "pointsToBeReversed": "201", "idempotencyKey": "K"},
            key=b"SO-1881",
            headers=[("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")],
        )
    )
    document = outcome.document
    [error] = document.pop("errors")
    assert (error["code"], error["name"], error["retryable"]) == (817, "insufficient_points", False)
    assert document == {
        "orgId": ORG,
        "programId": None,
        "customerId": CUSTOMER,
        "identifier": None,
        "orderId": "SO-1881",
        "returnId": None,
        "redemptionId": None,
        "idempotencyKey": "K",
        "reason": "order returned",
        "pointsToBeReversed": "201",
        "quantity": None,
        "returnedAt": None,
        "sequence": 1,
        "existing": None,
        "failedAt": "2026-11-20T01:30:02.123456Z",
    }
    assert (outcome.topic, outcome.key) == (FAILED, b"42")
    headers = dict(outcome.headers)
    assert headers["ce_type"] == b"reversal-failed"
    assert headers["ce_subject"] == b"R-5001"
    assert headers["ce_errorcode"] == b"817"
    assert headers["traceparent"] == b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def test_a_failure_without_a_known_customer_keeps_the_inputs_key(desk: Desk) -> None:
    [outcome] = await desk.process.serve(desk.send(RETURNS, {"orderId": "SO-9"}, key=b"the order"))
    assert outcome.refusal == "redemption_not_found"
    assert (outcome.key, outcome.document["customerId"], outcome.document["sequence"]) == (b"the order", None, None)


async def test_an_outcome_stands_in_the_tables_as_it_was_published(desk: Desk) -> None:
    await desk.bought("R-1", 60, order_id="SO-1")
    completed, refused = await desk.take_in(
        RETURNS,
        {"redemptionId": "R-1", "idempotencyKey": "K", "pointsToBeReversed": "20"},
        {"orderId": "SO-1", "idempotencyKey": "K2", "pointsToBeReversed": "50"},
    )
    row = await desk.pool.fetchrow("select * from reversal")
    assert row is not None
    assert row["outcome"].encode() == completed.value
    assert str(row["outcome_id"]) == completed.header("ce_id")
    assert (row["points"], row["available"], row["expired"], row["sequence"]) == (20_000, 20_000, 0, 1)
    assert (row["redemption_id"], row["customer_id"], row["record_offset"]) == ("R-1", CUSTOMER, 0)
    postings = "select account, subject, points from posting where entry_id = $1 order by position"
    assert await desk.rows(postings, row["journal_entry_id"]) == [
        ("redeemed", "R-1", -20_000),
        ("held", "L-R-1", 20_000),
    ]
    row = await desk.pool.fetchrow("select * from refusal")
    assert row is not None
    assert row["outcome"].encode() == refused.value
    assert (row["code"], row["name"], row["redemption_id"], row["order_id"]) == (
        817,
        "insufficient_points",
        "R-1",
        "SO-1",
    )


async def test_the_decision_moment_is_the_databases_clock_after_the_lock(desk: Desk) -> None:
    desk.set_clock(None)
    await desk.bought("R-1", 60)
    before = await desk.value("select clock_timestamp()")
    outcome = await desk.ask(redemptionId="R-1")
    created_at = datetime.fromisoformat(outcome.document["createdAt"])
    assert before < created_at < await desk.value("select clock_timestamp()")
    assert await desk.rows("select created_at from reversal") == [(created_at,)]


class TestExpiredLots:
    async def test_extended_ones_return_as_new_lots(self, desk: Desk) -> None:
        await worked_example(desk)
        await desk.rules(expired_lots_policy="extend", grace_days=7)
        document = (await desk.ask(redemptionId="R-5001")).document
        new = document["lots"][2]
        assert document["pointsReversedDetails"] == {"available": "200", "expired": "0"}
        assert new == {
            "lotId": new["lotId"],
            "points": "100",
            "expiresAt": "2026-11-27T01:30:02.123456Z",
            "expired": False,
            "restoredFrom": "A",
        }
        assert [warning["name"] for warning in document["warnings"]] == ["expired_lot_extended"]
        assert await desk.held() == {"A": 0, "B": 60, "C": 40, new["lotId"]: 100}
        statement = (
            "select customer_id, program_id, points, expires_at, issued_at, restored_from from lot where lot_id = $1"
        )
        assert await desk.rows(statement, new["lotId"]) == [(CUSTOMER, "main", 100_000, NOW + 7 * DAY, NOW, "A")]
        assert document["balance"] == {"available": "200"}

    async def test_a_redemption_without_lots_restores_one_new_lot(self, desk: Desk) -> None:
        await desk.customer()
        await desk.redemption("R-1", 30)
        never = (await desk.ask(redemptionId="R-1", returnId="1", pointsToBeReversed="10")).document
        await desk.rules(expired_lots_policy="extend", grace_days=2)
        grace = (await desk.ask(redemptionId="R-1", returnId="2")).document
        assert [(lot["points"], lot["expiresAt"]) for lot in never["lots"]] == [("10", None)]
        assert [(lot["points"], lot["expiresAt"]) for lot in grace["lots"]] == [("20", "2026-11-22T01:30:02.123456Z")]
        assert len(never["warnings"]) == len(grace["warnings"]) == 1
        assert grace["balance"] == {"available": "30"}
        assert sorted((await desk.held()).values()) == [10, 20]

    async def test_restored_points_can_be_redeemed_and_given_back_again_in_one_batch(self, desk: Desk) -> None:
        await worked_example(desk)
        await desk.rules(expired_lots_policy="extend", grace_days=7)
        document = (await desk.ask(redemptionId="R-5001", pointsToBeReversed="150")).document
        new = document["lots"][2]["lotId"]
        lots = [{"lotId": new, "points": "30"}, {"lotId": "B", "points": "60"}]
        await desk.take_in(REDEMPTIONS, {"customerId": CUSTOMER, "redemptionId": "R-2", "points": 90, "lots": lots})
        second = await desk.take_in(
            RETURNS,
            {"redemptionId": "R-2", "returnId": "1", "pointsToBeReversed": "70"},
            {"redemptionId": "R-5001", "returnId": "2"},
            {"redemptionId": "R-2", "returnId": "3"},
        )
        assert [given_back(outcome.document)[0] for outcome in second][::2] == [{"B": "60", new: "10"}, {new: "20"}]
        held = await desk.held()
        assert (held["A"], held["B"], held["C"], held[new]) == (0, 60, 40, 50)
        assert sum(held.values()) == 200


class TestUnits:
    async def test_units_given_back_make_the_points_exactly(self, desk: Desk) -> None:
        await desk.rules(decimals=1)
        await desk.bought("R-1", 10, type="UNIT_BASED", quantity=3)
        outcomes = [await desk.ask(redemptionId="R-1", returnId=str(number), quantity=1) for number in range(3)]
        documents = [outcome.document for outcome in outcomes]
        assert [document["pointsReversed"] for document in documents] == ["3.3", "3.3", "3.4"]
        assert [document["quantity"] for document in documents] == [1, 1, 1]
        assert await desk.rows("select reversed, reversed_quantity from redemption") == [(10_000, 3)]

    async def test_a_unit_worth_nothing_more_is_a_completed_reversal_of_zero(self, desk: Desk) -> None:
        await desk.rules(decimals=0)
        await desk.bought("R-1", 1, type="UNIT_BASED", quantity=2)
        first = (await desk.ask(redemptionId="R-1", returnId="1", quantity=1)).document
        second = (await desk.ask(redemptionId="R-1", returnId="2")).document
        assert [(one["pointsReversed"], one["lots"] != []) for one in (first, second)] == [("0", False), ("1", True)]
        assert await desk.rows("select points, quantity from reversal order by sequence") == [(0, 1), (1_000, 1)]

    async def test_reward_stock_comes_back_and_never_below_zero(self, desk: Desk) -> None:
        await desk.put("reward", org_id=ORG, reward_id="mug", max_total=5, redeemed_count=5, status="OUT_OF_STOCK")
        await desk.put("reward", org_id=ORG, reward_id="bag", redeemed_count=1)
        await desk.bought("R-1", 10, type="UNIT_BASED", quantity=2, reward_id="mug")
        await desk.bought("R-2", 10, type="UNIT_BASED", quantity=4, reward_id="bag")
        await desk.bought("R-3", 10, type="UNIT_BASED", quantity=1, reward_id="unheard-of")
        published = await desk.take_in(
            RETURNS, *({"redemptionId": redemption_id} for redemption_id in ("R-1", "R-2", "R-3"))
        )
        assert {one.topic for one in published} == {COMPLETED}
        assert await desk.rows("select reward_id, redeemed_count, status from reward order by 1") == [
            ("bag", 0, "ACTIVE"),
            ("mug", 3, "ACTIVE"),
        ]

    async def test_a_reward_whose_count_stays_at_its_total_stays_out_of_stock(self, desk: Desk) -> None:
        row = {"max_total": 3, "redeemed_count": 4, "status": "OUT_OF_STOCK"}
        await desk.put("reward", org_id=ORG, reward_id="mug", **row)
        await desk.bought("R-1", 10, type="UNIT_BASED", quantity=2, reward_id="mug")
        await desk.ask(redemptionId="R-1", quantity=1, returnId="1")
        assert await desk.rows("select redeemed_count, status from reward") == [(3, "OUT_OF_STOCK")]
        await desk.ask(redemptionId="R-1", quantity=1, returnId="2")
        assert await desk.rows("select redeemed_count, status from reward") == [(2, "ACTIVE")]

    async def test_a_redemption_of_units_counts_them_and_empties_the_stock(self, desk: Desk) -> None:
        await desk.customer()
        await desk.lot("L", 100)
        await desk.put("reward", org_id=ORG, reward_id="mug", max_total=3, redeemed_count=1)
        redemption = {"customerId": CUSTOMER, "type": "UNIT_BASED", "rewardId": "mug", "points": "10"}
        await desk.take_in(REDEMPTIONS, {**redemption, "redemptionId": "R-1", "quantity": 2})
        assert await desk.rows("select redeemed_count, status from reward") == [(3, "OUT_OF_STOCK")]
        await desk.ask(redemptionId="R-1", quantity=1)
        assert await desk.rows("select redeemed_count, status from reward") == [(2, "ACTIVE")]


class TestFeeds:
    async def test_a_customers_life_comes_from_feeds_alone(self, desk: Desk) -> None:
        await desk.take_in(
            CUSTOMERS,
            {"customerId": 7, "identifiers": [{"type": "EMAIL", "value": " Ann@Example.com "}]},
        )
        await desk.take_in(ISSUES, {"customerId": 7, "lotId": "L-1", "points": "30.5"})
        await desk.take_in(REDEMPTIONS, {"customerId": 7, "redemptionId": "R-1", "orderId": "SO-1", "points": "12.25"})
        outcome = await desk.ask(orderId="SO-1", identifier={"type": "EMAIL", "value": "ann@example.com"})
        assert outcome.document["balance"] == {"available": "30.5"}
        assert await desk.rows("select type, lookup, value, customer_id from identifier") == [
            ("EMAIL", "ann@example.com", " Ann@Example.com ", 7)
        ]
        kinds = "select kind from journal order by created_at, entry_id"
        assert sorted(await desk.rows(kinds)) == [("issue",), ("redemption",), ("reversal",)]

    async def test_points_are_consumed_by_expiry_then_issue_then_id(self, desk: Desk) -> None:
        await desk.customer()
        await desk.put("program", org_id=ORG, program_id="side")
        await desk.lot("never-old", 10, issued_at=NOW - 300 * DAY)
        await desk.lot("late", 10, expires_at=NOW + 9 * DAY, issued_at=NOW - 300 * DAY)
        await desk.lot("b", 10, expires_at=NOW + 2 * DAY)
        await desk.lot("B", 10, expires_at=NOW + 2 * DAY)
        await desk.lot("issued-first", 10, expires_at=NOW + 2 * DAY, issued_at=NOW - 200 * DAY)
        await desk.lot("expired", 10, expires_at=NOW - 5 * DAY)
        await desk.lot("empty", 10, 0, expires_at=NOW + DAY)
        await desk.lot("elsewhere", 10, program_id="side", expires_at=NOW + DAY)
        await desk.take_in(REDEMPTIONS, {"customerId": CUSTOMER, "redemptionId": "R-1", "points": "45"})
        assert await desk.rows("select lot_ids, lot_points from redemption") == [
            (["issued-first", "B", "b", "late", "never-old"], [10_000, 10_000, 10_000, 10_000, 5_000])
        ]

    async def test_lots_not_expired_when_redeemed_are_spent_though_expired_now(self, desk: Desk) -> None:
        await desk.customer()
        await desk.lot("expired", 10, expires_at=NOW - 5 * DAY)
        redeemed_at = (NOW - 6 * DAY).isoformat()
        redemption = {"customerId": CUSTOMER, "redemptionId": "R-1", "points": "4", "redeemedAt": redeemed_at}
        await desk.take_in(REDEMPTIONS, redemption)
        assert await desk.held() == {"expired": 6}

    async def test_what_is_known_changes_nothing(self, desk: Desk) -> None:
        await desk.customer()
        await desk.lot("L", 100, 60)
        lots = [{"lotId": "L", "points": "20"}]
        redemption = {"customerId": CUSTOMER, "redemptionId": "R-1", "points": "20", "lots": lots}
        lot = {"customerId": CUSTOMER, "lotId": "L", "points": "100"}
        await desk.take_in(REDEMPTIONS, redemption)
        before = await desk.ledger()
        del redemption["lots"]
        assert await desk.take_in(REDEMPTIONS, redemption, {**redemption, "redeemedAt": NOW.isoformat()}) == []
        assert await desk.take_in(ISSUES, {**lot, "programId": "main"}, {**lot, "issuedAt": NOW.isoformat()}) == []
        assert await desk.ledger() == before
        assert await desk.counts(ISSUES) == {"taken": 2, "unchanged": 2}
        assert await desk.counts(REDEMPTIONS) == {"taken": 3, "booked": 1, "unchanged": 2}

    @pytest.mark.parametrize(
        ("topic", "data"),
        [
            (ISSUES, {"lotId": "L", "points": "99"}),
            (ISSUES, {"lotId": "L", "points": "100", "customerId": 7}),
            (ISSUES, {"lotId": "L", "points": "100", "expiresAt": "2027-01-01T00:00:00Z"}),
            (REDEMPTIONS, {"redemptionId": "R-1", "points": "21"}),
            (REDEMPTIONS, {"redemptionId": "R-1", "points": "20", "orderId": "SO-2"}),
            (REDEMPTIONS, {"redemptionId": "R-2", "points": "20", "lots": [{"lotId": "L-7", "points": "20"}]}),
        ],
    )
    async def test_another_content_is_not_bookable(self, desk: Desk, topic: str, data: dict[str, Any]) -> None:
        await desk.customer()
        await desk.customer(8)
        await desk.lot("L", 100)
        await desk.lot("L-7", 100, customer_id=8)
        await desk.redemption("R-1", 20, order_id="SO-1")
        before = await desk.ledger()
        [dead] = await desk.take_in(topic, {"customerId": CUSTOMER, **data})
        assert (dead.topic, dead.header("dlq.reason")) == (topic + ".dlq", "not_bookable")
        assert dead.value == desk.partition(topic).records[0].value
        assert await desk.ledger() == before
        assert await desk.counts(topic) == {"taken": 1, "dead": 1}

    async def test_an_identifier_is_taken_over_by_the_later_update(self, desk: Desk) -> None:
        phone = {"type": "PHONE", "value": "+65 9123 4567"}
        await desk.bought("R-1", 10, customer_id=1)
        await desk.take_in(CUSTOMERS, {"customerId": 1, "identifiers": [phone]})
        await desk.take_in(CUSTOMERS, {"customerId": 2, "identifiers": [phone, {"type": "ID", "value": "2"}]})
        assert await desk.rows("select lookup, customer_id from identifier") == [("6591234567", 2)]
        assert (await desk.ask(redemptionId="R-1", identifier=phone)).refusal == "customer_not_eligible"

    async def test_an_identifier_taken_over_and_given_up_in_one_batch_is_nobodys(self, desk: Desk) -> None:
        await desk.customer(1, ("PHONE", "65"), ("EMAIL", "a@b"))
        phone = {"type": "PHONE", "value": "65"}
        await desk.take_in(
            CUSTOMERS,
            {"customerId": 2, "identifiers": [phone]},
            {"customerId": 2, "identifiers": []},
        )
        assert await desk.rows("select type, customer_id from identifier") == [("EMAIL", 1)]

    async def test_an_update_replaces_what_it_gives_unless_it_is_older(self, desk: Desk) -> None:
        await desk.bought("R-1", 10)
        later, earlier = (NOW - DAY).isoformat(), (NOW - 2 * DAY).isoformat()
        locked = {"customerId": CUSTOMER, "lockedUntil": (NOW + DAY).isoformat()}
        await desk.take_in(CUSTOMERS, {**locked, "updatedAt": later}, {"customerId": CUSTOMER, "status": "active"})
        assert (await desk.ask(redemptionId="R-1", returnId="1")).refusal == "customer_locked"
        unlock = {"customerId": CUSTOMER, "lockedUntil": None}
        await desk.take_in(CUSTOMERS, {**unlock, "updatedAt": earlier})
        assert (await desk.ask(redemptionId="R-1", returnId="2")).refusal == "customer_locked"
        await desk.take_in(CUSTOMERS, {**unlock, "updatedAt": later})
        assert (await desk.ask(redemptionId="R-1", returnId="3")).topic == COMPLETED
        await desk.take_in(CUSTOMERS, {"customerId": CUSTOMER, "status": "fraud"})
        assert (await desk.ask(redemptionId="R-1", returnId="4")).refusal == "customer_not_eligible"
        assert await desk.counts(CUSTOMERS) == {"taken": 5, "booked": 4, "unchanged": 1}


class TestDeadLetters:
    async def test_a_batch_of_nothing_but_unreadable_records(self, desk: Desk) -> None:
        values = [b"{", b"[]", b'{"orderId": "SO-1"}', None, b"\xff"]
        dead = await desk.take_in(RETURNS, *values)
        assert [one.header("dlq.reason") for one in dead] == [
            "not_json",
            "not_an_object",
            "no_org",
            "not_json",
            "not_json",
        ]
        assert [one.value for one in dead] == values
        assert {one.topic for one in dead} == {"order.returned.dlq"}
        assert await desk.counts(RETURNS) == {"taken": 5, "dead": 5}
        lane = desk.process.lanes[RETURNS, 0]
        assert (lane.next_offset, lane.waiting) == (5, 0)

    async def test_bytes_and_headers_go_untouched_with_where_they_came_from(self, desk: Desk) -> None:
        headers = [("x", b"\x00\xff"), ("dlq.reason", b"from an earlier life"), ("x", b"again")]
        partition = desk.send(ISSUES, b'{"orgId": 100458}', number=3, key=b"\xfe", headers=headers)
        [dead] = await desk.process.serve(partition)
        assert (dead.topic, dead.key, dead.value) == ("points.issued.dlq", b"\xfe", b'{"orgId": 100458}')
        own = [header for header in dead.headers if not header[0].startswith("dlq.")]
        assert own == [("x", b"\x00\xff"), ("x", b"again")]
        assert dead.header("dlq.message")
        assert {
            name: dead.header(f"dlq.{name}")
            for name in ("reason", "topic", "partition", "offset", "timestamp", "group")
        } == {
            "reason": "malformed_feed",
            "topic": ISSUES,
            "partition": "3",
            "offset": "0",
            "timestamp": "2025-11-13T02:13:20.000Z",
            "group": "points-reversal",
        }

    async def test_what_kafka_could_not_hand_over_carries_its_place_and_no_value(self, desk: Desk) -> None:
        await desk.bought("R-1", 10)
        partition = desk.send(RETURNS, None, {"redemptionId": "R-1"})
        corrupt = {0: Unreadable(DeadLetterReason.CORRUPT, "its checksum does not fit")}
        dead, completed = await desk.process.serve(partition, unreadable=corrupt)
        assert (dead.header("dlq.reason"), dead.header("dlq.offset"), dead.value) == ("corrupt", "0", None)
        assert completed.topic == COMPLETED

    async def test_one_too_large_carries_no_value(self, desk: Desk) -> None:
        process = await desk.start(max_record_bytes=100)
        partition = desk.send(RETURNS, {"redemptionId": "R" * 100}, headers=[("h", b"1")])
        [dead] = await process.serve(partition)
        assert (dead.header("dlq.reason"), dead.value, dead.header("h")) == ("too_large", None, "1")


async def test_the_outbox_holds_in_order_what_is_not_acknowledged(desk: Desk) -> None:
    await desk.bought("R-1", 10, order_id="SO-1")
    partition = desk.send(RETURNS, {"redemptionId": "R-1", "returnId": "1"}, b"{", {"orderId": "SO-2"}, key=b"k")
    lane = await desk.process.own(partition)
    taken = await desk.process.take(partition)
    statement = """select position, id, aggregatetype, aggregateid, type, topic, record_key, payload, headers
        from outbox where lane_id = $1 order by position"""
    rows = await desk.rows(statement, lane.lane_id)
    published = await desk.process.publish(partition, taken)
    assert [row[0] for row in rows] == [(lane.epoch << 32) + place for place in range(3)]
    assert [str(row[1]) for row in rows] == [record.outcome_id for record in partition.records]
    assert [row[2:6] for row in rows] == [
        ("customer", "42", COMPLETED, COMPLETED),
        ("dead-letter", "", "not_json", "order.returned.dlq"),
        ("customer", "", FAILED, FAILED),
    ]
    assert [row[6:8] for row in rows] == [(one.key, one.value) for one in published]
    assert [tuple(read(row[8])) for row in rows] == [one.headers for one in published]
    assert await desk.outbox() == 3
    await desk.process.clear(partition)
    assert await desk.outbox() == 0


async def test_acknowledged_rows_leave_with_the_next_batch(desk: Desk) -> None:
    await desk.bought("R-1", 10)
    partition = desk.send(RETURNS, *({"redemptionId": "R-1", "returnId": str(number)} for number in range(3)))
    process = desk.process
    first = await process.take(partition, 1)
    await process.publish(partition, first)
    second = await process.take(partition, 1)
    assert await desk.rows("select id::text from outbox") == [(partition.records[1].outcome_id,)]
    await process.publish(partition, second)
    await process.take(partition, 1)
    assert await desk.rows("select id::text from outbox") == [(partition.records[2].outcome_id,)]


async def test_a_lane_counts_each_record_once(desk: Desk) -> None:
    await desk.bought("R-1", 10)
    partition = desk.send(RETURNS, {"redemptionId": "R-1"}, {"redemptionId": "R-1"}, b"{", {"redemptionId": "R-9"})
    await desk.process.serve(partition, batch=3)
    assert await desk.counts(RETURNS) == {"taken": 4, "completed": 1, "failed": 2, "dead": 1}
    statement = "select next_offset, high_offset, last_offset, last_timestamp_ms, owner, epoch from lane"
    last = partition.records[-1]
    assert await desk.rows(statement) == [(4, 4, 3, last.timestamp_ms, "test", 1)]


async def test_a_batch_tells_what_it_came_to(desk: Desk) -> None:
    """For the log and the metrics."""
    await desk.bought("R-1", 10)
    partition = desk.send(RETURNS, {"redemptionId": "R-1"}, b"{", {"redemptionId": "R-9"})
    [taken] = await desk.process.take(partition)
    assert (taken.records, taken.newest_ms, taken.faults) == (3, partition.records[-1].timestamp_ms, [])
    assert [end(settled) for settled in taken.settled] == ["completed", "dead", "failed"]
    assert taken.seconds.keys() == {"decode", "lock", "load", "decide", "write", "commit"}
    assert min(taken.seconds.values()) > 0


async def test_offsets_that_the_log_leaves_out_are_passed_over(desk: Desk) -> None:
    await desk.bought("R-1", 10)
    partition = desk.send(RETURNS, {"redemptionId": "R-8"}, b"left out by the log", {"redemptionId": "R-1"})
    lane = await desk.process.own(partition)
    records = [partition.records[0], partition.records[2]]
    [taken] = await desk.process.pipeline.take(lane, records, 9)
    assert [one.record.offset for one in taken.settled] == [0, 2]
    assert await desk.rows("select next_offset, last_offset, taken from lane") == [(9, 2, 2)]


async def test_orgs_do_not_see_each_other(desk: Desk) -> None:
    other = ORG + 1
    await desk.bought("R-1", 10)
    await desk.put("org", org_id=other)
    await desk.put("program", org_id=other, program_id="main", is_default=True)
    await desk.put("customer", org_id=other, customer_id=CUSTOMER)
    [theirs, ours] = await desk.take_in(
        RETURNS,
        {"orgId": other, "redemptionId": "R-1", "idempotencyKey": "K"},
        {"redemptionId": "R-1", "idempotencyKey": "K"},
    )
    assert (theirs.refusal, theirs.header("ce_orgid")) == ("redemption_not_found", str(other))
    assert ours.topic == COMPLETED
    await desk.take_in(ISSUES, {"orgId": other, "customerId": CUSTOMER, "lotId": "L-R-1", "points": "3"})
    assert await desk.rows("select org_id, points from lot order by 1") == [(ORG, 10_000), (other, 3_000)]


async def test_reversals_of_the_last_days_are_counted_to_the_microsecond(desk: Desk) -> None:
    await desk.rules(max_reversals_count=2, max_reversals_days=1)
    await desk.bought("R-1", 10)
    ask = {"redemptionId": "R-1", "pointsToBeReversed": "1"}
    desk.set_clock(NOW - DAY)
    await desk.take_in(RETURNS, {**ask, "returnId": "1"})
    desk.set_clock(NOW - SECOND)
    published = await desk.take_in(RETURNS, {**ask, "returnId": "2"}, {**ask, "returnId": "3"})
    assert [one.topic for one in published] == [COMPLETED, FAILED]
    assert published[1].refusal == "reversal_limit_exceeded"
    desk.set_clock(NOW)
    published = await desk.take_in(RETURNS, {**ask, "returnId": "4"}, {**ask, "returnId": "5"})
    assert [one.topic for one in published] == [COMPLETED, FAILED]


async def test_ids_of_rows_are_of_uuid_version_7(desk: Desk) -> None:
    await desk.bought("R-1", 10)
    await desk.ask(redemptionId="R-1")
    [(reversal_id, entry_id)] = await desk.rows("select reversal_id, journal_entry_id from reversal")
    assert {reversal_id.version, entry_id.version} == {7}
    assert reversal_id.variant == uuid.RFC_4122
