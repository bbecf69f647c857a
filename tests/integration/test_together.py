"""Small batches of several lanes in one transaction: what each comes to, and that none suffers from another."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import asyncpg
import pytest

from service.pipeline import SMALL, Taken
from service.store import LaneLost, disconnect
from tests import streams
from tests.compare import normalise_all
from tests.integration.desk import (
    COMPLETED,
    CUSTOMER,
    CUSTOMERS,
    ISSUES,
    NOW,
    ORG,
    REDEMPTIONS,
    RETURNS,
    SECOND,
    Data,
    Desk,
    Partition,
    Process,
    Published,
    desk_on,
)
from tests.integration.imports import import_stream
from tests.integration.test_batches import (
    KINDS,
    Run,
    Step,
    differing,
    look_at_deadlines,
    outcomes,
    steps_of,
    tables,
)
from tests.integration.test_condemned import asks, named, refuse
from tests.integration.test_schedules import (
    ASK,
    COMMIT,
    OUTCOME,
    WORLD,
    begin,
    blocked,
    holding,
    holding_customer,
    met,
    proxy,
)
from tests.proxy import Proxy
from tests.stack import Stack, create_database, drop_database

__all__ = ["met", "proxy"]  # fixtures


async def own(process: Process, partitions: Sequence[Partition]) -> None:
    for one in partitions:
        await process.own(one)


async def take(process: Process, partitions: Sequence[Partition]) -> list[list[Taken]]:
    """Takes the next records of each, as workers do that have them at one moment."""
    return await asyncio.gather(*(process.take(one) for one in partitions))


async def serve(process: Process, *partitions: Partition) -> list[Published]:
    """Takes the next records of each at one moment, then publishes what they came to, in that order."""
    await own(process, [one for one in partitions if (one.topic, one.number) not in process.lanes])
    published = []
    for one, taken in zip(partitions, await take(process, partitions), strict=True):
        published += await process.publish(one, taken)
    return published


async def transactions(desk: Desk) -> list[int]:
    """How many lanes each transaction moved that was the last to move one."""
    return [count for (count,) in await desk.rows("select count(*) from lane group by xmin::text order by 1")]


def ask(number: int, **fields: object) -> Data:
    return {"redemptionId": f"R-{number}", "pointsToBeReversed": "1", "idempotencyKey": f"K{number}", **fields}


async def lanes_of_returns(desk: Desk, count: int) -> list[Partition]:
    """So many partitions with a return each, of customers of their own: 1, 2 and so on."""
    for number in range(1, count + 1):
        await desk.bought(f"R-{number}", 10, customer_id=number)
    return [desk.send(RETURNS, ask(number), number=number) for number in range(1, count + 1)]


class TestOneTransaction:
    async def test_takes_the_small_batches_that_are_there(self, desk: Desk) -> None:
        await desk.bought("R-1", 10)
        await desk.customer(7)
        partitions = [
            desk.send(RETURNS, ASK),
            desk.send(CUSTOMERS, {"customerId": 7, "status": "inactive"}),
            desk.send(ISSUES, {"customerId": 8, "lotId": "L-8", "points": "5"}, b"{"),
        ]
        published = await serve(desk.process, *partitions)
        assert named(published) == ["insufficient_points", "not_json"]
        assert await transactions(desk) == [3]
        assert await desk.counts(ISSUES) == {"taken": 2, "booked": 1, "dead": 1}

    async def test_takes_no_large_one(self, desk: Desk) -> None:
        partitions = await lanes_of_returns(desk, 3)
        partitions[0] = desk.send(RETURNS, *([b"{"] * (SMALL - 1)), number=1)
        await serve(desk.process, *partitions)
        assert await transactions(desk) == [1, 2]

    @pytest.mark.parametrize(
        ("bound", "key"), [({"batch_records": 2}, None), ({"batch_bytes": 2000}, None), ({"batch_bytes": 2000}, b"k")]
    )
    async def test_is_within_the_bounds_of_a_batch(self, desk: Desk, bound: dict[str, Any], key: bytes | None) -> None:
        """Two of these lanes' batches at most."""
        partitions = await lanes_of_returns(desk, 5)
        for one in partitions:
            [record] = one.records
            assert record.value is not None
            if key is None:
                one.records = [replace(record, value=record.value.ljust(900))]
            else:
                one.records = [replace(record, key=key * 900)]
        await serve(await desk.start(**bound), *partitions)
        assert await transactions(desk) == [1, 2, 2]

    async def test_decides_one_key_once(self, desk: Desk) -> None:
        await desk.bought("R-1", 100)
        completed, duplicate, reused = await serve(
            desk.process,
            desk.send(RETURNS, ASK),
            desk.send(RETURNS, ASK, number=1),
            desk.send(RETURNS, {**ASK, "pointsToBeReversed": "1"}, number=2),
        )
        assert (duplicate.refusal, reused.refusal) == ("duplicate_reversal", "idempotency_key_reused")
        assert duplicate.document["existing"] == reused.document["existing"] == completed.document
        assert [one.document["sequence"] for one in (completed, duplicate, reused)] == [1, 2, 3]
        assert await desk.reversed() == {"R-1": 40}
        assert await transactions(desk) == [3]

    async def test_adds_up_what_lanes_do_to_one_redemption_lot_and_reward(self, desk: Desk) -> None:
        await desk.put("reward", org_id=ORG, reward_id="mug", max_total=9, redeemed_count=9, status="OUT_OF_STOCK")
        await desk.bought("R-1", 9, type="UNIT_BASED", quantity=3, reward_id="mug")
        one = {"redemptionId": "R-1", "quantity": 1}
        partitions = [desk.send(RETURNS, {**one, "returnId": str(lane)}, number=lane) for lane in range(4)]
        published = await serve(desk.process, *partitions)
        assert named(published) == ["completed"] * 3 + ["insufficient_points"]
        assert (await desk.reversed(), await desk.held()) == ({"R-1": 9}, {"L-R-1": 9})
        assert await desk.rows("select redeemed_count, status from reward") == [(6, "ACTIVE")]
        assert await transactions(desk) == [4]

    async def test_hands_an_identifier_on_from_lane_to_lane(self, desk: Desk) -> None:
        await desk.customer(1, ("PHONE", "65"))
        phone = {"type": "PHONE", "value": "65"}
        await desk.bought("R-1", 10)
        updates = [
            desk.send(CUSTOMERS, {"customerId": number, "identifiers": [phone]}, number=number) for number in (2, 42)
        ]
        before = desk.send(RETURNS, {**ASK, "identifier": phone})
        after = desk.send(RETURNS, {**ASK, "pointsToBeReversed": "4", "identifier": phone}, number=1)
        published = await serve(desk.process, before, updates[0], updates[1], after)
        assert named(published) == ["customer_not_eligible", "completed"]
        assert await desk.rows("select lookup, customer_id from identifier") == [("65", 42)]
        assert await transactions(desk) == [4]

    async def test_makes_no_customer_before_its_record(self, desk: Desk) -> None:
        """A return that names a customer of whom another lane tells: after it, or (it waits) not at all."""
        await desk.bought("R-1", 10)
        names = [{"redemptionId": "R-1", "identifier": {"type": "ID", "value": one}} for one in ("7", "8")]
        refused = await serve(
            desk.process,
            desk.send(RETURNS, *({**one, "redemptionId": "R-2"} for one in names)),
            desk.send(ISSUES, {"customerId": 7, "lotId": "L-7", "points": "5"}),
            desk.send(REDEMPTIONS, {"customerId": 8, "redemptionId": "R-8", "points": "5"}),
            desk.send(RETURNS, *({**one, "redemptionId": "R-3"} for one in names), number=1),
        )
        assert [one.document["customerId"] for one in refused] == [None, None, 7, None]
        assert await desk.rows("select customer_id, sequence from customer order by 1") == [(7, 1), (CUSTOMER, 0)]
        assert await transactions(desk) == [4]

    @pytest.mark.parametrize("text", ["NULL", "{}", "\\", '{"a",NULL}', "a\"b\\c{d}e,f'", " \\N ", "ü☃😀$1"])
    async def test_keeps_text_as_it_is(self, desk: Desk, text: str) -> None:
        """In each field that travels as text of an array, also in arrays of arrays."""
        await desk.rules(expired_lots_policy="extend", grace_days=3)
        await desk.customer(7)
        identifier = {"type": "EXTERNAL_ID", "value": text}
        lots = [{"lotId": text, "points": "3"}, {"lotId": f"{text}2", "points": "3"}]
        booked = [{"customerId": 7, **lot} for lot in lots]
        booked[1]["expiresAt"] = "2026-11-19T00:00:00Z"
        redeemed = {"customerId": 7, "redemptionId": text, "orderId": text, "points": "6", "lots": lots}
        whole: Data = {"redemptionId": text, "orderId": text, "returnId": text, "idempotencyKey": text, "reason": text}
        whole |= {"identifier": identifier, "pointsToBeReversed": "5"}
        partitions = [
            desk.send(CUSTOMERS, {"customerId": 7, "identifiers": [identifier]}),
            desk.send(ISSUES, *booked),
            desk.send(REDEMPTIONS, {**redeemed, "rewardId": text}),
            desk.send(RETURNS, whole, {**whole, "quantity": 1}, {"orderId": text}, key=text.encode()),
        ]
        completed, failed, rest = await serve(desk.process, *partitions)
        assert (completed.topic, failed.refusal, rest.topic) == (COMPLETED, "validation_error", COMPLETED)
        [new_lot] = [lot["lotId"] for lot in completed.document["lots"] if lot.get("restoredFrom") == f"{text}2"]
        assert set(await desk.held()) == {text, f"{text}2", new_lot}
        statement = "select redemption_id, order_id, reward_id, lot_ids from redemption"
        assert await desk.rows(statement) == [(text, text, text, [text, f"{text}2"])]
        postings = "select subject from posting where kind = 'redemption' order by position"
        assert await desk.rows(postings) == [(text,), (text,), (f"{text}2",)]
        kept = "select idempotency_key, redemption_id, outcome from reversal order by sequence limit 1"
        assert await desk.rows(kept) == [(text, text, (completed.value or b"").decode())]
        refused = "select idempotency_key, redemption_id, order_id, outcome from refusal"
        assert await desk.rows(refused) == [(text, text, text, (failed.value or b"").decode())]
        [again] = await serve(desk.process, desk.send(RETURNS, whole))
        assert again.document["existing"] == completed.document
        assert await desk.rows("select lookup, value from identifier") == [(text, text)]


