"""A record that makes its batch fail: found, settled by itself, and the others decided as if it had not been there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from service import booking, reversal
from service.outcomes import Completed
from tests.integration.desk import (
    COMPLETED,
    CUSTOMER,
    CUSTOMERS,
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


class FaultError(Exception):
    """What the tests make the service's own code raise."""


def raise_for(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, picks: Callable[[Any], bool]) -> list[Any]:
    """Makes a function of the core raise for the messages that are picked; returns those it raised for."""
    real, raised = getattr(module, name), []

    def raising(message: Any, *rest: Any) -> Any:
        if picks(message):
            raised.append(message)
            raise FaultError(f"for {message}")
        return real(message, *rest)

    monkeypatch.setattr(module, name, raising)
    return raised


def named(published: list[Published]) -> list[str]:
    """What became of each record: completed, the name of its error, or the reason of its dead letter."""
    return [
        "completed" if one.topic == COMPLETED else one.refusal if one.topic == FAILED else str(one.header("dlq.reason"))
        for one in published
    ]


async def refuse(desk: Desk, table: str, condition: str) -> None:
    """Makes the database refuse rows, as a bound does that the entrance forgot."""
    await desk.pool.execute(f"alter table {table} add constraint refused_by_the_test check ({condition}) not valid")


def asks(count: int) -> list[Data]:
    return [
        {"redemptionId": "R-1", "pointsToBeReversed": "1", "idempotencyKey": f"K{number}"} for number in range(count)
    ]


