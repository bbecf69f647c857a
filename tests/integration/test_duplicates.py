"""The contract's table "Duplicates", row by row: in one batch, across batches, in another process, after a restart."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest

from service.headers import sent
from service.store import LaneLost
from tests.integration.desk import (
    COMPLETED,
    CUSTOMER,
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

ASK: Data = {"redemptionId": "R-1", "pointsToBeReversed": "40.5", "idempotencyKey": "K"}
OTHER: Data = {**ASK, "pointsToBeReversed": "40"}

# How the second record of two arrives; returns the outcomes of both.
Arrival = Callable[[Desk, Data, Data], Awaitable[list[Published]]]


async def in_one_batch(desk: Desk, first: Data, second: Data) -> list[Published]:
    return await desk.take_in(RETURNS, first, second)


async def in_the_next_batch(desk: Desk, first: Data, second: Data) -> list[Published]:
    return [*await desk.take_in(RETURNS, first), *await desk.take_in(RETURNS, second)]


async def in_another_process(desk: Desk, first: Data, second: Data) -> list[Published]:
    published = await desk.take_in(RETURNS, first)
    other = await desk.start()
    return [*published, *await other.serve(desk.send(RETURNS, second, number=1))]


async def after_a_restart(desk: Desk, first: Data, second: Data) -> list[Published]:
    published = await desk.take_in(RETURNS, first)
    process = await desk.restart()
    return [*published, *await process.serve(desk.send(RETURNS, second))]


async def after_a_death_before_publishing(desk: Desk, first: Data, second: Data) -> list[Published]:
    await desk.process.take(desk.send(RETURNS, first))
    process = await desk.restart()
    await process.serve(desk.send(RETURNS, second))
    return process.published


ARRIVALS = [in_one_batch, in_the_next_batch, in_another_process, after_a_restart, after_a_death_before_publishing]
arriving = pytest.mark.parametrize("arrive", ARRIVALS, ids=lambda arrive: arrive.__name__)


def carries(refusal: Published, outcome: Published) -> bool:
    """Whether `existing` is the record as it was published, byte for byte."""
    assert refusal.value is not None
    assert outcome.value is not None
    return b'"existing":' + outcome.value in refusal.value


class TestAnotherRecordWithTheSameKey:
    @arriving
    async def test_and_the_same_request_is_902(self, desk: Desk, arrive: Arrival) -> None:
        await desk.bought("R-1", 100)
        spelled_otherwise = {
            "redemption_id": "R-1",
            "points_to_be_reversed": 40.50,
            "idempotency_key": "K",
            "reason": "another one",
            "returnId": "RMA-2",
            "returnedAt": (NOW - DAY).isoformat(),
        }
        completed, duplicate = await arrive(desk, ASK, spelled_otherwise)
        assert (completed.topic, duplicate.refusal) == (COMPLETED, "duplicate_reversal")
        assert duplicate.header("ce_errorcode") == "902"
        assert carries(duplicate, completed)
        assert duplicate.header("ce_id") != completed.header("ce_id")
        assert duplicate.document["sequence"] == 2
        assert await desk.reversed() == {"R-1": 40.5}
        assert await desk.held() == {"L-R-1": 40.5}
        assert await desk.value("select count(*) from reversal") == 1

    @arriving
    async def test_and_another_request_is_a_reused_key(self, desk: Desk, arrive: Arrival) -> None:
        await desk.bought("R-1", 100)
        await desk.bought("R-2", 100, customer_id=7)
        completed, reused = await arrive(desk, ASK, {**ASK, "redemptionId": "R-2"})
        assert (completed.topic, reused.refusal) == (COMPLETED, "idempotency_key_reused")
        assert reused.header("ce_errorcode") == "887"
        assert carries(reused, completed)
        assert (reused.document["customerId"], reused.document["sequence"]) == (7, 1)
        assert await desk.reversed() == {"R-1": 40.5, "R-2": 0}

    @arriving
    async def test_after_a_failure_is_decided_afresh(self, desk: Desk, arrive: Arrival) -> None:
        await desk.bought("R-1", 100)
        failed, completed = await arrive(desk, {**ASK, "pointsToBeReversed": "100.001"}, ASK)
        assert (failed.refusal, completed.topic) == ("insufficient_points", COMPLETED)
        assert await desk.reversed() == {"R-1": 40.5}

    async def test_changes_nothing_in_the_ledger(self, desk: Desk) -> None:
        await desk.bought("R-1", 100)
        await desk.take_in(RETURNS, ASK)
        before = await desk.ledger()
        published = await desk.take_in(RETURNS, ASK, OTHER, ASK)
        assert [one.refusal for one in published] == [
            "duplicate_reversal",
            "idempotency_key_reused",
            "duplicate_reversal",
        ]
        assert await desk.ledger() == before
        kept = [json.loads(row[0]) for row in await desk.rows("select outcome from refusal order by record_offset")]
        assert kept == [{**one.document, "existing": None} for one in published], "kept without the copy"

    async def test_names_one_reversal_of_each_org(self, desk: Desk) -> None:
        await desk.bought("R-1", 100)
        await desk.take_in(RETURNS, ASK)
        await desk.put("org", org_id=7)
        await desk.put("program", org_id=7, program_id="main")
        [theirs] = await desk.take_in(RETURNS, {**ASK, "orgId": 7})
        assert theirs.refusal == "redemption_not_found"

    @pytest.mark.parametrize(
        "change",
        [
            {"pointsToBeReversed": "40.501"},
            {"pointsToBeReversed": None},
            {"pointsToBeReversed": None, "quantity": 1},
            {"orderId": "SO-1"},
            {"redemptionId": None, "orderId": "SO-1"},
            {"programId": "main"},
            {"identifier": {"type": "PHONE", "value": "65"}},
            {"identifier": {"type": "EXTERNAL_ID", "value": "+65"}},
        ],
        ids=str,
    )
    async def test_is_another_request_when_what_it_asks_differs(self, desk: Desk, change: Data) -> None:
        await desk.bought("R-1", 100, order_id="SO-1")
        completed, reused = await desk.take_in(RETURNS, ASK, {**ASK, **change})
        assert (completed.topic, reused.refusal) == (COMPLETED, "idempotency_key_reused")

    async def test_a_phone_spelled_otherwise_is_the_same_request(self, desk: Desk) -> None:
        await desk.bought("R-1", 100)
        await desk.put("identifier", org_id=ORG, type="PHONE", lookup="6591", value="+65 91", customer_id=CUSTOMER)
        asks = [{**ASK, "identifier": {"type": "PHONE", "value": value}} for value in ("+65 91", "(65) 9-1")]
        completed, duplicate = await desk.take_in(RETURNS, *asks)
        assert (completed.topic, duplicate.refusal) == (COMPLETED, "duplicate_reversal")

    async def test_existing_is_kept_for_good_and_as_it_was_published(self, desk: Desk) -> None:
        await desk.bought("R-1", 100)
        completed = await desk.ask(**ASK, reason='“größer” \u0394 😀 \\ " </script>')
        desk.set_clock(NOW + 4000 * DAY)
        await desk.pool.execute("update customer set status = 'fraud'")
        await desk.pool.execute("update program set live = false")
        duplicate = await desk.ask(**ASK)
        assert duplicate.refusal == "duplicate_reversal"
        assert carries(duplicate, completed)

    async def test_derived_keys_make_duplicates_too(self, desk: Desk) -> None:
        await desk.bought("R-1", 100, order_id="SO-1")
        by_return = {"redemptionId": "R-1", "returnId": "RMA 1", "pointsToBeReversed": "1"}
        first, second = await desk.take_in(RETURNS, by_return, {**by_return, "reason": "again"})
        assert (first.document["idempotencyKey"], second.refusal) == ("return:RMA%201/R-1", "duplicate_reversal")
        event = [("ce_specversion", b"1.0"), ("ce_id", b"e 1"), ("ce_source", b"/shop"), ("ce_type", b"t")]
        ask = {"redemptionId": "R-1", "pointsToBeReversed": "1"}
        partition = desk.send(RETURNS, ask, ask, headers=event)
        first, second = await desk.process.serve(partition)
        assert (first.document["idempotencyKey"], second.refusal) == ("event:%2Fshop#e%201", "duplicate_reversal")
        first, second = await desk.take_in(RETURNS, ask, ask)
        assert [one.topic for one in (first, second)] == [COMPLETED, COMPLETED]
        record = desk.partition(RETURNS).records[-1]
        assert second.document["idempotencyKey"] == f"record:{record.place}"


class TestTheSameKafkaRecordAgain:
    async def test_after_a_death_before_publishing_is_published_by_the_next_owner(self, desk: Desk) -> None:
        await desk.bought("R-1", 100)
        partition = desk.send(RETURNS, ASK, {"redemptionId": "R-9"}, b"{")
        [taken] = await desk.process.take(partition)
        process = await desk.restart()
        lane = await process.own(partition)
        assert [(one.topic, one.key, one.value, list(one.headers)) for one in process.published] == [
            (one.topic, one.key, one.payload, sent(one.headers)) for one in taken.outbox
        ]
        assert (lane.next_offset, await desk.outbox()) == (3, 0)

    async def test_in_an_outbox_of_many_pages_is_published_in_order(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.lane.PAGE", 2)
        await desk.bought("R-1", 100)
        asks = [{**ASK, "pointsToBeReversed": "1", "idempotencyKey": f"K{number}"} for number in range(5)]
        partition = desk.send(RETURNS, *asks)
        await desk.process.take(partition)
        process = await desk.restart()
        await process.own(partition)
        keys = [one.document["idempotencyKey"] for one in process.published]
        assert keys == ["K0", "K1", "K2", "K3", "K4"]

    async def test_after_a_death_before_the_acknowledgement_comes_again_byte_for_byte(self, desk: Desk) -> None:
        await desk.bought("R-1", 100)
        partition = desk.send(RETURNS, ASK, OTHER)
        process = desk.process
        published = await process.publish(partition, await process.take(partition))
        other = await desk.start()
        await other.own(partition)
        assert other.published == published
        await other.own(partition)
        assert other.published == published, "what is acknowledged is not published again"

    async def test_after_publishing_failed_comes_from_the_outbox(self, desk: Desk) -> None:
        await desk.bought("R-1", 100)
        partition = desk.send(RETURNS, ASK)
        process = desk.process
        await process.own(partition)
        process.outlet.fault = TimeoutError()
        with pytest.raises(TimeoutError):
            await process.serve(partition)
        with pytest.raises(TimeoutError):
            await process.own(partition)
        process.outlet.fault = None
        await process.own(partition)
        assert [one.topic for one in process.published] == [COMPLETED]
        assert await desk.outbox() == 0

    async def test_from_an_older_offset_has_no_second_effect_and_is_not_published_again(self, desk: Desk) -> None:
        await desk.bought("R-1", 100)
        values: list[Data | bytes] = [ASK, ASK, OTHER, {"redemptionId": "R-9"}, {**ASK, "idempotencyKey": "K2"}]
        published = await desk.take_in(RETURNS, *values)
        assert len(published) == 5
        before = (await desk.ledger(), await desk.sequence())
        await desk.reset(RETURNS, 0)
        desk.set_clock(NOW + DAY)
        process = await desk.restart()
        await process.take(desk.partition(RETURNS), 2)
        process = await desk.restart()  # on the way, too
        assert await process.serve(desk.partition(RETURNS)) == []
        assert (await desk.ledger(), await desk.sequence()) == before
        assert await desk.counts(RETURNS) == {"taken": 10, "completed": 2, "failed": 3, "repeated": 5}
        assert await desk.rows("select next_offset, high_offset from lane") == [(5, 5)]

    async def test_new_records_are_told_from_repeated_ones(self, desk: Desk) -> None:
        await desk.bought("R-1", 100)
        await desk.take_in(RETURNS, ASK, OTHER)
        await desk.reset(RETURNS, 1)
        published = await desk.take_in(RETURNS, {**ASK, "idempotencyKey": "K2"}, ASK)
        assert [one.topic for one in published] == [COMPLETED, FAILED]
        assert await desk.counts(RETURNS) == {"taken": 5, "completed": 2, "failed": 2, "repeated": 1}

    async def test_what_was_never_taken_below_the_high_offset_is_decided(self, desk: Desk) -> None:
        """After a reset to the end and back, what was skipped has its first effect."""
        await desk.bought("R-1", 100)
        partition = desk.send(RETURNS, ASK, {**ASK, "idempotencyKey": "K2"})
        await desk.process.own(partition)
        await desk.pool.execute("update lane set high_offset = 1")
        await desk.reset(RETURNS, 1)
        assert len(await desk.process.serve(partition)) == 1
        await desk.reset(RETURNS, 0)
        [outcome] = await desk.process.serve(partition)
        assert (outcome.topic, outcome.document["idempotencyKey"]) == (COMPLETED, "K")
        assert await desk.counts(RETURNS) == {"taken": 3, "completed": 2, "repeated": 1}

    async def test_a_recreated_topics_records_are_others_though_their_offsets_are_the_same(self, desk: Desk) -> None:
        await desk.bought("R-1", 100)
        await desk.take_in(RETURNS, ASK)
        await desk.reset(RETURNS, 0)
        partition = desk.partition(RETURNS)
        partition.records.clear()
        partition.append(b"to be overwritten")
        old = partition.append({"orgId": ORG, **OTHER, "idempotencyKey": "K2"})
        partition.records[:] = [type(old)(RETURNS, 0, 0, old.timestamp_ms, None, old.value)]
        [outcome] = await desk.process.serve(partition)
        assert outcome.topic == COMPLETED
        assert await desk.counts(RETURNS) == {"taken": 2, "completed": 2}

    async def test_feeds_again_change_nothing(self, desk: Desk) -> None:
        await desk.customer()
        await desk.take_in(ISSUES, {"customerId": CUSTOMER, "lotId": "L-1", "points": "9"})
        await desk.take_in(REDEMPTIONS, {"customerId": CUSTOMER, "redemptionId": "R-1", "points": "4"})
        before = await desk.ledger()
        desk.set_clock(NOW + DAY)
        for topic in (ISSUES, REDEMPTIONS):
            await desk.reset(topic, 0)
            assert await desk.process.serve(desk.partition(topic)) == []
            assert await desk.counts(topic) == {"taken": 2, "booked": 1, "unchanged": 1}
        assert await desk.ledger() == before

    async def test_while_it_waits_does_not_wait_twice(self, desk: Desk) -> None:
        await desk.rules(park_unknown_seconds=60)
        await desk.customer()
        await desk.take_in(RETURNS, {"redemptionId": "R-1", "idempotencyKey": "K"})
        await desk.take_in(REDEMPTIONS, {"customerId": CUSTOMER, "redemptionId": "R-1", "points": "4"})
        desk.set_clock(NOW + SECOND)
        for topic in (RETURNS, REDEMPTIONS):
            await desk.reset(topic, 0)
            assert await desk.process.serve(desk.partition(topic)) == []
        assert await desk.waiting() == ["order.returned@0", "points.redeemed@0"]
        assert await desk.counts(RETURNS) == {"taken": 2, "repeated": 1}
        [outcome] = await desk.take_in(ISSUES, {"customerId": CUSTOMER, "lotId": "L-1", "points": "9"})
        assert outcome.topic == COMPLETED
        await desk.reset(RETURNS, 0)
        assert await desk.process.serve(desk.partition(RETURNS)) == []
        assert await desk.counts(RETURNS) == {"taken": 3, "completed": 1, "repeated": 2}
        assert await desk.counts(REDEMPTIONS) == {"taken": 2, "booked": 1, "repeated": 1}

    async def test_in_two_processes_only_the_owner_decides_it(self, desk: Desk) -> None:
        await desk.bought("R-1", 100)
        partition = desk.send(RETURNS, ASK)
        stale, owner = desk.process, await desk.start()
        await stale.own(partition)
        await owner.own(partition)
        with pytest.raises(LaneLost, match="another owner since epoch 1"):
            await stale.take(partition)
        assert [one.topic for one in await owner.serve(partition)] == [COMPLETED]
        with pytest.raises(LaneLost):
            await stale.take(partition)
        with pytest.raises(LaneLost):
            await stale.serve_due(partition)
        assert await desk.counts(RETURNS) == {"taken": 1, "completed": 1}

    async def test_a_stale_owner_does_not_clear_the_outbox_of_the_next(self, desk: Desk) -> None:
        await desk.bought("R-1", 100)
        partition = desk.send(RETURNS, ASK)
        stale, owner = desk.process, await desk.start()
        await stale.publish(partition, await stale.take(partition))
        await owner.own(partition)
        partition = desk.send(RETURNS, OTHER)
        await owner.take(partition)
        lane = stale.lanes[RETURNS, 0]
        lane.acknowledged = 2**62
        await stale.clear(partition)
        assert await desk.outbox() == 1

    async def test_a_lane_that_was_reset_under_its_owner_is_left(self, desk: Desk) -> None:
        partition = desk.send(RETURNS, ASK, OTHER)
        await desk.process.take(partition, 1)
        await desk.pool.execute("update lane set next_offset = 0")
        with pytest.raises(LaneLost, match="stands at 0, not 1"):
            await desk.process.take(partition)
