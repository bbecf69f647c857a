"""What waits: returns for their redemption, feed records for what they need (contract, "Feeds" and "Redelivery")."""

from __future__ import annotations

from typing import Any

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
    Data,
    Desk,
    Published,
)

MINUTE = 60 * SECOND


def issue(lot_id: str, points: float, **fields: Any) -> Data:
    return {"customerId": CUSTOMER, "lotId": lot_id, "points": str(points), **fields}


def redeem(redemption_id: str, points: float, **fields: Any) -> Data:
    return {"customerId": CUSTOMER, "redemptionId": redemption_id, "points": str(points), **fields}


def keys(published: list[Published]) -> list[str]:
    """The idempotency keys of outcomes, in order."""
    return [str(one.document["idempotencyKey"]) for one in published]


class TestFeedRecords:
    async def test_a_redemption_waits_for_its_points(self, desk: Desk) -> None:
        assert await desk.take_in(REDEMPTIONS, redeem("R-1", 30)) == []
        assert await desk.waiting() == ["points.redeemed@0"]
        assert await desk.sequence() is None, "nothing of a waiting record is applied"
        assert await desk.take_in(ISSUES, issue("L-1", 20)) == []
        assert await desk.waiting() == ["points.redeemed@0"]
        assert await desk.take_in(ISSUES, issue("L-2", 20)) == []
        assert await desk.waiting() == []
        assert await desk.held() == {"L-1": 0, "L-2": 10}
        assert await desk.counts(REDEMPTIONS) == {"taken": 1, "booked": 1}
        assert await desk.counts(ISSUES) == {"taken": 2, "booked": 2}

    async def test_the_oldest_is_tried_first_and_the_others_again_after_it(self, desk: Desk) -> None:
        await desk.customer()
        for redemption_id, points in (("R-big", 90), ("R-1", 30), ("R-2", 30), ("R-3", 30)):
            await desk.take_in(REDEMPTIONS, redeem(redemption_id, points))
            desk.set_clock((desk.clock or NOW) + SECOND)
        await desk.take_in(ISSUES, issue("L-1", 60))
        assert await desk.reversed() == {"R-1": 0, "R-2": 0}
        assert await desk.waiting() == ["points.redeemed@0", "points.redeemed@3"]
        await desk.take_in(ISSUES, issue("L-2", 100))
        assert await desk.reversed() == {"R-1": 0, "R-2": 0, "R-big": 0}
        assert await desk.held() == {"L-1": 0, "L-2": 10}

    async def test_a_reversal_sets_them_free_too(self, desk: Desk) -> None:
        await desk.bought("R-1", 50)
        await desk.take_in(REDEMPTIONS, redeem("R-2", 40))
        assert await desk.waiting() == ["points.redeemed@0"]
        outcome = await desk.ask(redemptionId="R-1")
        assert outcome.document["balance"] == {"available": "50"}
        assert await desk.waiting() == []
        assert await desk.held() == {"L-R-1": 10}
        assert await desk.counts(REDEMPTIONS) == {"taken": 1, "booked": 1}

    async def test_a_chain_frees_itself_in_one_transaction(self, desk: Desk) -> None:
        """An issue books a redemption, that frees a return, its points book the next redemption, and so on."""
        await desk.rules(park_unknown_seconds=60)
        await desk.customer()
        await desk.take_in(
            RETURNS,
            {"redemptionId": "R-1", "idempotencyKey": "K1"},
            {"redemptionId": "R-2", "idempotencyKey": "K2"},
        )
        await desk.take_in(REDEMPTIONS, redeem("R-1", 10), redeem("R-2", 10), redeem("R-3", 10))
        published = await desk.take_in(ISSUES, issue("L-1", 10))
        assert keys(published) == ["K1", "K2"]
        assert [one.topic for one in published] == [COMPLETED, COMPLETED]
        assert await desk.waiting() == []
        assert await desk.held() == {"L-1": 0}
        assert await desk.reversed() == {"R-1": 10, "R-2": 10, "R-3": 0}
        assert await desk.counts(RETURNS) == {"taken": 2, "completed": 2}
        assert await desk.counts(REDEMPTIONS) == {"taken": 3, "booked": 3}

    async def test_named_lots_are_waited_for_each(self, desk: Desk) -> None:
        await desk.customer()
        lots = [{"lotId": "L-1", "points": "10"}, {"lotId": "L-2", "points": "5"}]
        await desk.take_in(REDEMPTIONS, redeem("R-1", 15, lots=lots))
        await desk.take_in(ISSUES, issue("L-2", 10))
        assert await desk.waiting() == ["points.redeemed@0"]
        await desk.take_in(ISSUES, issue("L-1", 10))
        assert await desk.held() == {"L-1": 0, "L-2": 5}

    async def test_at_the_deadline_they_go_to_the_dead_letters_and_leave_no_trace(self, desk: Desk) -> None:
        partition = desk.send(REDEMPTIONS, redeem("R-1", 30), headers=[("h", b"1")], key=b"k")
        await desk.process.serve(partition)
        await desk.take_in(ISSUES, issue("L-1", 20, programId="unheard-of"), {**issue("L-2", 20), "orgId": 7})
        desk.set_clock(NOW + 5 * MINUTE - SECOND)
        assert await desk.process.serve_due(partition) == []
        desk.set_clock(NOW + 5 * MINUTE)
        [dead] = await desk.process.serve_due(partition)
        assert (dead.topic, dead.key, dead.value) == ("points.redeemed.dlq", b"k", partition.records[0].value)
        assert (dead.header("dlq.reason"), dead.header("h")) == ("not_bookable", "1")
        assert "30 points" in (dead.header("dlq.message") or "")
        both = await desk.process.serve_due(desk.partition(ISSUES))
        assert [one.header("dlq.reason") for one in both] == ["not_bookable", "not_bookable"]
        assert await desk.waiting() == []
        assert set(map(len, (await desk.ledger()).values())) == {0}, "no customer, no lot, nothing"
        assert await desk.counts(REDEMPTIONS) == {"taken": 1, "dead": 1}

    async def test_what_became_bookable_otherwise_is_booked_at_the_deadline(self, desk: Desk) -> None:
        await desk.take_in(ISSUES, issue("L-1", 20, programId="gold"), {**issue("L-2", 20), "orgId": 7})
        await desk.take_in(CUSTOMERS, {"customerId": 8, "orgId": 7})
        for org_id in (ORG, 7):
            await desk.pool.execute("insert into org values ($1) on conflict do nothing", org_id)
            await desk.put("program", org_id=org_id, program_id="gold")
        desk.set_clock(NOW + 5 * MINUTE)
        assert await desk.process.serve_due(desk.partition(ISSUES)) == []
        assert await desk.process.serve_due(desk.partition(CUSTOMERS)) == []
        assert await desk.rows("select org_id, lot_id, program_id from lot order by 1") == [
            (7, "L-2", "gold"),
            (ORG, "L-1", "gold"),
        ]
        assert await desk.rows("select org_id, customer_id from customer order by 1, 2") == [
            (7, 8),
            (7, CUSTOMER),
            (ORG, CUSTOMER),
        ]

    async def test_without_a_wait_they_go_there_at_once(self, desk: Desk) -> None:
        process = await desk.start(feed_wait_seconds=0)
        [dead] = await process.serve(desk.send(REDEMPTIONS, redeem("R-1", 30)))
        assert dead.header("dlq.reason") == "not_bookable"
        assert (await desk.waiting(), await desk.sequence()) == ([], None)

    async def test_later_records_overtake_one_that_waits(self, desk: Desk) -> None:
        await desk.customer()
        await desk.lot("L-1", 20)
        assert await desk.take_in(REDEMPTIONS, redeem("R-1", 30), redeem("R-2", 10)) == []
        assert (await desk.reversed(), await desk.waiting()) == ({"R-2": 0}, ["points.redeemed@0"])
        [dead] = await desk.take_in(REDEMPTIONS, redeem("R-1", 5))
        assert (dead.header("dlq.reason"), dead.header("dlq.offset")) == ("not_bookable", "0")
        assert (await desk.reversed(), await desk.waiting()) == ({"R-1": 0, "R-2": 0}, [])

    async def test_an_owner_knows_of_its_own_waiting_records_whatever_it_settles_for_others(self, desk: Desk) -> None:
        """Else the deadline of its own would never be looked at."""
        await desk.rules(park_unknown_seconds=60)
        await desk.customer()
        await desk.lot("L-1", 20)
        await desk.take_in(RETURNS, *({"redemptionId": "R-1", "returnId": str(number)} for number in range(3)))
        await desk.take_in(REDEMPTIONS, redeem("R-9", 99))
        assert desk.process.lanes[REDEMPTIONS, 0].waiting == 1
        await desk.take_in(REDEMPTIONS, redeem("R-1", 10))
        assert await desk.waiting() == ["points.redeemed@0"]
        assert desk.process.lanes[REDEMPTIONS, 0].waiting == 1
        assert (await desk.process.own(desk.partition(REDEMPTIONS))).waiting == 1
        desk.set_clock(NOW + 5 * MINUTE)
        assert len(await desk.process.serve_due(desk.partition(REDEMPTIONS))) == 1
        assert desk.process.lanes[REDEMPTIONS, 0].waiting == 0

    async def test_a_batch_that_frees_more_than_one_transaction_takes_up_is_divided(self, desk: Desk) -> None:
        """What is left out would wait for its deadline, though its points are there."""
        process = await desk.start(release_records=2)
        customers = range(1, 7)
        redemptions = [redeem(f"R-{number}", 5, customerId=number) for number in customers]
        await process.serve(desk.send(REDEMPTIONS, *redemptions))
        issues = desk.send(ISSUES, *(issue(f"L-{number}", 5, customerId=number) for number in customers))
        await process.serve(issues)
        assert await desk.waiting() == []
        assert set((await desk.held()).values()) == {0}
        assert await desk.counts(ISSUES) == {"taken": 6, "booked": 6}
        assert await desk.counts(REDEMPTIONS) == {"taken": 6, "booked": 6}

    async def test_one_that_cannot_be_read_any_more_goes_to_the_dead_letters(self, desk: Desk) -> None:
        await desk.take_in(REDEMPTIONS, redeem("R-1", 30))
        await desk.pool.execute("update waiting set value = '[]'")
        desk.set_clock(NOW + 5 * MINUTE)
        [dead] = await desk.process.serve_due(desk.partition(REDEMPTIONS))
        assert (dead.header("dlq.reason"), dead.value) == ("not_an_object", b"[]")
        assert await desk.waiting() == []
        assert await desk.counts(REDEMPTIONS) == {"taken": 1, "dead": 1}

    async def test_they_survive_a_restart(self, desk: Desk) -> None:
        await desk.take_in(REDEMPTIONS, redeem("R-1", 30))
        process = await desk.restart()
        lane = await process.own(desk.partition(REDEMPTIONS))
        assert (lane.waiting, lane.next_offset) == (1, 1)
        desk.set_clock(NOW + 5 * MINUTE)
        [dead] = await process.serve_due(desk.partition(REDEMPTIONS))
        assert dead.header("dlq.reason") == "not_bookable"