class TestWhatWaits:
    async def test_begins_and_ends_in_one_transaction(self, desk: Desk) -> None:
        await desk.rules(park_unknown_seconds=60)
        await desk.customer()
        returns = desk.send(RETURNS, ask(1), ask(2))
        redeemed = desk.send(REDEMPTIONS, {"customerId": CUSTOMER, "redemptionId": "R-1", "points": "5"})
        issued = desk.send(ISSUES, {"customerId": CUSTOMER, "lotId": "L-1", "points": "5"})
        [completed] = await serve(desk.process, returns, redeemed, issued)
        assert completed.document["idempotencyKey"] == "K1"
        assert await transactions(desk) == [3]
        assert await desk.waiting() == ["order.returned@1"]
        assert {topic: lane.waiting for (topic, _), lane in desk.process.lanes.items()} == {
            RETURNS: 1,
            REDEMPTIONS: 0,
            ISSUES: 0,
        }
        assert await desk.counts(RETURNS) == {"taken": 2, "completed": 1}
        assert await desk.counts(REDEMPTIONS) == {"taken": 1, "booked": 1}
        desk.set_clock(NOW + 60 * SECOND)
        assert named(await desk.process.serve_due(returns)) == ["redemption_not_found"]
        assert desk.process.lanes[RETURNS, 0].waiting == 0

    async def test_is_settled_once_though_two_lanes_set_it_free(self, desk: Desk) -> None:
        await desk.rules(park_unknown_seconds=60)
        await desk.customer()
        await desk.take_in(RETURNS, ask(1), {**ask(2), "redemptionId": None, "orderId": "SO"})
        await desk.take_in(REDEMPTIONS, {"customerId": CUSTOMER, "redemptionId": "R-2", "orderId": "SO", "points": "3"})
        published = await serve(
            desk.process,
            desk.send(ISSUES, {"customerId": CUSTOMER, "lotId": "L-1", "points": "9"}),
            desk.send(REDEMPTIONS, {"customerId": CUSTOMER, "redemptionId": "R-1", "points": "5"}),
            desk.send(RETURNS, ask(1), number=1),
            desk.send(REDEMPTIONS, {"customerId": CUSTOMER, "redemptionId": "R-1", "points": "5"}, number=1),
        )
        assert named(published) == ["completed", "completed", "duplicate_reversal"]
        assert await desk.waiting() == []
        assert await desk.counts(RETURNS) == {"taken": 2, "completed": 2}
        assert await desk.counts(REDEMPTIONS, 1) == {"taken": 1, "unchanged": 1}

    async def test_is_tried_in_the_same_order_as_later(self, desk: Desk) -> None:
        """Of one moment the lower partition's first, whichever came first."""
        await desk.customer()
        redeemed = {"customerId": CUSTOMER, "redemptionId": "R-1", "points": "5", "type": "RAW"}
        dead = await serve(
            desk.process,
            desk.send(REDEMPTIONS, redeemed, number=1),
            desk.send(REDEMPTIONS, {**redeemed, "type": "AMOUNT_BASED"}),
            desk.send(ISSUES, {"customerId": CUSTOMER, "lotId": "L-1", "points": "9"}),
        )
        assert [one.header("dlq.partition") for one in dead] == ["1"]
        assert await desk.rows("select type from redemption") == [("AMOUNT_BASED",)]
        assert await transactions(desk) == [3]

    async def test_more_than_one_transaction_takes_up_is_divided(self, desk: Desk) -> None:
        process = await desk.start(release_records=2)
        redemptions = [{"customerId": number, "redemptionId": f"R-{number}", "points": "5"} for number in range(1, 7)]
        await process.serve(desk.send(REDEMPTIONS, *redemptions))
        issues = [
            desk.send(ISSUES, {"customerId": number, "lotId": f"L-{number}", "points": "5"}, number=number)
            for number in range(1, 7)
        ]
        await serve(process, *issues)
        assert await desk.waiting() == []
        assert await desk.counts(REDEMPTIONS) == {"taken": 6, "booked": 6}


