"""Several processes as one consumer group: partitions move between them under load, and nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from random import Random

import psutil
import pytest

from tests import stack as servers
from tests.process import Service, Site, site
from tests.stack import Stack, eventually
from tests.traffic import Traffic, send, verify

PARTITIONS = 4
LANES = 4 * PARTITIONS  # of four input topics
ASSIGNED = "points_reversal_assigned_partitions"
CHUNK = 60  # records sent at a time
AHEAD = 300  # at most so many wait to be decided


@dataclass
class Fleet:
    """A place with its stream, and the processes that share it."""

    site: Site
    traffic: Traffic
    running: list[Service]
    repeats: int = 0  # outcomes published more than once so far

    async def verify(self) -> int:
        """Everything that must hold, holds; returns how many outcomes came again since the last time."""
        before, self.repeats = self.repeats, (await verify(self.site)).repeats
        return self.repeats - before

    async def grow(self, **settings: str) -> Service:
        """One more process; returns when the group has settled: each lane has its one owner among those that run."""
        service = self.site.start(**settings)
        self.running.append(service)
        await service.says("service.started")
        await self.settled()
        return service

    async def settled(self, without: Service | None = None, timeout_seconds: float = 40) -> None:
        """Returns when the running processes (all but one) own all lanes between them, each its share."""
        owners = [one for one in self.running if one is not without]

        async def shares() -> bool:
            assert all(one.running for one in owners), [one.tail() for one in owners if not one.running]
            async with self.site.database() as connection:
                rows = await connection.fetch("select owner, count(*) as lanes from lane group by owner")
            owned = {row["owner"].rsplit(":", 1)[1]: row["lanes"] for row in rows}
            return owned.keys() == {str(one.process.pid) for one in owners} and sum(owned.values()) == LANES

        try:
            await eventually(shares, timeout_seconds, poll_seconds=0.05)
        except AssertionError as error:
            words = "\n".join(f"{one.name} ({one.process.pid}): {one.tail(30)}" for one in self.running)
            raise AssertionError(f"the group has not settled: {error}\n{words}") from error

    @contextlib.asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """A steady stream for the time of a `with` block, then everything is decided."""
        ending = asyncio.Event()

        async def feed() -> None:
            while not ending.is_set():
                await send(self.site, self.traffic.next(CHUNK))
                await eventually(self.caught_up, 60)

        feeding = asyncio.create_task(feed())
        try:
            yield
        finally:
            ending.set()
            await feeding
        await self.site.drained()

    async def caught_up(self) -> bool:
        """Whether so little is left to decide that more may come: the stream is never far ahead, and never dries up."""
        sent = self.traffic.numbers
        return bool(await self.site.value("select coalesce(sum(taken), 0) + $1 > $2 from lane", AHEAD, sent))

    async def busy(self) -> None:
        """Returns when more has been decided than now."""
        before = await self.site.value("select coalesce(sum(taken), 0) from lane")
        await eventually(lambda: self.site.value("select sum(taken) > $1 from lane", before), 30)


@pytest.fixture(scope="module")
def fleet(stack: Stack, template_database: str) -> Iterator[Fleet]:
    settings = {"batch_records": "40", "idle_in_transaction_timeout_ms": "1000", "lock_timeout_ms": "1500"}
    with site(stack, template_database, partitions=PARTITIONS, output_partitions=2, settings=settings) as place:
        traffic = Traffic(Random(5), customers=60, redemptions=20)
        servers.run(place.load(traffic.lines()))
        yield Fleet(place, traffic, [])


async def test_two_processes_share_the_partitions_as_one_group(fleet: Fleet) -> None:
    first = await fleet.grow()
    async with fleet.load():
        await fleet.busy()
        second = await fleet.grow()
        await fleet.busy()
        for service in (first, second):
            assert assigned(service) == LANES / 2
        before = len(second.said("batch.decided"))
        await eventually(lambda: len(second.said("batch.decided")) > before)
    assert first.said("partitions.revoked")
    await fleet.verify()


async def test_one_that_is_killed_under_load_is_continued_by_the_other(fleet: Fleet) -> None:
    while len(fleet.running) < 2:
        await fleet.grow()
    async with fleet.load():
        await fleet.busy()
        fleet.running.pop(0).kill()
        await fleet.settled()
        await fleet.busy()
    await fleet.verify()


async def test_one_that_is_told_to_stop_under_load_hands_over(fleet: Fleet) -> None:
    while len(fleet.running) < 2:
        await fleet.grow()
    async with fleet.load():
        await fleet.busy()
        leaving = fleet.running.pop(0)
        assert await leaving.stop() < 10
        await fleet.settled()
        await fleet.busy()
    assert not leaving.said("lane.doubt")
    await fleet.verify()


async def test_one_that_is_told_to_stop_in_the_middle_of_a_rebalance_takes_nothing_more(fleet: Fleet) -> None:
    while len(fleet.running) < 2:
        await fleet.grow()
    leaving, frozen = fleet.running
    frozen.freeze()  # the group waits for it, until its session is over
    revocations = len(leaving.said("partitions.revoked"))
    joining = fleet.site.start()
    await joining.says("partitions.revoked")
    await eventually(lambda: len(leaving.said("partitions.revoked")) > revocations)
    await send(fleet.site, fleet.traffic.next(CHUNK))
    for service in (leaving, joining):
        service.terminate()
    for service in (leaving, joining):
        assert await service.ended() == 0
        assert not service.said("lane.doubt")
    frozen.thaw()
    fleet.running = [frozen]
    await fleet.settled()
    await fleet.site.drained()
    assert await fleet.verify() == 0


@pytest.mark.parametrize("point", ["written", "committed", "published"])
async def test_one_that_freezes_and_wakes_as_a_zombie_changes_nothing(fleet: Fleet, point: str) -> None:
    """Frozen in a transaction it must not hold what it locked; frozen after, it may publish again, byte for byte."""
    while len(fleet.running) < 1:
        await fleet.grow()
    async with fleet.load():
        zombie = await fleet.grow(test_failpoint=f"{point}:9:freeze")
        await eventually(lambda: is_frozen(zombie), 30)
        await fleet.settled(without=zombie)
        await fleet.busy()
        zombie.thaw()
        await fleet.settled()  # it is back as a member among others
        await fleet.busy()
    repeats = await fleet.verify()
    if point == "published":
        assert repeats > 0
    fleet.running.remove(zombie)
    assert await zombie.stop() < 10
    await fleet.settled()


def is_frozen(service: Service) -> bool:
    """Whether it has stopped itself."""
    return psutil.Process(service.process.pid).status() == psutil.STATUS_STOPPED


def assigned(service: Service) -> float:
    """How many partitions it says it has."""
    values = [line.split()[1] for line in service.get("/metrics")[1].splitlines() if line.startswith(ASSIGNED)]
    return float(values[0])


async def test_one_more_than_there_are_partitions_is_ready_and_waits_its_turn(
    stack: Stack, template_database: str
) -> None:
    with site(stack, template_database, partitions=1) as place:
        services = [place.start() for _ in range(5)]
        for service in services:
            await service.ready()
        await eventually(lambda: sorted(map(assigned, services)) == [0, 1, 1, 1, 1])
        [waiting] = [service for service in services if not assigned(service)]
        assert waiting.get("/readyz") == (200, "ready\n")
        for service in services:
            service.terminate()
        for service in services:
            assert await service.ended() == 0


async def test_all_told_to_stop_at_once_leave_in_order(fleet: Fleet) -> None:
    while len(fleet.running) < 2:
        await fleet.grow()
    for service in fleet.running:
        service.terminate()
    for service in fleet.running:
        assert await service.ended() == 0


async def test_of_two_by_one_name_the_earlier_ends_and_says_why(stack: Stack, template_database: str) -> None:
    named = {"kafka__group_instance_id": "one"}
    with site(stack, template_database, settings=named) as place:
        traffic = Traffic(Random("name"), customers=10)
        await place.load(traffic.lines())
        first = place.start()
        await first.ready()
        second = place.start()
        assert await first.ended(40) == 2
        [broken] = first.said("service.broken")
        assert "REVERSAL_KAFKA__GROUP_INSTANCE_ID" in broken["reason"]
        await send(place, traffic.next(100))
        await place.drained()
        assert second.running
        assert not second.said("service.broken")
        await second.stop()
        await verify(place)