class TestParkedReturns:
    async def test_an_unknown_redemption_is_refused_at_once_by_default(self, desk: Desk) -> None:
        assert (await desk.ask(redemptionId="R-1")).refusal == "redemption_not_found"
        assert await desk.waiting() == []

    async def test_a_booking_on_another_lane_releases_it(self, desk: Desk) -> None:
        await desk.rules(park_unknown_seconds=60)
        await desk.customer()
        await desk.lot("L-1", 30)
        returns = desk.send(RETURNS, {"redemptionId": "R-1", "idempotencyKey": "K"}, number=2, key=b"k")
        assert await desk.process.serve(returns) == []
        assert await desk.waiting() == ["order.returned@0"]
        desk.set_clock(NOW + SECOND)
        [outcome] = await desk.take_in(REDEMPTIONS, redeem("R-1", 10))
        assert outcome.topic == COMPLETED
        assert outcome.header("ce_id") == str(returns.records[0].outcome_id)
        assert outcome.document["createdAt"] == "2026-11-20T01:30:03.123456Z"
        assert outcome.document["balance"] == {"available": "30"}
        assert await desk.rows(
            "select l.topic, l.partition, r.record_offset from reversal r join lane l using (lane_id)"
        ) == [(RETURNS, 2, 0)]
        assert await desk.counts(RETURNS, 2) == {"taken": 1, "completed": 1}
        assert await desk.counts(REDEMPTIONS) == {"taken": 1, "booked": 1}

    async def test_it_may_name_the_order_alone(self, desk: Desk) -> None:
        await desk.rules(park_unknown_seconds=60)
        await desk.customer()
        await desk.lot("L-1", 30)
        await desk.take_in(RETURNS, {"orderId": "SO-1", "idempotencyKey": "K"})
        assert await desk.take_in(REDEMPTIONS, redeem("R-0", 1, orderId="SO-0")) == []
        [outcome] = await desk.take_in(REDEMPTIONS, redeem("R-1", 10, orderId="SO-1"))
        assert (outcome.topic, outcome.document["redemptionId"]) == (COMPLETED, "R-1")

    async def test_all_rules_judge_it_when_it_is_released(self, desk: Desk) -> None:
        await desk.rules(park_unknown_seconds=60)
        await desk.customer(CUSTOMER, status="fraud")
        await desk.lot("L-1", 30)
        await desk.customer(7)
        named = {"type": "ID", "value": "7"}
        await desk.take_in(
            RETURNS, {"redemptionId": "R-1"}, {"redemptionId": "R-2", "orderId": "SO-7", "identifier": named}
        )
        published = await desk.take_in(REDEMPTIONS, redeem("R-1", 10), redeem("R-2", 10, orderId="SO-2"))
        assert [one.refusal for one in published] == ["customer_not_eligible", "redemption_not_found"]
        assert [one.document["customerId"] for one in published] == [CUSTOMER, 7]
        assert await desk.sequence(7) == 1
        assert await desk.waiting() == []

    async def test_they_are_released_oldest_first_each_with_what_it_frees(self, desk: Desk) -> None:
        await desk.rules(park_unknown_seconds=60)
        await desk.customer()
        await desk.lot("L-1", 10)
        ask = {"pointsToBeReversed": "4"}
        for key, field, value, number in (
            ("K1", "orderId", "SO-1", 1),
            ("K2", "redemptionId", "R-1", 0),
            ("K3", "orderId", "SO-1", 0),
            ("K4", "redemptionId", "R-1", 1),
        ):
            await desk.take_in(RETURNS, {**ask, field: value, "idempotencyKey": key}, number=number)
            desk.set_clock((desk.clock or NOW) + SECOND)
        published = await desk.take_in(REDEMPTIONS, redeem("R-1", 10, orderId="SO-1"))
        assert keys(published) == ["K1", "K2", "K3", "K4"]
        assert [one.topic for one in published] == [COMPLETED, COMPLETED, FAILED, FAILED]
        assert [one.document["sequence"] for one in published] == [1, 2, 3, 4]

    async def test_at_the_deadline_it_is_decided(self, desk: Desk) -> None:
        await desk.rules(park_unknown_seconds=60)
        await desk.customer(CUSTOMER, ("PHONE", "65"))
        identifier = {"type": "PHONE", "value": "65"}
        partition = desk.send(RETURNS, {"redemptionId": "R-1", "identifier": identifier})
        await desk.process.serve(partition)
        desk.set_clock(NOW + MINUTE - SECOND)
        assert await desk.process.serve_due(partition) == []
        desk.set_clock(NOW + MINUTE)
        [outcome] = await desk.process.serve_due(partition)
        assert outcome.refusal == "redemption_not_found"
        assert (outcome.document["customerId"], outcome.document["sequence"]) == (CUSTOMER, 1)
        assert outcome.header("ce_time") == "2026-11-20T01:31:02.123456Z"
        assert await desk.counts(RETURNS) == {"taken": 1, "failed": 1}

    async def test_the_program_given_says_how_long(self, desk: Desk) -> None:
        await desk.rules(park_unknown_seconds=60)
        await desk.put("program", org_id=ORG, program_id="hasty")
        await desk.put("program", org_id=ORG, program_id="patient", park_unknown_seconds=86_400)
        partition = desk.send(
            RETURNS,
            {"redemptionId": "R-1"},
            {"redemptionId": "R-1", "programId": "hasty"},
            {"redemptionId": "R-1", "programId": "patient"},
        )
        [refused] = await desk.process.serve(partition)
        assert refused.document["programId"] == "hasty"
        statement = "select record_offset, deadline from waiting order by 1"
        assert await desk.rows(statement) == [(0, NOW + MINUTE), (2, NOW + DAY)]

    async def test_a_redemption_that_load_brought_is_noticed_by_the_lanes_owner(self, desk: Desk) -> None:
        await desk.rules(park_unknown_seconds=60)
        partition = desk.send(RETURNS, {"redemptionId": "R-1"}, {"orderId": "SO-2"}, {"orderId": "SO-3"})
        await desk.process.serve(partition)
        await desk.bought("R-1", 10)
        await desk.bought("R-2", 10, order_id="SO-2")
        published = await desk.process.serve_due(partition)
        assert [one.document["redemptionId"] for one in published] == ["R-1", "R-2"]
        assert await desk.waiting() == ["order.returned@2"]
        assert desk.process.lanes[RETURNS, 0].waiting == 1

    async def test_it_survives_a_restart_and_the_death_of_other_processes(self, desk: Desk) -> None:
        await desk.rules(park_unknown_seconds=60)
        await desk.customer()
        await desk.lot("L-1", 30)
        other = await desk.start()
        await other.serve(desk.send(RETURNS, {"redemptionId": "R-1", "returnId": "1"}, number=1))
        other.kill()
        desk.set_clock(NOW + SECOND)
        await desk.take_in(RETURNS, {"redemptionId": "R-1", "returnId": "2"})
        process = await desk.restart()
        published = await process.serve(desk.send(REDEMPTIONS, redeem("R-1", 10)))
        assert [one.topic for one in published] == [COMPLETED, FAILED]
        assert await desk.counts(RETURNS, 1) == {"taken": 1, "completed": 1}
        assert await desk.counts(RETURNS, 0) == {"taken": 1, "failed": 1}

    async def test_one_transaction_releases_a_bounded_number(self, desk: Desk) -> None:
        process = await desk.start(release_records=3)
        await desk.rules(park_unknown_seconds=60)
        await desk.customer()
        await desk.lot("L-1", 30)
        asks = [{"redemptionId": "R-1", "pointsToBeReversed": "1", "idempotencyKey": f"K{n}"} for n in range(8)]
        returns = desk.send(RETURNS, *asks)
        await process.serve(returns)
        assert keys(await process.serve(desk.send(REDEMPTIONS, redeem("R-1", 10)))) == ["K0", "K1", "K2"]
        assert keys(await process.serve_due(returns)) == ["K3", "K4", "K5"]
        assert keys(await process.serve_due(returns)) == ["K6", "K7"]
        assert await process.serve_due(returns) == []
        assert await desk.reversed() == {"R-1": 8}
        assert await desk.counts(RETURNS) == {"taken": 8, "completed": 8}

    async def test_a_key_given_twice_while_parked_completes_once(self, desk: Desk) -> None:
        await desk.rules(park_unknown_seconds=60)
        await desk.customer()
        await desk.lot("L-1", 30)
        ask = {"redemptionId": "R-1", "idempotencyKey": "K"}
        await desk.take_in(RETURNS, ask, {**ask, "reason": "again"})
        completed, duplicate = await desk.take_in(REDEMPTIONS, redeem("R-1", 10))
        assert (completed.topic, duplicate.refusal) == (COMPLETED, "duplicate_reversal")
        assert duplicate.document["existing"] == completed.document