class TestOneOfThem:
    async def test_with_a_record_at_fault_fails_alone(self, desk: Desk) -> None:
        await desk.bought("R-1", 10)
        await desk.bought("R-2", 10, customer_id=2)
        await refuse(desk, "reversal", "idempotency_key <> 'K1'")
        at_fault, other = desk.send(RETURNS, *asks(3)), desk.send(RETURNS, ask(2, idempotencyKey="other"), number=1)
        published = await serve(desk.process, at_fault, other)
        assert named(published) == ["completed", "reversal_failed", "decision_raised", "completed", "completed"]
        assert await desk.counts(RETURNS) == {"taken": 3, "completed": 2, "failed": 1}
        assert await desk.counts(RETURNS, 1) == {"taken": 1, "completed": 1}
        assert await desk.reversed() == {"R-1": 2, "R-2": 1}

    async def test_that_another_process_owns_is_lost_alone(self, desk: Desk) -> None:
        partitions = await lanes_of_returns(desk, 3)
        await own(desk.process, partitions)
        other = await desk.start()
        await other.own(partitions[1])
        first, lost, last = await asyncio.gather(*map(desk.process.take, partitions), return_exceptions=True)
        assert isinstance(lost, LaneLost)
        assert isinstance(first, list)
        assert isinstance(last, list)
        assert [one.topic for one in await other.serve(partitions[1])] == [COMPLETED]
        assert await desk.reversed() == {"R-1": 1, "R-2": 1, "R-3": 1}

    async def test_that_was_reset_repeats_nothing(self, desk: Desk) -> None:
        await desk.rules(park_unknown_seconds=60)
        partitions = await lanes_of_returns(desk, 2)
        desk.send(RETURNS, ask(9), ask(1, idempotencyKey="refused", quantity=1), number=1)
        await serve(desk.process, *partitions)
        await desk.reset(RETURNS, 0, number=1)
        desk.send(RETURNS, ask(2, idempotencyKey="more"), number=2)
        assert named(await serve(desk.process, *partitions)) == ["completed"]
        assert await desk.counts(RETURNS, 1) == {"taken": 6, "completed": 1, "failed": 1, "repeated": 3}
        assert await desk.reversed() == {"R-1": 1, "R-2": 2}

    async def test_that_is_held_up_does_not_hold_up_the_others(self, desk: Desk) -> None:
        """Neither those of its transaction nor those that come later."""
        partitions = await lanes_of_returns(desk, 4)
        await own(desk.process, partitions)
        async with holding_customer(desk, 2):
            first, held_up, third = (begin(desk.process.take(one)) for one in partitions[:3])
            await asyncio.gather(first, third)
            await blocked(desk)
            await desk.process.take(partitions[3])
            assert not held_up.done()
        await held_up
        assert set((await desk.reversed()).values()) == {1}

    async def test_that_waits_for_a_customer_in_the_making_does_not_hold_up_the_others(self, desk: Desk) -> None:
        partitions = await lanes_of_returns(desk, 1)
        partitions.append(desk.send(ISSUES, {"customerId": 7, "lotId": "L-7", "points": "5"}))
        await own(desk.process, partitions)
        async with holding(desk, "insert into customer (org_id, customer_id) values ($1, 7)", ORG):
            returned, held_up = (begin(desk.process.take(one)) for one in partitions)
            await returned
            await blocked(desk)
            assert not held_up.done()
        await held_up
        assert await desk.held() == {"L-7": 5, "L-R-1": 1}

    async def test_that_is_held_up_for_too_long_puts_only_itself_in_doubt(self, desk: Desk) -> None:
        partitions = await lanes_of_returns(desk, 2)
        process = await desk.start(lock_timeout_ms=200)
        await own(process, partitions)
        async with holding_customer(desk, 1):
            held_up, taken = await asyncio.gather(*map(process.take, partitions), return_exceptions=True)
        assert isinstance(held_up, asyncpg.LockNotAvailableError)
        assert isinstance(taken, list)
        assert len(await process.serve(partitions[0])) == 1

    async def test_whose_worker_ends_before_it_begins_is_not_taken(self, desk: Desk) -> None:
        partitions = await lanes_of_returns(desk, 2)
        await own(desk.process, partitions)
        ended, other = (begin(desk.process.take(one)) for one in partitions)
        await asyncio.sleep(0)
        ended.cancel()
        await asyncio.wait([ended, other])
        assert ended.cancelled()
        assert await desk.reversed() == {"R-1": 0, "R-2": 1}
        assert desk.process.lanes[RETURNS, 1].next_offset == 0

    @pytest.mark.parametrize("marker", [OUTCOME, COMMIT], ids=["before it is written", "before the commit"])
    async def test_whose_worker_ends_meanwhile_does_not_take_the_others_along(
        self, desk: Desk, proxy: Proxy, marker: bytes
    ) -> None:
        partitions = await lanes_of_returns(desk, 2)
        process = await desk.start(proxy.url)
        await own(process, partitions)
        stop = proxy.hold(marker)
        ended, other = (begin(process.take(one)) for one in partitions)
        await stop.reached.wait()
        ended.cancel()
        owning = begin(desk.process.own(partitions[0]))
        await blocked(desk)
        stop.release()
        assert len(await process.publish(partitions[1], await other)) == 1
        await owning
        assert [one.header("ce_id") for one in desk.process.published] == [str(partitions[0].records[0].outcome_id)]
        assert await desk.reversed() == {"R-1": 1, "R-2": 1}


