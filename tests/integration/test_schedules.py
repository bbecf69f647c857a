"""Schedules that go wrong in a naive form of this design, each forced on a real Postgres.

A session is stopped where a lock or a held message stops it; the tests wait for what the database says of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime
from random import Random
from typing import Any
from zlib import crc32

import asyncpg
import pytest

from service.store import LaneLost, Restart, blames_a_record, meets_another
from tests import streams
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
    Partition,
    Process,
    Published,
)
from tests.integration.imports import import_stream
from tests.proxy import Proxy, proxy_before
from tests.stack import eventually, run_address

BLOCKED = """select count(*) from pg_stat_activity
    where datname = current_database() and cardinality(pg_blocking_pids(pid)) > 0"""
RELEASABLE = """select count(*) from waiting w join redemption r on r.org_id = w.org_id
    and (r.redemption_id = w.redemption_id or r.order_id = w.order_id)"""
COMMIT = b"COMMIT;"
OUTCOME = b'"reversalId"'  # what a batch writes
COPY_DATA = b"PGCOPY"  # what begins to wait
ASK: Data = {"redemptionId": "R-1", "pointsToBeReversed": "40", "idempotencyKey": "K"}
WORLD = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)


@pytest.fixture
async def proxy(database: str) -> AsyncIterator[Proxy]:
    async with proxy_before(await run_address(database)) as proxy:
        yield proxy


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """The errors for which batches were run again (or not)."""
    errors: list[BaseException] = []
    real = meets_another

    def noting(error: BaseException) -> bool:
        errors.append(error)
        return real(error)

    monkeypatch.setattr("service.pipeline.meets_another", noting)
    return errors


@asynccontextmanager
async def holding(desk: Desk, statement: str, *arguments: Any) -> AsyncIterator[None]:
    """A session that holds what the statement locks, to the end of the block."""
    async with desk.pool.acquire() as connection, connection.transaction():
        await connection.execute(statement, *arguments)
        yield


def holding_customer(desk: Desk, customer_id: int) -> Any:
    statement = "select from customer where org_id = $1 and customer_id = $2 for update"
    return holding(desk, statement, ORG, customer_id)


@asynccontextmanager
async def before_its_commit(proxy: Proxy, work: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """The work of a process behind the proxy, stopped when it has written all, to the end of the block."""
    stop = proxy.hold(COMMIT)
    task = begin(work)
    await stop.reached.wait()
    yield task
    stop.release()


async def blocked(desk: Desk, sessions: int = 1) -> None:
    """Returns when so many sessions wait for another's lock."""
    await eventually(lambda: counts(desk, sessions))


async def counts(desk: Desk, sessions: int) -> bool:
    return bool(await desk.value(BLOCKED) == sessions)


