"""What every run of a fault shares: a place with a steady stream, the judgement at its end, and the figures of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any, Self

import asyncpg
from aiokafka.errors import KafkaError

from tests.agreement import differences
from tests.process import Service, Site
from tests.stack import eventually
from tests.traffic import Findings, Traffic, send, verify

# How often each fault is injected, or for how long: in the dose for every change, and in the one for the night.
DOSES: dict[str, tuple[int, int]] = {
    "kills": (60, 750),
    "records between kills": (334, 134),
    "Kafka restarts": (3, 30),
    "Postgres restarts": (5, 50),
    "network": (10, 100),
    "rebalances, seconds": (60, 900),
    "stream, records": (3_000, 20_000),
    "contention, rounds": (50, 1_000),
    "clock, runs": (3, 60),
    "beside a calm run, parts": (2, 20),
}
AWAY = (OSError, TimeoutError, KafkaError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
CHUNK = 60  # records that the steady stream sends at a time
AHEAD = 400  # as long as fewer than so many wait to be decided
POLL_SECONDS = 0.02
AWAY_SECONDS = 0.5  # the stream tries again after so long when Kafka is away
LAST_SECONDS = 120.0  # what is left at the end of a run is decided within so long


@dataclass
class Figures:
    """What a run came to; a row of build/faults.json."""

    fault: str
    dose: int
    records: int = 0
    repeats: int = 0
    differences: int | None = None  # None: the run failed before they were counted
    longest_recovery_seconds: float = 0.0

    def row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Trial:
    """One run: `async with trial:` watches how far the service is; `finish` judges it.

    A recovery lasts from the end of a fault until the next record is decided; where the run waits for it, until all
    that was sent before is decided and published.
    """

    site: Site
    figures: Figures
    random: Random
    traffic: Traffic
    lines: list[dict[str, Any]] | None = None  # load lines; None: the traffic's own
    sent: int = 0
    taken: int = 0
    recoveries: list[float] = field(default_factory=list)
    _ended_at: float | None = None  # when the fault ended from which it has not recovered
    _taken_then: int | None = None
    _watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.site.load(self.traffic.lines() if self.lines is None else self.lines)
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._watching is not None
        self._watching.cancel()
        await asyncio.wait([self._watching])

    async def feed(self, count: int) -> None:
        """Sends the next records of the stream."""
        await send(self.site, self.traffic.next(count))
        self.sent += count

    @contextlib.asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """A steady stream for the time of a `with` block, never far ahead, never dry while Kafka answers."""
        ending = asyncio.Event()

        async def flow() -> None:
            while not ending.is_set():
                try:
                    if self.sent - self.taken < AHEAD:
                        await asyncio.wait_for(self.feed(CHUNK), 10)
                    await asyncio.sleep(POLL_SECONDS)
                except AWAY:  # what was sent of it is read back from the topics
                    await asyncio.sleep(AWAY_SECONDS)

        task = asyncio.create_task(flow())
        try:
            yield
        finally:
            ending.set()
            await task

    def fault_ended(self) -> None:
        """From now on it has to recover; where it has not from the fault before, the time runs on."""
        if self._ended_at is None:
            self._ended_at, self._taken_then = time.monotonic(), None

    async def recovered(self, timeout_seconds: float = 60) -> float:
        """Returns when all that was sent before the last fault's end is decided and published, and the seconds since
        then; fails when it lasts."""
        assert self._ended_at is not None or self.recoveries
        ended_at, moment = self._ended_at or time.monotonic(), datetime.now(UTC)
        sent = sum((await self.site.ends()).values())

        async def caught_up() -> bool:
            if self._ended_at is not None or self.taken < sent:
                return False
            return not await self.site.value("select count(*) from outbox where created_at < $1", moment)

        try:
            await eventually(caught_up, timeout_seconds)
        except AssertionError:
            words = "\n".join(f"{one.name}: {one.tail()}" for one in self.site.services if one.running)
            raise AssertionError(f"not recovered for {timeout_seconds:g} s after a fault:\n{words}") from None
        self.recoveries.append(time.monotonic() - ended_at)
        return self.recoveries[-1]

    async def moves(self, records: int, timeout_seconds: float = 40) -> None:
        """Returns when so many more records are decided, or (nothing is sure under a fault) when the time is up."""
        aim = self.taken + records
        with contextlib.suppress(AssertionError):
            await eventually(lambda: self.taken >= aim, timeout_seconds)

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(*AWAY):
                async with self.site.database() as connection:
                    while True:
                        await self._look(connection)
                        await asyncio.sleep(POLL_SECONDS)
            await asyncio.sleep(POLL_SECONDS)

    async def _look(self, connection: asyncpg.Connection) -> None:
        taken = await connection.fetchval("select coalesce(sum(taken), 0)::int from lane")
        if self._ended_at is not None:
            if self._taken_then is None:
                self._taken_then = taken
            elif taken > self._taken_then:
                self.recoveries.append(time.monotonic() - self._ended_at)
                self._ended_at = None
        self.taken = taken

    async def finish(self, *survivors: Service, most_seconds: float = LAST_SECONDS) -> Findings:
        """Lets the stream drain, stops the processes that still run, and judges all that came of it."""
        await self.site.drained(most_seconds)
        for service in survivors:
            await service.stop()
        return await self.judge()

    async def judge_ledger(self) -> None:
        """What can be asked where a topic went with all that lay in it."""
        await self.site.audit()
        self.site.check_logs()
        self.figures.records, self.figures.differences = await self.site.value("select sum(taken)::int from lane"), 0

    async def judge(self) -> Findings:
        """Everything that issue 4 asks after each run, once the stream is drained."""
        findings = await verify(self.site)
        self.site.check_logs()
        figures = self.figures
        figures.records += sum(map(len, findings.inputs.values()))
        figures.repeats += findings.repeats
        figures.longest_recovery_seconds = max([figures.longest_recovery_seconds, *self.recoveries])
        found = await differences(self.site, findings)
        figures.differences = (figures.differences or 0) + len(found)
        assert not found, "\n".join([f"{len(found)} differences from the model", *found[:3]])
        return findings