class TestALostConnection:
    async def test_at_the_commit_puts_every_lane_in_doubt_and_doubles_nothing(self, desk: Desk, proxy: Proxy) -> None:
        partitions = await lanes_of_returns(desk, 3)
        process = await desk.start(proxy.url)
        await own(process, partitions)
        before = [replace(lane) for lane in process.lanes.values()]
        proxy.lose_reply(COMMIT)
        lost = await asyncio.gather(*map(process.take, partitions), return_exceptions=True)
        assert [isinstance(one, WORLD) for one in lost] == [True] * 3, lost
        assert list(process.lanes.values()) == before, "as if never tried"
        again = await asyncio.gather(*map(process.take, partitions), return_exceptions=True)
        assert [isinstance(one, LaneLost) for one in again] == [True] * 3, again
        await own(process, partitions)
        assert [lane.next_offset for lane in process.lanes.values()] == [1, 1, 1]
        ids = [str(one.records[0].outcome_id) for one in partitions]
        assert [one.header("ce_id") for one in process.published] == ids
        assert set((await desk.reversed()).values()) == {1}
        assert await desk.outbox() == 0

    async def test_in_the_middle_leaves_nothing_behind(self, desk: Desk, proxy: Proxy) -> None:
        partitions = await lanes_of_returns(desk, 3)
        process = await desk.start(proxy.url)
        await own(process, partitions)
        stop = proxy.hold(OUTCOME)
        taking = [begin(process.take(one)) for one in partitions]
        await stop.reached.wait()
        stop.cut()
        lost = await asyncio.gather(*taking, return_exceptions=True)
        assert [isinstance(one, WORLD) for one in lost] == [True] * 3, lost
        assert set((await desk.reversed()).values()) == {0}
        await own(process, partitions)
        assert len(await serve(process, *partitions)) == 3

    async def test_at_the_end_of_the_process_is_told_to_nobody(
        self, desk: Desk, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The workers were ended; their transaction still waits when the pool is closed."""
        partitions = await lanes_of_returns(desk, 2)
        process = await desk.start()
        await own(process, partitions)
        async with holding_customer(desk, 1), holding_customer(desk, 2):
            taking = [begin(process.take(one)) for one in partitions]
            await blocked(desk)
            for one in taking:
                one.cancel()
            await disconnect(process.pool)
        together = process.pipeline._together
        assert together is not None
        await asyncio.wait([together, *process.pipeline._taking], timeout=5)
        assert together.done()
        assert not process.pipeline._taking
        assert caplog.records == []
        assert set((await desk.reversed()).values()) == {0}


class TestTwoProcesses:
    async def test_do_not_wait_for_each_other_in_a_ring(self, desk: Desk, met: list[BaseException]) -> None:
        """Lanes of each over the same customers and keys, in opposite order."""
        other = await desk.start()
        await desk.bought("R-1", 100, customer_id=1)
        await desk.bought("R-2", 100, customer_id=2)
        await desk.customer(3)
        for number in range(4):
            records = [ask(1), ask(2)] if number % 2 else [ask(2), ask(1)]
            desk.send(RETURNS, *records, number=number)
        partitions = list(desk.partitions.values())
        await own(desk.process, partitions[:2])
        await own(other, partitions[2:])
        async with holding_customer(desk, 1):
            both = begin(take(desk.process, partitions[:2])), begin(take(other, partitions[2:]))
            await blocked(desk, 2)
        await asyncio.gather(*both)
        assert await desk.reversed() == {"R-1": 1, "R-2": 1}
        ends = Counter[str]()
        for number in range(4):
            ends.update(await desk.counts(RETURNS, number))
        assert ends == {"taken": 8, "completed": 2, "failed": 6}
        assert [error for error in met if isinstance(error, asyncpg.DeadlockDetectedError)] == []


def rounds_of(stream: streams.Stream, random: Random) -> list[list[Step]]:
    """The stream in windows, of each the topics' records, which come at one moment; then the clock moves on."""
    rounds: list[list[Step]] = [[]]
    for step in steps_of(stream, random):
        rounds[-1].append(step if step.due else replace(step, seconds=0))
        if step.due:
            rounds.append([])
    return rounds[:-1]


async def run_rounds(desk: Desk, stream: streams.Stream, rounds: list[list[Step]], together: bool) -> Run:
    """Takes the topics' batches of each round in one transaction, or one after the other."""
    await import_stream(desk, stream)
    now = stream.clock
    desk.set_clock(now)
    await own(desk.process, [desk.partition(kind) for kind in KINDS])
    for steps in rounds:
        for step in steps:
            for record in step.records:
                key, value, headers = streams.encode(record)
                desk.partition(step.kind).append(value, key=key, headers=headers)
        partitions = [desk.partition(step.kind) for step in steps]
        if together:
            await serve(desk.process, *partitions)
        else:
            for one in partitions:
                await serve(desk.process, one)
        now += steps[-1].seconds * SECOND
        desk.set_clock(now)
        await look_at_deadlines(desk)
    desk.set_clock(now + 1000 * SECOND)
    await look_at_deadlines(desk)
    assert await desk.waiting() == []
    run = Run(list(desk.process.published), {})
    run.tables = await tables(desk, run)
    return run


@pytest.mark.parametrize("seed", range(200, 206))
async def test_lanes_together_equal_the_same_lanes_one_after_another(
    stack: Stack, template_database: str, met: list[BaseException], seed: int
) -> None:
    stream = streams.sample(seed, customers=12, records=250)
    rounds = rounds_of(stream, Random(seed))
    runs = []
    for together in (False, True):
        url = await create_database(stack.database_url, template_database)
        try:
            async with desk_on(url) as desk:
                runs.append(await run_rounds(desk, stream, rounds, together))
        finally:
            await drop_database(url)
    singly, joint = runs
    assert met == [], "all of a round was one transaction"
    assert normalise_all(outcomes(joint)) == normalise_all(outcomes(singly))
    assert [(one.topic, one.key, one.headers) for one in joint.published] == [
        (one.topic, one.key, one.headers) for one in singly.published
    ]
    assert differing(joint.tables, singly.tables) == {}