def begin(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.create_task(work)


async def fault_of(task: asyncio.Task[Any]) -> BaseException:
    with pytest.raises(WORLD) as caught:
        await task
    assert not blames_a_record(caught.value), "no record is to blame for a lost connection"
    return caught.value


class TestANewOwner:
    async def test_publishes_what_the_old_one_commits_meanwhile(self, desk: Desk, proxy: Proxy) -> None:
        await desk.bought("R-1", 100)
        partition = desk.send(RETURNS, ASK)
        old, new = await desk.start(proxy.url), desk.process
        await old.own(partition)
        stop = proxy.hold(COMMIT)
        taking = begin(old.take(partition))
        await stop.reached.wait()
        owning = begin(new.own(partition))
        await blocked(desk)
        assert new.published == []
        stop.release()
        taken = await taking
        lane = await owning
        assert lane.next_offset == 1
        assert [one.topic for one in new.published] == [COMPLETED]
        assert await old.publish(partition, taken) == new.published, "twice, byte for byte"
        partition.append({"orgId": ORG, **ASK, "idempotencyKey": "K2"})
        with pytest.raises(LaneLost):
            await old.take(partition)
        await old.clear(partition)
        assert [one.topic for one in await new.serve(partition)] == [COMPLETED]
        assert await desk.reversed() == {"R-1": 80}
        assert await desk.counts(RETURNS) == {"taken": 2, "completed": 2}

    async def test_takes_again_what_the_old_one_never_committed(self, desk: Desk, proxy: Proxy) -> None:
        await desk.bought("R-1", 100)
        partition = desk.send(RETURNS, ASK)
        old, new = await desk.start(proxy.url), desk.process
        await old.own(partition)
        stop = proxy.hold(COMMIT)
        taking = begin(old.take(partition))
        await stop.reached.wait()
        owning = begin(new.own(partition))
        await blocked(desk)
        stop.cut()
        await fault_of(taking)
        lane = await owning
        assert (lane.next_offset, new.published) == (0, [])
        assert [one.topic for one in await new.serve(partition)] == [COMPLETED]
        assert await desk.reversed() == {"R-1": 40}
        assert await desk.counts(RETURNS) == {"taken": 1, "completed": 1}

    async def test_numbers_its_outbox_above_the_old_ones(self, desk: Desk) -> None:
        await desk.bought("R-1", 100)
        partition = desk.send(RETURNS, ASK, {**ASK, "idempotencyKey": "K2"})
        old, new = desk.process, await desk.start()
        await old.take(partition, 1)
        new.outlet.fault = TimeoutError()
        with pytest.raises(TimeoutError):
            await new.own(partition)
        new.outlet.fault = None
        await new.own(partition)
        await new.take(partition)
        last = await desk.start()
        await last.own(partition)
        keys = [one.document["idempotencyKey"] for one in (*new.published, *last.published)]
        assert keys == ["K", "K2"]


class TestACommitWhoseReplyIsLost:
    async def test_is_found_in_the_outbox_by_the_same_process(self, desk: Desk, proxy: Proxy) -> None:
        await desk.bought("R-1", 100)
        partition = desk.send(RETURNS, ASK, {**ASK, "idempotencyKey": "K2"})
        process = await desk.start(proxy.url)
        lane = await process.own(partition)
        proxy.lose_reply(COMMIT)
        await fault_of(begin(process.take(partition, 1)))
        assert (lane.next_offset, lane.position) == (0, lane.epoch << 32), "as if never tried"
        lane = await process.own(partition)
        assert lane.next_offset == 1
        await process.serve(partition)
        keys = [one.document["idempotencyKey"] for one in process.published]
        assert (keys, {one.topic for one in process.published}) == (["K", "K2"], {COMPLETED})
        assert await desk.reversed() == {"R-1": 80}

    async def test_cannot_be_taken_again_on_the_old_word(self, desk: Desk, proxy: Proxy) -> None:
        await desk.bought("R-1", 100)
        partition = desk.send(RETURNS, ASK)
        process = await desk.start(proxy.url)
        await process.own(partition)
        proxy.lose_reply(COMMIT)
        await fault_of(begin(process.take(partition)))
        with pytest.raises(LaneLost, match="stands at 1, not 0"):
            await process.take(partition)
        assert await desk.counts(RETURNS) == {"taken": 1, "completed": 1}

    async def test_of_one_half_of_a_batch(self, desk: Desk, proxy: Proxy) -> None:
        """The other half is decided after the lane is owned again."""
        await desk.bought("R-1", 100)
        constraint = "alter table reversal add constraint refused_by_the_test check (idempotency_key <> 'K1')"
        await desk.pool.execute(constraint)
        asks = [{"redemptionId": "R-1", "pointsToBeReversed": "1", "idempotencyKey": f"K{n}"} for n in range(4)]
        partition = desk.send(RETURNS, *asks)
        process = await desk.start(proxy.url)
        await process.own(partition)
        proxy.lose_reply(COMMIT)
        await fault_of(begin(process.take(partition)))
        lane = await process.own(partition)
        assert lane.next_offset == 1
        await process.serve(partition)
        keys = [one.document["idempotencyKey"] for one in process.published if one.header("ce_type")]
        assert sorted(set(keys)) == ["K0", "K1", "K2", "K3"]
        assert await desk.reversed() == {"R-1": 3}


class TestAFrozenOwner:
    @pytest.mark.parametrize(
        ("marker", "prepared", "timeouts"),
        [
            (OUTCOME, True, {"idle_in_transaction_timeout_ms": 1000}),
            (OUTCOME, False, {"statement_timeout_ms": 1000}),
            (COPY_DATA, False, {}),
        ],
        ids=["between statements", "while it prepares one", "in the middle of a copy"],
    )
    async def test_in_the_middle_of_a_transaction_holds_nobody_for_ever(
        self, desk: Desk, proxy: Proxy, marker: bytes, prepared: bool, timeouts: dict[str, int]
    ) -> None:
        """The last of them no time-out of Postgres ends: the lane's next owner does."""
        await desk.bought("R-1", 100)
        await desk.bought("R-2", 100)
        await desk.pool.execute("update program set park_unknown_seconds = 60")
        first = {**ASK, "pointsToBeReversed": "1", "idempotencyKey": "K1"}
        partition = desk.send(RETURNS, *([first] if prepared else []))
        other = desk.send(RETURNS, {**ASK, "redemptionId": "R-2", "idempotencyKey": "K2"}, number=1)
        frozen, waiting, new = (
            await desk.start(proxy.url, **timeouts),
            desk.process,
            await desk.start(lock_timeout_ms=2500),
        )
        await frozen.serve(partition)  # what is prepared already is not prepared again
        await frozen.own(partition)
        done = len(partition.records)
        desk.send(RETURNS, ASK, *([{"redemptionId": "R-9"}] if marker == COPY_DATA else []))
        stop = proxy.hold(marker)
        taking = begin(frozen.take(partition))
        await stop.reached.wait()
        same_lane, same_customer = begin(new.own(partition)), begin(waiting.serve(other))
        await blocked(desk, 2)
        assert (await same_lane).next_offset == done
        assert [one.topic for one in await same_customer] == [COMPLETED]
        [outcome] = await new.serve(partition)
        assert outcome.topic == COMPLETED
        stop.release()
        await fault_of(taking)
        with pytest.raises(LaneLost):
            await frozen.take(partition)
        assert await desk.reversed() == {"R-1": 40 + done, "R-2": 40}
        assert await desk.counts(RETURNS) == {"taken": len(partition.records), "completed": done + 1}

    async def test_that_wakes_after_its_commit_publishes_the_same_again(self, desk: Desk) -> None:
        await desk.bought("R-1", 100)
        partition = desk.send(RETURNS, ASK)
        frozen, new = desk.process, await desk.start()
        taken = await frozen.take(partition)
        await new.own(partition)
        await new.serve(desk.send(RETURNS, {**ASK, "idempotencyKey": "K2"}))
        assert await frozen.publish(partition, taken) == new.published[:1]
        with pytest.raises(LaneLost):
            await frozen.serve_due(partition)


class TestAReturnAndItsRedemptionAtOnce:
    """On two lanes. Whoever is late, the return is decided once."""

    @pytest.fixture
    async def returns(self, desk: Desk) -> Partition:
        await desk.rules(park_unknown_seconds=60)
        await desk.customer()
        await desk.lot("L-1", 100)
        redemption = {"customerId": CUSTOMER, "redemptionId": "R-1", "points": "90"}
        desk.send(REDEMPTIONS, redemption)
        return desk.send(RETURNS, ASK)

    @pytest.fixture
    async def far(self, desk: Desk, proxy: Proxy) -> Process:
        return await desk.start(proxy.url)

    async def decided_once(self, desk: Desk, published: list[Published]) -> None:
        assert [one.topic for one in published] == [COMPLETED]
        assert await desk.process.serve_due(desk.partition(RETURNS)) == []
        assert await desk.waiting() == []
        assert await desk.reversed() == {"R-1": 40}
        assert await desk.counts(RETURNS) == {"taken": 1, "completed": 1}
        assert await desk.counts(REDEMPTIONS) == {"taken": 1, "booked": 1}

    async def test_the_return_is_parked_after_the_booking_looked(
        self, desk: Desk, far: Process, proxy: Proxy, returns: Partition
    ) -> None:
        await far.own(desk.partition(REDEMPTIONS))
        async with before_its_commit(proxy, far.serve(desk.partition(REDEMPTIONS))) as booking:
            assert await desk.process.serve(returns) == []
            assert await desk.waiting() == ["order.returned@0"]
        assert await booking == []
        await self.decided_once(desk, await desk.process.serve_due(returns))

    async def test_the_booking_commits_after_the_return_looked(
        self, desk: Desk, far: Process, proxy: Proxy, returns: Partition
    ) -> None:
        await far.own(returns)
        async with before_its_commit(proxy, far.serve(returns)) as parking:
            assert await desk.process.serve(desk.partition(REDEMPTIONS)) == []
        assert await parking == []
        assert await desk.waiting() == ["order.returned@0"]
        await self.decided_once(desk, await desk.process.serve_due(returns))

    async def test_its_lane_looks_while_the_booking_releases_it(
        self, desk: Desk, far: Process, proxy: Proxy, returns: Partition
    ) -> None:
        """The lane waits for the customer and then finds nothing to do."""
        await desk.process.serve(returns)
        desk.set_clock(NOW + SECOND)
        await far.own(desk.partition(REDEMPTIONS))
        async with before_its_commit(proxy, far.serve(desk.partition(REDEMPTIONS))) as booking:
            assert await desk.process.pipeline.take_due(desk.process.lanes[RETURNS, 0])
        await self.decided_once(desk, await booking)

    async def test_its_deadline_passes_while_the_booking_releases_it(
        self, desk: Desk, far: Process, proxy: Proxy, returns: Partition
    ) -> None:
        await desk.process.serve(returns)
        desk.set_clock(NOW + 60 * SECOND)
        await far.own(desk.partition(REDEMPTIONS))
        async with before_its_commit(proxy, far.serve(desk.partition(REDEMPTIONS))) as booking:
            looking = begin(desk.process.serve_due(returns))
            await blocked(desk)
        published = await booking
        assert await looking == []
        await self.decided_once(desk, published)

    async def test_the_booking_comes_while_its_deadline_passes(
        self, desk: Desk, far: Process, proxy: Proxy, returns: Partition
    ) -> None:
        await far.serve(returns)
        desk.set_clock(NOW + 60 * SECOND)
        await far.own(returns)
        async with before_its_commit(proxy, far.serve_due(returns)) as looking:
            booking = begin(desk.process.serve(desk.partition(REDEMPTIONS)))
            await blocked(desk)
        [outcome] = await looking
        assert outcome.refusal == "redemption_not_found"
        assert await booking == []
        assert await desk.waiting() == []
        assert await desk.reversed() == {"R-1": 0}
        assert await desk.counts(RETURNS) == {"taken": 1, "failed": 1}
        assert await desk.counts(REDEMPTIONS) == {"taken": 1, "booked": 1}


class TestOneKeyOnTwoLanes:
    async def test_for_two_customers_is_claimed_by_one(
        self, desk: Desk, proxy: Proxy, met: list[BaseException]
    ) -> None:
        await desk.bought("R-1", 100)
        await desk.bought("R-2", 100, customer_id=7)
        theirs = {**ASK, "redemptionId": "R-2"}
        first, second = (
            desk.send(RETURNS, ASK),
            desk.send(RETURNS, theirs, {**theirs, "idempotencyKey": "K2"}, number=1),
        )
        far, other = await desk.start(proxy.url), await desk.start()
        await far.own(first)
        async with before_its_commit(proxy, far.serve(first)) as winning:
            losing = begin(other.take(second))
            await blocked(desk)
        [completed], taken = await winning, await losing
        assert len(taken) == 1, "run again whole: no record of it is to blame"
        reused, last = await other.publish(second, taken)
        assert [completed.topic, reused.refusal, last.topic] == [COMPLETED, "idempotency_key_reused", COMPLETED]
        assert reused.document["existing"] == completed.document
        assert await desk.reversed() == {"R-1": 40, "R-2": 40}
        assert [type(error) for error in met] == [asyncpg.UniqueViolationError]

    async def test_is_the_others_where_the_first_dies(self, desk: Desk, proxy: Proxy) -> None:
        await desk.bought("R-1", 100)
        await desk.bought("R-2", 100, customer_id=7)
        first, second = desk.send(RETURNS, ASK), desk.send(RETURNS, {**ASK, "redemptionId": "R-2"}, number=1)
        dying, other = await desk.start(proxy.url), desk.process
        await dying.own(first)
        stop = proxy.hold(COMMIT)
        taking = begin(dying.take(first))
        await stop.reached.wait()
        waiting = begin(other.serve(second))
        await blocked(desk)
        stop.cut()
        await fault_of(taking)
        assert [one.topic for one in await waiting] == [COMPLETED]
        [reused] = await other.serve(first)
        assert reused.refusal == "idempotency_key_reused"
        assert await desk.reversed() == {"R-1": 0, "R-2": 40}

    async def test_for_one_customer_waits_for_the_customer(
        self, desk: Desk, proxy: Proxy, met: list[BaseException]
    ) -> None:
        """Two such records at once in two processes are the same as one after the other."""
        await desk.bought("R-1", 100)
        first, second = desk.send(RETURNS, ASK), desk.send(RETURNS, ASK, number=1)
        far, other = await desk.start(proxy.url), await desk.start()
        await far.own(first)
        async with before_its_commit(proxy, far.serve(first)) as winning:
            losing = begin(other.serve(second))
            await blocked(desk)
        [completed], [duplicate] = await winning, await losing
        assert (completed.topic, duplicate.refusal) == (COMPLETED, "duplicate_reversal")
        assert duplicate.document["existing"] == completed.document
        assert duplicate.document["sequence"] == 2
        assert met == []


class TestLocks:
    async def test_the_same_customers_in_opposite_order(self, desk: Desk, met: list[BaseException]) -> None:
        for number in (1, 2, 3):
            await desk.bought(f"R-{number}", 100, customer_id=number)
        asks = [{"redemptionId": f"R-{number}", "pointsToBeReversed": "1"} for number in (1, 2, 3)]
        one, two = desk.send(RETURNS, *asks), desk.send(RETURNS, *reversed(asks), number=1)
        other = await desk.start()
        await desk.process.own(one)
        await other.own(two)
        async with holding_customer(desk, 2):
            both = begin(desk.process.serve(one)), begin(other.serve(two))
            await blocked(desk, 2)
        published = [*await both[0], *await both[1]]
        assert [each.topic for each in published] == [COMPLETED] * 6
        assert await desk.reversed() == {"R-1": 2, "R-2": 2, "R-3": 2}
        assert met == [], "no deadlock, nothing run again"

    async def test_new_customers_in_opposite_order(self, desk: Desk, met: list[BaseException]) -> None:
        await desk.customer(2)
        lots = [{"customerId": number, "lotId": f"L-{number}", "points": "1"} for number in (1, 2, 3)]
        mirrored = [{**lot, "lotId": f"M-{lot['customerId']}"} for lot in reversed(lots)]
        one, two = desk.send(ISSUES, *lots), desk.send(ISSUES, *mirrored, number=1)
        other = await desk.start()
        await desk.process.own(one)
        await other.own(two)
        async with holding_customer(desk, 2):
            both = begin(desk.process.serve(one)), begin(other.serve(two))
            await blocked(desk, 2)
        await asyncio.gather(*both)
        assert len(await desk.held()) == 6
        assert met == []

    async def test_the_same_rewards_in_opposite_order(self, desk: Desk, met: list[BaseException]) -> None:
        asks = []
        for number, reward_id in enumerate(("bag", "mug", "mug", "bag")):
            if number < 2:
                await desk.put(
                    "reward", org_id=ORG, reward_id=reward_id, max_total=9, redeemed_count=9, status="OUT_OF_STOCK"
                )
            units = {"type": "UNIT_BASED", "quantity": 3, "reward_id": reward_id}
            await desk.bought(f"R-{number}", 9, customer_id=number + 1, **units)
            asks.append({"redemptionId": f"R-{number}", "quantity": 1})
        one, two = desk.send(RETURNS, *asks[:2]), desk.send(RETURNS, *asks[2:], number=1)
        other = await desk.start()
        await desk.process.own(one)
        await other.own(two)
        async with holding(desk, "select from reward where reward_id = 'bag' for update"):
            both = begin(desk.process.serve(one)), begin(other.serve(two))
            await blocked(desk, 2)
        await asyncio.gather(*both)
        statement = "select reward_id, redeemed_count, status from reward order by 1"
        assert await desk.rows(statement) == [("bag", 7, "ACTIVE"), ("mug", 7, "ACTIVE")]
        assert met == []

    async def test_a_customer_held_for_too_long_only_delays(self, desk: Desk) -> None:
        await desk.bought("R-1", 100)
        partition = desk.send(RETURNS, ASK)
        process = await desk.start(lock_timeout_ms=100)
        await process.own(partition)
        async with holding_customer(desk, CUSTOMER):
            error = await fault_of(begin(process.serve(partition)))
            assert isinstance(error, asyncpg.LockNotAvailableError)
        assert [one.topic for one in await process.serve(partition)] == [COMPLETED]
        assert await desk.counts(RETURNS) == {"taken": 1, "completed": 1}

    async def test_a_customer_is_read_as_it_is_once_the_lock_is_had(self, desk: Desk) -> None:
        """Not as it was when the batch began to wait."""
        await desk.bought("R-1", 100)
        partition = desk.send(RETURNS, ASK, {**ASK, "idempotencyKey": "K2"})
        await desk.process.own(partition)
        update = "update customer set sequence = 7, forgotten = 7, status = 'fraud' where customer_id = $1"
        async with holding(desk, update, CUSTOMER):
            serving = begin(desk.process.serve(partition))
            await blocked(desk)
        published = await serving
        assert [one.refusal for one in published] == ["customer_not_eligible"] * 2
        assert [one.document["sequence"] for one in published] == [8, 9]

    async def test_the_decision_moment_is_read_once_the_lock_is_had(self, desk: Desk) -> None:
        desk.set_clock(None)
        await desk.bought("R-1", 100)
        partition = desk.send(RETURNS, ASK)
        await desk.process.own(partition)
        async with holding_customer(desk, CUSTOMER):
            serving = begin(desk.process.serve(partition))
            await blocked(desk)
            waited = await desk.value("select clock_timestamp()")
        [outcome] = await serving
        assert datetime.fromisoformat(outcome.document["createdAt"]) > waited

    async def test_an_identifier_changes_hands_while_a_return_waits(self, desk: Desk, met: list[BaseException]) -> None:
        """The return names somebody whom it did not lock: it is run again with that customer locked too."""
        await desk.bought("R-1", 100)
        phone = {"type": "PHONE", "value": "65"}
        partition = desk.send(RETURNS, {**ASK, "identifier": phone})
        await desk.process.own(partition)
        other = await desk.start()
        async with holding_customer(desk, CUSTOMER):
            serving = begin(desk.process.serve(partition))
            await blocked(desk)
            await other.serve(desk.send(CUSTOMERS, {"customerId": 7, "identifiers": [phone]}))
        [outcome] = await serving
        assert outcome.refusal == "customer_not_eligible"
        assert "another customer" in outcome.document["errors"][0]["message"]
        assert [type(error) for error in met] == [Restart]

    async def test_a_redemption_is_booked_for_another_while_its_return_waits(
        self, desk: Desk, met: list[BaseException]
    ) -> None:
        await desk.customer(7)
        await desk.lot("L-1", 100, customer_id=7)
        await desk.customer(CUSTOMER, ("PHONE", "65"))
        partition = desk.send(RETURNS, {**ASK, "identifier": {"type": "PHONE", "value": "65"}}, ASK)
        await desk.process.own(partition)
        other = await desk.start()
        async with holding_customer(desk, CUSTOMER):
            serving = begin(desk.process.serve(partition))
            await blocked(desk)
            await other.serve(desk.send(REDEMPTIONS, {"customerId": 7, "redemptionId": "R-1", "points": "50"}))
        refused, completed = await serving
        assert (refused.refusal, completed.topic) == ("customer_not_eligible", COMPLETED)
        assert [refused.document["sequence"], completed.document["sequence"]] == [1, 2]
        assert [type(error) for error in met] == [Restart]

    async def test_the_customer_whom_a_return_names_comes_into_being_while_it_waits(
        self, desk: Desk, met: list[BaseException]
    ) -> None:
        """Asked for, not there yet when the others were locked, and there with a redemption when all is loaded."""
        await desk.bought("R-1", 100)
        named = {"redemptionId": "R-2", "identifier": {"type": "ID", "value": "7"}, "idempotencyKey": "K2"}
        partition = desk.send(RETURNS, ASK, named)
        await desk.process.own(partition)
        other = await desk.start()
        async with holding_customer(desk, CUSTOMER):
            serving = begin(desk.process.serve(partition))
            await blocked(desk)
            await other.serve(desk.send(ISSUES, {"customerId": 7, "lotId": "L-1", "points": "50"}))
            await other.serve(desk.send(REDEMPTIONS, {"customerId": 7, "redemptionId": "R-2", "points": "50"}))
        assert [one.topic for one in await serving] == [COMPLETED, COMPLETED]
        assert [type(error) for error in met] == [Restart]

    async def test_a_new_customers_points_come_while_its_redemption_begins_to_wait(
        self, desk: Desk, proxy: Proxy
    ) -> None:
        """Both create the customer; the one that applies nothing takes it back, and the other goes on."""
        redeeming = desk.send(REDEMPTIONS, {"customerId": CUSTOMER, "redemptionId": "R-1", "points": "50"})
        issuing = desk.send(ISSUES, {"customerId": CUSTOMER, "lotId": "L-1", "points": "60"})
        far, other = await desk.start(proxy.url), await desk.start()
        await far.own(redeeming)
        async with before_its_commit(proxy, far.serve(redeeming)) as parking:
            booking = begin(other.serve(issuing))
            await blocked(desk)
        await asyncio.gather(parking, booking)
        assert await desk.waiting() == []
        assert await desk.held() == {"L-1": 10}
        assert await desk.counts(REDEMPTIONS) == {"taken": 1, "booked": 1}


async def test_lanes_at_once_over_the_same_customers_and_rewards(desk: Desk) -> None:
    """Four lanes in two processes, small batches in any order: every outcome once, each sum exact."""
    random = Random(7)
    customers, units = range(1, 7), 12
    for reward_id in ("bag", "mug"):
        await desk.put(
            "reward", org_id=ORG, reward_id=reward_id, max_total=72, redeemed_count=72, status="OUT_OF_STOCK"
        )
    for number in customers:
        reward_id = random.choice(["bag", "mug"])
        unit_based = {"type": "UNIT_BASED", "quantity": units, "reward_id": reward_id}
        await desk.bought(f"U-{number}", units, customer_id=number, **unit_based)
        await desk.bought(f"R-{number}", 20, customer_id=number)
    asks: list[Data] = [{"redemptionId": f"U-{n}", "quantity": 1} for n in customers for _ in range(units + 2)]
    asks += [{"redemptionId": f"R-{n}", "pointsToBeReversed": "1"} for n in customers for _ in range(20 + 2)]
    for index, ask in enumerate(asks):
        ask["idempotencyKey"] = f"K{index % 180}"
    random.shuffle(asks)
    await desk.start()
    work = []
    for lane in range(4):
        partition = desk.send(RETURNS, *asks[lane::4], number=lane)
        process: Process = desk.processes[lane % 2]
        await process.own(partition)
        work.append(process.serve(partition, batch=random.randint(3, 9)))
    published = [one for lane in await asyncio.gather(*work) for one in lane]
    assert len(published) == len(asks)
    completed = [one.document for one in published if one.topic == COMPLETED]
    keys = [document["idempotencyKey"] for document in completed]
    assert len(set(keys)) == len(keys)
    for number in customers:
        sequences = [one.document["sequence"] for one in published if one.document["customerId"] == number]
        assert sorted(sequences) == list(range(1, len(sequences) + 1))
    given_back = sum((await desk.reversed()).values())
    assert given_back == len(completed) == await desk.value("select count(*) from reversal")
    taken = await desk.rows("select reward_id, sum(reversed_quantity) from redemption where quantity > 0 group by 1")
    counts_left = dict(await desk.rows("select reward_id, redeemed_count from reward"))
    assert counts_left == {"bag": 72, "mug": 72} | {reward_id: 72 - back for reward_id, back in taken}


async def work_off(desk: Desk, process: Process, partition: Partition, random: Random) -> None:
    """Takes all of a partition in batches of any size, and looks at what waits every now and then."""
    lane = await process.own(partition)
    while lane.next_offset < len(partition.records):
        await process.publish(partition, await process.take(partition, random.choice([1, 3, 10, 40])))
        if random.random() < 0.3:
            await process.publish(partition, await process.pipeline.take_due(lane))


async def look_at_what_waits(desk: Desk) -> None:
    for process in desk.processes:
        for place in process.lanes:
            await process.serve_due(desk.partitions[place])


@pytest.mark.parametrize("seed", range(4))
async def test_a_stream_over_eight_lanes_at_once(desk: Desk, met: list[BaseException], seed: int) -> None:
    """Few customers, all topics, two processes: whatever the order, every record ends once and every sum is right."""
    random = Random(seed)
    stream = streams.sample(seed, customers=4, records=300)
    await import_stream(desk, stream)
    for record in stream.records:
        key, value, headers = streams.encode(record)
        number = crc32(key) % 2 if random.random() < 0.8 else random.randint(0, 1)
        desk.partition(record.kind, number).append(value, key=key, headers=headers)
    await desk.start()
    partitions = list(desk.partitions.values())
    owners = [desk.processes[index % 2] for index in range(len(partitions))]
    await asyncio.gather(
        *(work_off(desk, owner, partition, random) for owner, partition in zip(owners, partitions, strict=True))
    )
    await look_at_what_waits(desk)
    assert await desk.value(RELEASABLE) == 0
    assert await desk.broken() == {}
    assert await desk.value("select sum(taken) from lane") == len(stream.records)
    desk.set_clock(stream.clock + 5000 * SECOND)
    await look_at_what_waits(desk)
    assert await desk.waiting() == []
    published = [one for process in desk.processes for one in process.published]
    outcomes = [one for one in published if one.topic in (COMPLETED, FAILED)]
    assert len({one.header("ce_id") for one in outcomes}) == len(outcomes)
    assert [one for one in published if one.header("dlq.reason") == "decision_raised"] == []
    assert {type(error) for error in met} <= {Restart, asyncpg.UniqueViolationError}, "no deadlock"


async def test_identifiers_are_exchanged_on_two_lanes(desk: Desk) -> None:
    await desk.customer(1, ("PHONE", "651"))
    await desk.customer(2, ("PHONE", "652"))
    one = {"customerId": 1, "identifiers": [{"type": "PHONE", "value": "652"}]}
    two = {"customerId": 2, "identifiers": [{"type": "PHONE", "value": "651"}]}
    other = await desk.start()
    first, second = desk.send(CUSTOMERS, one), desk.send(CUSTOMERS, two, number=1)
    await desk.process.own(first)
    await other.own(second)
    async with holding_customer(desk, 1):
        both = begin(desk.process.serve(first)), begin(other.serve(second))
        await blocked(desk, 2)
    await asyncio.gather(*both)
    assert await desk.rows("select lookup, customer_id from identifier order by 1") == [("651", 2), ("652", 1)]
