"""The way of a batch through Postgres: fence, lock, load, decide, write, commit; and what happens when that fails.

A batch either commits whole or leaves nothing. A record that makes its batch fail is found by halving the batch until
it stands alone, and is then settled by itself (804 and dead letter); the others are decided as if it were not there.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import asyncpg

from service.batch import Batch, Settled
from service.commit import ENDS, settle_lanes, write
from service.events import decode
from service.failpoint import reach
from service.ledger import CustomerId, Waiting
from service.outbox import Outgoing, outgoing
from service.prefetch import prefetch, read_waiting
from service.records import Message, Record, Unreadable, uuid_text
from service.settings import Settings
from service.store import Connection, LaneLost, Restart, blames_a_record, columns, meets_another, sql

RESTARTS = 10  # another batch's commit can get in between so often before the cause is sought in the batch itself
ALONE = 2  # a record may fail alone so often before it is condemned


@dataclass(slots=True)
class Lane:
    """An input partition as its owner sees it. `position`: of the next outbox row; `acknowledged`: the outbox is on
    Kafka up to here; `waiting`: how many records may wait; `drained`: outbox rows of earlier owners, published again."""

    lane_id: int
    topic: str
    partition: int
    epoch: int
    next_offset: int
    high_offset: int
    last_offset: int | None
    last_timestamp_ms: int | None
    waiting: int
    position: int
    acknowledged: int = 0
    cleared: int = 0
    drained: int = 0


@dataclass(slots=True)
class Taken:
    """What a committed batch came to: what to publish (from `position` on), and figures for log and metrics."""

    records: int
    outbox: list[Outgoing]
    position: int
    settled: list[Settled]
    faults: list[tuple[Record, Exception]]
    newest_ms: int | None  # timestamp of the newest record
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Work:
    """What one transaction is to take: a lane's next records, or (`due`: at most how many) waiting ones.

    `bare`: without the waiting records that it would set free, which have lanes of their own to be taken up on.
    """

    records: list[Record]
    messages: list[Message]
    next_offset: int | None = None
    due: int = 0
    bare: bool = False
    condemned: Exception | None = None
    locked: set[CustomerId] = field(default_factory=set)

    @property
    def single(self) -> bool:
        """Whether it cannot be made smaller."""
        return max(len(self.records), self.due) <= 1


class Pipeline:
    """Takes batches of records through Postgres."""

    def __init__(self, pool: asyncpg.Pool, settings: Settings) -> None:
        self.pool = pool
        self.settings = settings
        self.new_id = Ids()

    async def take(
        self,
        lane: Lane,
        records: list[Record],
        next_offset: int,
        unreadable: dict[int, Unreadable] | None = None,
    ) -> list[Taken]:
        """Decide and write down a lane's next records; `next_offset`: where the lane goes on; `unreadable`: by offset,
        the records that Kafka could not hand over whole.

        More than one Taken, in order, where the batch had to be halved. Raises LaneLost where another process owns
        the lane, and whatever the world's faults raise; what was not committed then is as if never tried.
        """
        started = time.perf_counter()
        kind = self.settings.topics.inputs()[lane.topic]
        known = unreadable or {}
        most = self.settings.max_record_bytes
        messages = [known.get(record.offset) or decode(kind, record, most) for record in records]
        decoded = time.perf_counter() - started
        taken = await self._take(lane, Work(records, messages, next_offset))
        taken[0].seconds["decode"] = decoded
        return taken

    async def take_due(self, lane: Lane) -> list[Taken]:
        """Decide a lane's waiting records that are past their deadline or whose redemption has come."""
        return await self._take(lane, Work([], [], due=self.settings.release_records))

    async def _take(self, lane: Lane, work: Work) -> list[Taken]:
        restarts = alone = 0
        while True:
            try:
                return [await self._transact(lane, work)]
            except LaneLost:
                raise
            except Exception as error:
                if meets_another(error) and restarts < RESTARTS:
                    restarts += 1
                    work.locked |= error.customers if isinstance(error, Restart) else set()
                    await asyncio.sleep(0.01 * random.random() * (restarts - 1))  # noqa: S311
                    continue
                if not blames_a_record(error) or work.condemned is not None:
                    raise
                if not work.single:
                    return await self._halve(lane, work)
                if not work.bare:
                    work.bare = True  # what it sets free may be to blame, and must not take it along
                    continue
                alone += 1
                work.condemned = error if alone >= ALONE else None

    async def _halve(self, lane: Lane, work: Work) -> list[Taken]:
        if work.due:
            return await self._take(lane, Work([], [], due=1))
        middle = len(work.records) // 2
        first = Work(work.records[:middle], work.messages[:middle], work.records[middle].offset)
        second = Work(work.records[middle:], work.messages[middle:], work.next_offset)
        return [*await self._take(lane, first), *await self._take(lane, second)]

    async def _transact(self, lane: Lane, work: Work) -> Taken:
        stages = Stages()
        async with self.pool.acquire() as connection:
            async with connection.transaction():
                await self._fence(connection, lane)
                stages.note("fence")
                reach("fenced")
                due = await self._load_due(connection, lane, work) if work.due else []
                batch, created = await self._load(connection, lane, work, due)
                seen = await self._seen(connection, lane, work)
                stages.note("load")
                reach("loaded")
                self._decide(batch, work, due, seen)
                outbox = outgoing(batch.settled, self.settings)
                stages.note("decide")
                reach("decided")
                await write(connection, batch, created, outbox, lane.position)
                counts = await settle_lanes(connection, batch)
                cleared = await self._move(connection, lane, work, counts)
                stages.note("write")
                reach("written")
            stages.note("commit")
            reach("committed")
        position = lane.position
        lane.position += len(outbox)
        lane.cleared = cleared
        settled = sum(1 for one in batch.settled if one.waited and one.lane_id == lane.lane_id)
        lane.waiting = max(0, lane.waiting + len(batch.parked) - settled)
        if work.next_offset is not None:
            lane.next_offset = work.next_offset
            lane.high_offset = max(lane.high_offset, work.next_offset)
        newest_ms = work.records[-1].timestamp_ms if work.records else None
        return Taken(len(work.records), outbox, position, batch.settled, batch.faults, newest_ms, stages.seconds)

    async def _fence(self, connection: Connection, lane: Lane) -> None:
        row = await connection.fetchrow(sql("lock_lane"), lane.lane_id)
        if row is None or row["epoch"] != lane.epoch:
            raise LaneLost(f"{lane.topic}/{lane.partition} has another owner since epoch {lane.epoch}")
        if row["next_offset"] != lane.next_offset:
            raise LaneLost(f"{lane.topic}/{lane.partition} stands at {row['next_offset']}, not {lane.next_offset}")

    async def _load_due(self, connection: Connection, lane: Lane, work: Work) -> list[Waiting]:
        now = self.settings.test_clock or datetime.now(UTC)
        rows = await connection.fetch(sql("load_due"), lane.lane_id, now, work.due)
        return [read_waiting(row, self.settings.max_record_bytes) for row in rows]

    async def _load(
        self, connection: Connection, lane: Lane, work: Work, due: list[Waiting]
    ) -> tuple[Batch, set[CustomerId]]:
        """Under lock, all that the batch's decisions read. A condemned record's references are left alone."""
        messages = [] if work.condemned is not None else work.messages
        ledger, created = await prefetch(
            connection,
            messages,
            due=due if work.condemned is None else [],
            customers=work.locked,
            clock=self.settings.test_clock,
            release_records=0 if work.bare else self.settings.release_records,
            divisible=len(work.records) > 1,
            max_record_bytes=self.settings.max_record_bytes,
        )
        return Batch(ledger, lane.lane_id, self.settings.feed_wait_seconds, self.new_id), created

    async def _seen(self, connection: Connection, lane: Lane, work: Work) -> set[str]:
        """The outcome ids of records that have their outcome already: only below the lane's high offset, where a
        lane was reset to an earlier offset."""
        rows = [
            (message.org_id, record.offset, record.timestamp_ms, record.outcome_id)
            for record, message in zip(work.records, work.messages, strict=True)
            if record.offset < lane.high_offset and not isinstance(message, Unreadable)
        ]
        if not rows:
            return set()
        found = await connection.fetch(sql("load_seen"), lane.lane_id, *columns(rows, 4))
        return {row["outcome_id"] for row in found}

    def _decide(self, batch: Batch, work: Work, due: list[Waiting], seen: set[str]) -> None:
        for waiting in due:
            if work.condemned is not None:
                batch.condemn(waiting.record, waiting.message, work.condemned, waiting)
            else:
                batch.take_due(waiting)
        for record, message in zip(work.records, work.messages, strict=True):
            if record.outcome_id in seen:
                batch.repeat(record, message)
            elif work.condemned is not None and not isinstance(message, Unreadable):
                batch.condemn(record, message, work.condemned)
            else:
                batch.take(record, message)

    async def _move(self, connection: Connection, lane: Lane, work: Work, counts: Counter[str]) -> int:
        """Move the stored offset, and drop what is acknowledged from the outbox; returns up to which position."""
        last = work.records[-1] if work.records else None
        status = await connection.execute(
            sql("move_lane"),
            lane.lane_id,
            lane.epoch,
            lane.next_offset if work.next_offset is None else work.next_offset,
            last.offset if last else None,
            last.timestamp_ms if last else None,
            len(work.records),
            *(counts[end] for end in ENDS),
        )
        if status != "UPDATE 1":
            raise LaneLost(f"{lane.topic}/{lane.partition} was taken over within a transaction that had locked it")
        acknowledged = lane.acknowledged
        if acknowledged > lane.cleared:
            await connection.execute(sql("clear_outbox"), lane.lane_id, acknowledged, lane.epoch)
        return acknowledged


class Stages:
    """Seconds by stage of one batch."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def note(self, stage: str) -> None:
        """The stage that ends now."""
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now


class Ids:
    """Makes UUIDs of version 7 (RFC 9562): they begin with the time in ms, so that rows are appended to their index.

    74 random bits make each one unique; they are drawn for many ids at once.
    """

    def __init__(self) -> None:
        self._head = (-1, "")
        self._tails: Iterator[str] = iter(())

    def __call__(self) -> str:
        tail = next(self._tails, None)
        if tail is None:
            drawn = os.urandom(10 * 256).hex()
            tails = [uuid_text("0" * 12 + drawn[at : at + 20], 7)[13:] for at in range(0, len(drawn), 20)]
            self._tails = iter(tails)
            tail = next(self._tails)
        now_ms = time.time_ns() // 1_000_000
        if now_ms != self._head[0]:
            digits = f"{now_ms:012x}"
            self._head = now_ms, f"{digits[:8]}-{digits[8:]}"
        return self._head[1] + tail
