"""The way of a batch through Postgres: lock, load, decide, write, commit; and what happens when that fails.

A batch either commits whole or leaves nothing. A record that makes its batch fail is found by halving the batch until
it stands alone, and is then settled by itself (804 and dead letter); the others are decided as if it were not there.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import asyncpg

from service.batch import Batch, Settled
from service.commit import Share, write
from service.events import decode
from service.failpoint import reach
from service.ledger import CustomerId, Ledger, Waiting
from service.outbox import Outgoing, outgoing
from service.prefetch import Needs, lock, prefetch, read_waiting
from service.records import Message, Record, Unreadable, uuid_text
from service.settings import Settings
from service.store import Connection, LaneLost, Restart, blames_a_record, columns, meets_another, sql

RESTARTS = 10  # another batch's commit can get in between so often before the cause is sought in the batch itself
SMALL = 100  # a batch of fewer records shares its transaction with those of other lanes
HELD_UP_SECONDS = 0.1  # for so long the next small ones, and the lanes of one transaction, wait for what another holds
GATHER_SECONDS = 0.001  # so soon those of a small transaction are back with what came meanwhile, for the next
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


Small = tuple[Lane, Work, "asyncio.Future[Taken | None]"]


class Pipeline:
    """Takes batches of records through Postgres."""

    def __init__(self, pool: asyncpg.Pool, settings: Settings) -> None:
        self.pool = pool
        self.settings = settings
        self.new_id = Ids()
        self._small: list[Small] = []  # batches that wait for the transaction of small ones under way
        self._together: asyncio.Task[None] | None = None
        self._taking: set[asyncio.Task[None]] = set()

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
        work = Work(records, messages, next_offset)
        together = await self._take_together(lane, work) if len(records) < SMALL else None
        taken = await self._take(lane, work) if together is None else [together]
        taken[0].seconds["decode"] = decoded
        return taken

    async def take_due(self, lane: Lane) -> list[Taken]:
        """Decide a lane's waiting records that are past their deadline or whose redemption has come."""
        return await self._take(lane, Work([], [], due=self.settings.release_records))

    async def _take_together(self, lane: Lane, work: Work) -> Taken | None:
        """What a small batch comes to in a transaction with those of other lanes that came while the one before was under
        way: a transaction takes milliseconds, however little it does. None where it has to be tried by itself."""
        taken: asyncio.Future[Taken | None] = asyncio.get_running_loop().create_future()
        self._small.append((lane, work, taken))
        if self._together is None or self._together.done():
            self._together = asyncio.create_task(self._take_small())
        return await taken

    async def _take_small(self) -> None:
        """One transaction after the other; one that is held up (by a lock of another process) does not hold up the next."""
        while self._small:
            ready, self._small = [one for one in self._small if not one[2].done()], []
            for some in _bounded(ready, self.settings):
                taking = asyncio.create_task(self._transact_small(some))
                self._taking.add(taking)
                taking.add_done_callback(self._taking.discard)
                await asyncio.wait([taking], timeout=HELD_UP_SECONDS)
            await asyncio.sleep(GATHER_SECONDS)

    async def _transact_small(self, batches: list[Small]) -> None:
        """Hand each worker what its batch came to. The world's faults are those of all; for what else went wrong (a
        record, a lost lane, another's change or lock) each batch is to be tried by itself."""
        ended: Sequence[Taken | None] = [None] * len(batches)
        failed: Exception | None = None
        try:
            ended = await self._transact([(lane, work) for lane, work, _ in batches])
        except Exception as error:
            held_up = isinstance(error, asyncpg.LockNotAvailableError) and len(batches) > 1
            if isinstance(error, Restart):
                for _, work, _ in batches:
                    work.locked |= error.customers
            if not held_up and not meets_another(error) and not blames_a_record(error):
                failed = error
        for (_, _, taken), one in zip(batches, ended, strict=True):
            if taken.done():  # its worker was ended meanwhile
                continue
            if failed is None:
                taken.set_result(one)
            else:
                taken.set_exception(failed)

    async def _take(self, lane: Lane, work: Work) -> list[Taken]:
        restarts = alone = 0
        while True:
            try:
                return await self._transact([(lane, work)])
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

    async def _transact(self, works: Sequence[tuple[Lane, Work]]) -> list[Taken]:
        stages = Stages()
        async with self.pool.acquire() as connection:
            async with connection.transaction():
                due = [await self._load_due(connection, lane, work) if work.due else [] for lane, work in works]
                ledger, created = await self._lock_and_load(
                    connection, works, [one for some in due for one in some], stages
                )
                seen = [await self._seen(connection, lane, work) for lane, work in works]
                stages.note("load")
                reach("loaded")
                parked: dict[str, Waiting] = {}
                shares = []
                for (lane, work), waiting, passed in zip(works, due, seen, strict=True):
                    batch = Batch(ledger, lane.lane_id, self.settings.feed_wait_seconds, self.new_id, parked)
                    self._decide(batch, work, waiting, passed)
                    shares.append(self._share(lane, work, batch))
                stages.note("decide")
                reach("decided")
                await write(connection, ledger, created, shares)
                stages.note("write")
                reach("written")
            stages.note("commit")
            reach("committed")
        return [
            self._taken(lane, work, share, stages.seconds) for (lane, work), share in zip(works, shares, strict=True)
        ]

    async def _lock_and_load(
        self, connection: Connection, works: Sequence[tuple[Lane, Work]], due: list[Waiting], stages: Stages
    ) -> tuple[Ledger, set[CustomerId]]:
        """All that the decisions read, and the customers that were created. A lane's row fences it. A condemned record's
        references are left alone."""
        messages = [message for _, work in works for message in work.messages]
        if any(work.condemned is not None for _, work in works):  # alone in its transaction
            due, messages = [], []
        needs = Needs.of([*messages, *(one.message for one in due)])
        customers = {one for _, work in works for one in work.locked}
        patience = f"{HELD_UP_SECONDS}s" if len(works) > 1 else None  # one lane's wait is not to be the others'
        locked = await lock(connection, [lane.lane_id for lane, _ in works], needs, customers, patience)
        for lane, _ in works:
            epoch, offset = locked.lanes.get(lane.lane_id, (0, 0))
            if epoch != lane.epoch:
                raise LaneLost(f"{lane.topic}/{lane.partition} has another owner since epoch {lane.epoch}")
            if offset != lane.next_offset:
                raise LaneLost(f"{lane.topic}/{lane.partition} stands at {offset}, not {lane.next_offset}")
        stages.note("lock")
        reach("locked")
        ledger = await prefetch(
            connection,
            needs,
            locked,
            due=due,
            clock=self.settings.test_clock,
            release_records=0 if any(work.bare for _, work in works) else self.settings.release_records,
            divisible=sum(len(work.records) for _, work in works) > 1,
            max_record_bytes=self.settings.max_record_bytes,
        )
        return ledger, locked.created

    async def _load_due(self, connection: Connection, lane: Lane, work: Work) -> list[Waiting]:
        now = self.settings.test_clock or datetime.now(UTC)
        rows = await connection.fetch(sql("load_due"), lane.lane_id, now, work.due)
        return [read_waiting(row, self.settings.max_record_bytes) for row in rows]

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

    def _share(self, lane: Lane, work: Work, batch: Batch) -> Share:
        return Share(
            batch=batch,
            outbox=outgoing(batch.settled, self.settings),
            epoch=lane.epoch,
            next_offset=lane.next_offset if work.next_offset is None else work.next_offset,
            last=work.records[-1] if work.records else None,
            taken=len(work.records),
            acknowledged=lane.acknowledged,
            position=lane.position,
        )

    def _taken(self, lane: Lane, work: Work, share: Share, seconds: dict[str, float]) -> Taken:
        """Note what is committed."""
        batch = share.batch
        lane.position += len(share.outbox)
        lane.cleared = share.acknowledged
        parked = sum(1 for one in batch.parked.values() if one.lane_id == lane.lane_id)
        settled = sum(1 for one in batch.settled if one.waited and one.lane_id == lane.lane_id)
        lane.waiting = max(0, lane.waiting + parked - settled)
        lane.next_offset = share.next_offset
        lane.high_offset = max(lane.high_offset, share.next_offset)
        newest_ms = share.last.timestamp_ms if share.last else None
        return Taken(
            len(work.records), share.outbox, share.position, batch.settled, batch.faults, newest_ms, dict(seconds)
        )


def _bounded(batches: list[Small], settings: Settings) -> Iterator[list[Small]]:
    """The batches in groups that are within the bounds of one."""
    group: list[Small] = []
    records = size = 0
    for one in batches:
        more = sum(record.size for record in one[1].records)
        if group and (records + len(one[1].records) > settings.batch_records or size + more > settings.batch_bytes):
            yield group
            group, records, size = [], 0, 0
        group.append(one)
        records, size = records + len(one[1].records), size + more
    if group:
        yield group


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