class TestDecisionsThatRaise:
    async def test_a_return_becomes_804_and_a_dead_letter(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        await desk.bought("R-1", 10)
        raised = raise_for(monkeypatch, reversal, "decide", lambda request: request.key == "K1")
        partition = desk.send(RETURNS, *asks(3), key=b"k", headers=[("h", b"1")])
        published = await desk.process.serve(partition)
        assert len(raised) == 2, "it is tried again once"
        assert named(published) == ["completed", "reversal_failed", "decision_raised", "completed"]
        _, refused, dead, last = published
        record = partition.records[1]
        [error] = refused.document["errors"]
        assert (error["code"], error["retryable"]) == (804, True)
        assert refused.header("ce_id") == str(record.outcome_id)
        assert [one.document["sequence"] for one in (refused, last)] == [2, 3]
        assert (dead.topic, dead.key, dead.value) == ("order.returned.dlq", b"k", record.value)
        assert dead.header("h") == "1"
        assert await desk.counts(RETURNS) == {"taken": 3, "completed": 2, "failed": 1}
        assert await desk.rows("select code, name, record_offset from refusal") == [(804, "reversal_failed", 1)]

    async def test_its_key_can_be_used_again(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        await desk.bought("R-1", 10)
        with monkeypatch.context() as patch:
            raise_for(patch, reversal, "decide", lambda _request: True)
            await desk.take_in(RETURNS, *asks(1))
        assert named(await desk.take_in(RETURNS, *asks(1))) == ["completed"]

    async def test_a_fault_that_passes_is_not_noticed(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        await desk.bought("R-1", 10)
        tries = iter([True, False])
        raise_for(monkeypatch, reversal, "decide", lambda _request: next(tries))
        assert named(await desk.take_in(RETURNS, *asks(1))) == ["completed"]

    async def test_a_feed_record_becomes_a_dead_letter(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        raise_for(monkeypatch, booking, "book", lambda feed: feed.lot_id == "L-1")
        lots = [{"customerId": number, "lotId": f"L-{number}", "points": "1"} for number in (1, 2)]
        assert named(await desk.take_in(ISSUES, *lots)) == ["decision_raised"]
        assert await desk.rows("select customer_id from customer") == [(2,)]
        assert await desk.counts(ISSUES) == {"taken": 2, "booked": 1, "dead": 1}

    async def test_a_parked_return_does_not_touch_the_booking_that_releases_it(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await desk.rules(park_unknown_seconds=60)
        await desk.customer()
        await desk.lot("L-1", 10)
        await desk.take_in(RETURNS, *asks(2))
        raise_for(monkeypatch, reversal, "decide", lambda request: request.key == "K0")
        published = await desk.take_in(REDEMPTIONS, {"customerId": CUSTOMER, "redemptionId": "R-1", "points": "9"})
        assert named(published) == ["reversal_failed", "decision_raised", "completed"]
        assert await desk.counts(RETURNS) == {"taken": 2, "completed": 1, "failed": 1}

    async def test_what_a_contradiction_in_the_ledger_touches_alone_is_804(self, desk: Desk) -> None:
        await desk.bought("R-1", 10)
        await desk.bought("R-2", 10, customer_id=7)
        await desk.pool.execute("update lot set remaining = points where lot_id = 'L-R-2'")
        published = await desk.take_in(RETURNS, {"redemptionId": "R-2"}, {"redemptionId": "R-1"})
        assert named(published) == ["reversal_failed", "decision_raised", "completed"]
        assert published[0].document["customerId"] == 7
        await desk.pool.execute("update lot set remaining = 0 where lot_id = 'L-R-2'")


class TestRowsThatTheDatabaseRefuses:
    @pytest.mark.parametrize("place", [0, 3, 6])
    async def test_the_one_is_found_and_the_others_are_decided(self, desk: Desk, place: int) -> None:
        await desk.bought("R-1", 10)
        await refuse(desk, "reversal", f"idempotency_key <> 'K{place}'")
        published = await desk.take_in(RETURNS, *asks(7))
        expected = ["completed"] * 6
        expected[place:place] = ["reversal_failed", "decision_raised"]
        assert named(published) == expected
        [refused] = [one for one in published if one.topic == FAILED]
        assert refused.header("ce_id") == str(desk.partition(RETURNS).records[place].outcome_id)
        completed = [one for one in published if one.topic == COMPLETED]
        assert [one.document["sequence"] for one in completed] == [1, 2, 3, 4, 5, 6]
        assert [one.document["redemption"]["remaining"] for one in completed] == ["9", "8", "7", "6", "5", "4"]
        assert await desk.counts(RETURNS) == {"taken": 7, "completed": 6, "failed": 1}
        assert desk.process.lanes[RETURNS, 0].next_offset == 7

    async def test_two_of_them(self, desk: Desk) -> None:
        await desk.bought("R-1", 10)
        await refuse(desk, "reversal", "idempotency_key not in ('K1', 'K2')")
        published = await desk.take_in(RETURNS, *asks(4), b"{")
        assert named(published) == [
            "completed",
            *(2 * ["reversal_failed", "decision_raised"]),
            "completed",
            "not_json",
        ]

    async def test_a_feed_record_leaves_no_trace(self, desk: Desk) -> None:
        await refuse(desk, "lot", "lot_id <> 'L-1'")
        lots = [{"customerId": number, "lotId": f"L-{number}", "points": "1"} for number in (1, 2, 3)]
        assert named(await desk.take_in(ISSUES, *lots)) == ["decision_raised"]
        assert await desk.rows("select customer_id from customer order by 1") == [(2,), (3,)]

    async def test_a_customer_record(self, desk: Desk) -> None:
        await refuse(desk, "identifier", "lookup <> '66'")
        updates = [
            {"customerId": number, "identifiers": [{"type": "PHONE", "value": str(number)}]} for number in (65, 66, 67)
        ]
        assert named(await desk.take_in(CUSTOMERS, *updates)) == ["decision_raised"]
        assert await desk.rows("select lookup from identifier order by 1") == [("65",), ("67",)]

    async def test_a_parked_return_does_not_take_the_redemption_with_it(self, desk: Desk) -> None:
        """The booking goes through; its lane's owner finds the return that is to blame."""
        await desk.rules(park_unknown_seconds=60)
        await desk.customer()
        await desk.lot("L-1", 10)
        returns = desk.send(RETURNS, *asks(3))
        await desk.process.serve(returns)
        await refuse(desk, "reversal", "idempotency_key <> 'K1'")
        redemption = {"customerId": CUSTOMER, "redemptionId": "R-1", "points": "9"}
        published = await desk.take_in(REDEMPTIONS, redemption)
        assert await desk.counts(REDEMPTIONS) == {"taken": 1, "booked": 1}
        while desk.process.lanes[RETURNS, 0].waiting:
            published += await desk.process.serve_due(returns)
        assert sorted(named(published)) == ["completed", "completed", "decision_raised", "reversal_failed"]
        assert await desk.waiting() == []
        assert await desk.counts(RETURNS) == {"taken": 3, "completed": 2, "failed": 1}

    async def test_a_waiting_feed_record_does_not_take_another_with_it(self, desk: Desk) -> None:
        redemptions = [{"customerId": CUSTOMER, "redemptionId": f"R-{n}", "points": "5"} for n in (1, 2)]
        await desk.take_in(REDEMPTIONS, *redemptions)
        await refuse(desk, "redemption", "redemption_id <> 'R-1'")
        assert await desk.take_in(ISSUES, {"customerId": CUSTOMER, "lotId": "L-1", "points": "10"}) == []
        assert await desk.counts(ISSUES) == {"taken": 1, "booked": 1}
        desk.set_clock(NOW + 300 * SECOND)
        published = []
        while desk.process.lanes[REDEMPTIONS, 0].waiting:
            published += await desk.process.serve_due(desk.partition(REDEMPTIONS))
        assert named(published) == ["decision_raised"]
        assert await desk.reversed() == {"R-2": 0}

    async def test_a_fault_of_the_world_blames_no_record(self, desk: Desk) -> None:
        await desk.bought("R-1", 10)
        partition = desk.send(RETURNS, *asks(2))
        lane = await desk.process.own(partition)
        await desk.pool.execute("alter table journal rename to elsewhere")
        with pytest.raises(asyncpg.UndefinedTableError):
            await desk.process.take(partition)
        await desk.pool.execute("alter table elsewhere rename to journal")
        assert (lane.next_offset, await desk.reversed(), await desk.outbox()) == (0, {"R-1": 0}, 0)
        assert named(await desk.process.serve(partition)) == ["completed", "completed"]

    async def test_a_wrong_sum_never_becomes_wrong_points(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        """A bug of ours that gives back more than was taken ends in an error."""
        await desk.bought("R-1", 10)
        real = reversal.apply

        def twice(ledger: Any, decision: Any) -> None:
            if isinstance(decision, Completed) and decision.request.key == "K0":
                object.__setattr__(decision, "points", 10_001)
            real(ledger, decision)

        monkeypatch.setattr(reversal, "apply", twice)
        published = await desk.take_in(RETURNS, *asks(2))
        assert named(published) == ["reversal_failed", "decision_raised", "completed"]
        assert await desk.reversed() == {"R-1": 1}
        assert await desk.held() == {"L-R-1": 1}


async def test_both_of_an_orgs_faults_keep_their_order_over_halves(desk: Desk) -> None:
    """What halves publish appears in the records' order, numbered without a gap in the outbox."""
    await desk.bought("R-1", 10)
    await refuse(desk, "reversal", "idempotency_key <> 'K2'")
    partition = desk.send(RETURNS, *asks(5))
    lane = await desk.process.own(partition)
    taken = await desk.process.take(partition)
    positions = [row[0] for row in await desk.rows("select position from outbox order by 1")]
    assert positions == list(range(lane.epoch << 32, (lane.epoch << 32) + 6))
    assert [each.position for each in taken] == [
        (lane.epoch << 32) + sum(len(one.outbox) for one in taken[:place]) for place in range(len(taken))
    ]
    published = await desk.process.publish(partition, taken)
    ids = [str(record.outcome_id) for record in partition.records]
    assert [one.header("ce_id") for one in published if one.header("ce_id")] == ids
    assert lane.acknowledged == positions[-1]
    assert await desk.value("select count(*) from reversal where org_id = $1", ORG) == 4
