"""Kafka in: which partitions this process has, and one worker for each that takes its records in order.

A worker owns its lane, seeks to the stored offset and goes on from there; on any doubt it starts again from what is
stored. Postgres is the truth; offsets committed to Kafka only serve tools that show lag.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import asyncpg
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import (
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)

from service.corrupt import BROKEN, read_unchecked
from service.failpoint import reach
from service.kafka import client_options, explained, input_bytes
from service.lane import Publisher, Unpublishable, clear, own, publish
from service.logs import log, words
from service.membership import name_is_taken
from service.metrics import Metrics
from service.pipeline import Lane, Pipeline, Taken
from service.records import DeadLetterReason, Record, Unreadable
from service.settings import Settings
from service.store import LaneLost, sql
from service.topics import check

# What a server that is away makes of what is under way; the last one where a connection ends in the middle of a COPY.
WORLD = (
    KafkaError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    OSError,
    TimeoutError,
    asyncpg.InternalClientError,
)
POLL_MS = 100  # without records, a worker with something left to do (acknowledge, clear) looks after it this often
IDLE_MS = 1000  # one with nothing left to do is woken by records, or to stop
DUE_SECONDS = 1.0  # waiting records are looked up again this often
STILL_SECONDS = 1.5  # a worker that is to end and gets nowhere for so long is ended: a server is away
LEAVE_SECONDS = 3.0  # leaving the group may take so long: a rebalance under way holds it up
HURRY_SECONDS = 0.5  # and so long where a worker had to be ended
COMMIT_SECONDS = 5.0  # offsets go to Kafka this often, for tools that show lag
LOOK_SECONDS = 5.0  # a stopped or idle lane looks this often whether somebody mended or reset it
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.1, 5.0
PEEK_SECONDS = 5.0  # reading the last record again on assignment may take so long


class LaneStopped(Exception):
    """A lane cannot go on without a person; the message names the lane, what is wrong, and the way out."""


class Intake(ConsumerRebalanceListener):  # type: ignore[misc]
    """The process's consumer with a worker for each partition it was given."""

    def __init__(
        self, settings: Settings, pool: asyncpg.Pool, publisher: Publisher, metrics: Metrics, owner: str
    ) -> None:
        self.settings = settings
        self.pool = pool
        self.publisher = publisher
        self.metrics = metrics
        self.owner = owner
        self.pipeline = Pipeline(pool, settings)
        self.workers: dict[TopicPartition, Worker] = {}
        self.assigned = False  # the group has answered, if only with no partition
        self.drained = True
        self.stopping = False  # a rebalance under way gives no more work
        self.fenced = asyncio.Event()  # another process has this one's name in the group
        self.committing: asyncio.Task[None] | None = None
        self.rejoining_since: float | None = None  # since when the group has taken partitions back and given none
        self.consumer = AIOKafkaConsumer(
            **client_options(settings.kafka),
            group_id=settings.kafka.group_id,
            group_instance_id=settings.kafka.group_instance_id,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            session_timeout_ms=settings.kafka.session_timeout_ms,
            heartbeat_interval_ms=settings.kafka.heartbeat_interval_ms,
            rebalance_timeout_ms=settings.kafka.rebalance_timeout_ms,
            max_poll_interval_ms=2**31 - 1,  # a worker that waits for Postgres must not lose its place in the group
            fetch_max_wait_ms=settings.kafka.fetch_max_wait_ms,
            max_partition_fetch_bytes=input_bytes(settings),
            metadata_max_age_ms=10_000,
            partition_assignment_strategy=(RoundRobinPartitionAssignor,),
        )

    async def start(self) -> Intake:
        """Join the group; returns when it has given partitions, or none. Raises KafkaError where the brokers do not
        answer, TopicsMissing where they lack a topic."""
        await check(self.settings)
        self.consumer.subscribe(topics=list(self.settings.topics.inputs()), listener=self)
        await self.consumer.start()
        return self

    async def drain(self) -> None:
        """Finish what is under way. Bounded by drain_seconds, and much less where a server is away."""
        self.stopping = True
        workers = dict(self.workers)
        self.drained = await self._end_workers(list(workers), self.settings.drain_seconds)
        if self.drained:
            await self.commit(workers, 2 * HURRY_SECONDS)

    async def leave(self) -> None:
        """Leave the group, once drained."""
        self.stopping = True
        # A task of its own: with the brokers away aiokafka's stop raises the CancelledError of a fetch under way.
        leaving = asyncio.create_task(self.consumer.stop())
        await asyncio.wait([leaving], timeout=LEAVE_SECONDS if self.drained else HURRY_SECONDS)
        if not leaving.done():
            leaving.cancel()
            await asyncio.wait([leaving], timeout=HURRY_SECONDS)
        if not leaving.done() or leaving.cancelled() or leaving.exception() is not None:
            log.warning("service.stopping", error=f"leaving the group: {end_of(leaving)}")

    async def answers(self) -> None:
        """Raises KafkaError or OSError where the brokers do not answer."""
        assigned = self.consumer.assignment()
        if assigned:
            await self.consumer.end_offsets([min(assigned)])
        else:
            await self.consumer.topics()

    @property
    def rebalance_seconds(self) -> float:
        return self.settings.kafka.rebalance_timeout_ms / 1000

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """The group takes partitions back: their batches are finished first."""
        gone = [partition for partition in revoked if partition in self.workers]
        self.metrics.rebalances.inc()
        self.rejoining_since = time.monotonic()
        if gone:
            reach("revoked")
        await self._end_workers(gone, self.rebalance_seconds / 2)
        log.info("partitions.revoked", partitions=_names(gone))
        if await self._has_lost_its_name():
            self.fenced.set()
            raise asyncio.CancelledError  # else aiokafka joins again, and takes the name from the other in turn

    async def _has_lost_its_name(self) -> bool:
        coordinator = self.consumer._coordinator  # nothing else tells a lost membership from a rebalance
        if self.settings.kafka.group_instance_id is None or not self.assigned or coordinator.member_id:
            return False
        try:
            return await asyncio.wait_for(name_is_taken(self.settings), LOOK_SECONDS)
        except (KafkaError, TimeoutError, OSError) as error:
            log.warning("service.waiting", server="Kafka", reason=words(error))
            return False

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """The group gives partitions: each gets a worker."""
        partitions = list(assigned)
        await self._end_workers([one for one in self.workers if one not in partitions], 1)
        for partition in partitions:
            if partition not in self.workers and not self.stopping:
                self.workers[partition] = Worker(self, partition)
        self.assigned = True
        self.rejoining_since = None
        self.metrics.assigned.set(len(self.workers))
        log.info("partitions.assigned", partitions=_names(partitions))

    async def _end_workers(self, partitions: list[TopicPartition], seconds: float) -> bool:
        """Have workers finish what is under way, for as long as they get on with it; whether all of them did."""
        workers = [self.workers.pop(partition) for partition in partitions if partition in self.workers]
        for worker in workers:
            worker.stopping.set()
        deadline = time.monotonic() + seconds
        left, gets_on = {worker.task for worker in workers}, True
        while left and gets_on and time.monotonic() < deadline:
            before = [worker.progress for worker in workers]
            done, left = await asyncio.wait(left, timeout=min(STILL_SECONDS, deadline - time.monotonic()))
            gets_on = bool(done) or before != [worker.progress for worker in workers]
        for task in left:  # what it leaves undone is undone in Postgres too: the next owner goes on from there
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=1)
        self.metrics.assigned.set(len(self.workers))
        return not left

    async def commit(
        self, workers: dict[TopicPartition, Worker] | None = None, seconds: float = COMMIT_SECONDS
    ) -> None:
        """Tell Kafka how far the lanes are, for tools that show lag; nothing here depends on it."""
        workers = self.workers if workers is None else workers
        offsets = {
            partition: worker.lane.next_offset
            for partition, worker in workers.items()
            if worker.lane is not None and worker.lane.next_offset != worker.told
        }
        # One that still tries is left alone: cancelled, aiokafka leaves a request behind whose failure nobody hears of.
        if not offsets or (self.committing is not None and not self.committing.done()):
            return
        self.committing = asyncio.create_task(self._commit(offsets, workers))
        await asyncio.wait([self.committing], timeout=seconds)

    async def _commit(self, offsets: dict[TopicPartition, int], workers: dict[TopicPartition, Worker]) -> None:
        try:
            await self.consumer.commit(offsets)
        except (KafkaError, OSError) as error:
            log.debug("partitions.assigned", error=words(error))
            return
        for partition, offset in offsets.items():
            if partition in workers:  # else it was taken back meanwhile
                workers[partition].told = offset


class Worker:
    """Takes one partition's records, batch after batch; while one is published the next is already in Postgres."""

    def __init__(self, intake: Intake, partition: TopicPartition) -> None:
        self.intake = intake
        self.partition = partition
        self.name = f"{partition.topic}/{partition.partition}"
        self.lane: Lane | None = None
        self.told = -1  # the offset last committed to Kafka
        self.stopped: str | None = None  # why the lane cannot go on
        self.looked_at = time.monotonic()
        self.doubt: Exception | None = None  # why the lane does not go on just now
        self.doubt_since = 0.0
        self.stopping = asyncio.Event()
        self.publishing: asyncio.Task[None] | None = None
        self.held: list[Record] = []
        self.task = asyncio.create_task(self._run(), name=self.name)

    async def _run(self) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        while not self.stopping.is_set():
            started = time.monotonic()
            try:
                await self._own()
                await self._flow()
            except asyncio.CancelledError:
                raise
            except (LaneStopped, Unpublishable) as error:
                if self.stopped != str(error):
                    log.error("lane.stopped", lane=self.name, reason=str(error))
                self.stopped, self.doubt = str(error), None
                await self._pause(LOOK_SECONDS)
            except LaneLost as error:
                log.warning("lane.lost", lane=self.name, reason=str(error))
                self.doubt = None
                await self._pause(random.uniform(0.1, 1))  # noqa: S311
            except Exception as error:
                self._log_doubt(error)
                if isinstance(error, TimeoutError):  # silence: the other connections may be as dead as this one
                    await self.intake.pool.expire_connections()
                if time.monotonic() - started > LONGEST_BACKOFF_SECONDS * 2:
                    backoff = FIRST_BACKOFF_SECONDS
                await self._pause(random.uniform(backoff / 2, backoff))  # noqa: S311
                backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)
            finally:
                await self._abandon_publication()

    @property
    def progress(self) -> tuple[int, int, int] | None:
        """What moves while it gets on."""
        return None if self.lane is None else (self.lane.next_offset, self.lane.acknowledged, self.lane.cleared)

    def _log_doubt(self, error: Exception) -> None:
        """Say it once of a wait: with a server away it is every lane's, again and again."""
        world = isinstance(error, WORLD)
        reason = explained(self.intake.settings.kafka, error)
        said = world and self.doubt is not None and reason == explained(self.intake.settings.kafka, self.doubt)
        self.doubt_since = time.monotonic() if self.doubt is None else self.doubt_since
        self.doubt = error
        (log.debug if said else log.warning)(
            "lane.doubt",
            lane=self.name,
            error=reason,
            since_seconds=round(time.monotonic() - self.doubt_since, 1),
            exc_info=None if world else error,
        )

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)

    async def _own(self) -> None:
        """Fence, drain the outbox, check that the topic is still the one that was read, seek to the stored offset."""
        self.held = []
        intake = self.intake
        self.lane = lane = await own(
            intake.pool, intake.publisher, self.partition.topic, self.partition.partition, intake.owner
        )
        try:
            await self._check_topic(lane)
        except OffsetOutOfRangeError:
            await self._out_of_range(lane)
        self._seek(lane.next_offset)
        log.info("lane.owned", lane=self.name, epoch=lane.epoch, offset=lane.next_offset, drained=lane.drained)
        self.stopped = None

    def _seek(self, offset: int) -> None:
        try:
            self.intake.consumer.seek(self.partition, offset)
        except IllegalStateError as error:
            raise LaneLost(f"{self.name} is not assigned any more") from error

    async def _check_topic(self, lane: Lane) -> None:
        """Read the last record taken once more: another timestamp there means that the topic was recreated."""
        if lane.last_offset is None or lane.next_offset == 0:
            return
        self._seek(lane.last_offset)
        deadline = time.monotonic() + PEEK_SECONDS
        while not (records := await self._peek()):
            if self.stopping.is_set():
                return
            if time.monotonic() > deadline:
                start, end = await self._ends()
                if not start <= lane.next_offset <= end:
                    await self._out_of_range(lane)
                if end <= lane.last_offset + 1 or start > lane.last_offset:
                    return  # nothing to compare with
                raise TimeoutError(f"{self.name} does not answer for offset {lane.last_offset}")
        found = records[0]
        if found is not None and found.offset == lane.last_offset and found.timestamp != lane.last_timestamp_ms:
            raise LaneStopped(
                f"{self.name}@{lane.last_offset} has the timestamp {found.timestamp}, the record taken there had "
                f"{lane.last_timestamp_ms}: the topic was recreated. Nothing is taken until `points-reversal lanes "
                f"reset {self.partition.topic} {self.partition.partition} --to start` says to read it from its start"
            )

    async def _peek(self) -> list[ConsumerRecord | None]:
        """The record sought; None in its place where it is broken: then there is nothing to compare."""
        try:
            return list(await self._fetch(1))
        except BROKEN:
            return [None]

    async def _ends(self) -> tuple[int, int]:
        starts = await self.intake.consumer.beginning_offsets([self.partition])
        ends = await self.intake.consumer.end_offsets([self.partition])
        return starts[self.partition], ends[self.partition]

    async def _out_of_range(self, lane: Lane) -> None:
        """The stored offset, or the record before it, is not in the log."""
        start, end = await self._ends()
        if start <= lane.next_offset <= end:
            return  # only the record before it is gone
        if lane.next_offset == 0 and lane.last_offset is None and lane.high_offset == 0:
            # a new lane begins at the log's start, wherever that is
            lane.next_offset = 0
            self._seek(start)
            return
        cause = "retention has passed it" if lane.next_offset < start else "the topic was recreated or cut"
        raise LaneStopped(
            f"{self.name} stands at the stored offset {lane.next_offset}, the log is {start} to {end}: {cause}. "
            f"Nothing is taken until `points-reversal lanes reset {self.partition.topic} {self.partition.partition} "
            f"--to start` (or end, or an offset) says where to go on; it tells what that skips or repeats"
        )

    async def _fetch(self, most: int, wait_ms: int = POLL_MS) -> list[ConsumerRecord]:
        """The partition's next records, in order; none after `wait_ms` or when the worker is to stop.

        `getmany` waits for as long as a rebalance takes, so it is left as soon as the worker is to stop; it holds no
        records while it waits, so none are lost with it.
        """
        fetch = asyncio.ensure_future(
            self.intake.consumer.getmany(self.partition, timeout_ms=wait_ms, max_records=most)
        )
        stopping = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait({fetch, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not fetch.done():
                return []
            return list(fetch.result().get(self.partition, ()))
        except NoOffsetForPartitionError:
            return []  # from before the seek
        finally:
            fetch.cancel()
            stopping.cancel()

    async def _flow(self) -> None:
        """Batch after batch until the worker is to stop; then publish the last one and clear the outbox."""
        lane = self.lane
        assert lane is not None
        linger_seconds = self.intake.settings.outbox_linger_ms / 1000
        busy_at = due_at = time.monotonic()
        while not self.stopping.is_set():
            records, unreadable = await self._next(lane)
            self.doubt = None  # both servers answer
            if records:
                taken = await self.intake.pipeline.take(lane, records, records[-1].offset + 1, unreadable)
                await self._publish(lane, taken)
                busy_at = time.monotonic()
            elif self.publishing is not None and self.publishing.done():
                await self._published()
            elif time.monotonic() - busy_at > linger_seconds and lane.acknowledged > lane.cleared:
                await clear(self.intake.pool, lane)
            if lane.waiting and time.monotonic() - due_at > DUE_SECONDS:
                due_at = time.monotonic()
                await self._publish(lane, await self.intake.pipeline.take_due(lane))
            await self._look(lane, records)
        await self._published()
        await clear(self.intake.pool, lane)

    async def _look(self, lane: Lane, records: list[Record]) -> None:
        """Notice within LOOK_SECONDS that an idle lane was reset; one with records learns it by the next batch. Raises
        LaneLost. That another process owns it is for the group to say."""
        now = time.monotonic()
        if records or now - self.looked_at < LOOK_SECONDS:
            return
        self.looked_at = now
        row = None
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):  # nothing is to be done
            row = await self.intake.pool.fetchrow(sql("load_owner"), lane.lane_id)
        if row is not None and row["epoch"] != lane.epoch and row["owner"] is None:
            raise LaneLost(f"{self.name} was reset")

    async def _publish(self, lane: Lane, taken: list[Taken]) -> None:
        """Start to publish once the batch before is acknowledged, so that outcomes appear in order."""
        await self._published()
        outbox = [one for each in taken for one in each.outbox]
        if outbox:
            self.publishing = asyncio.create_task(publish(self.intake.publisher, lane, outbox, taken[0].position))
        for each in taken:
            self.intake.metrics.observe(self.name, each)

    async def _published(self) -> None:
        if self.publishing is not None:
            publishing, self.publishing = self.publishing, None
            await publishing

    async def _abandon_publication(self) -> None:
        """After a doubt nothing is published from memory: the outbox has it."""
        publishing, self.publishing = self.publishing, None
        if publishing is not None:
            publishing.cancel()
            await asyncio.wait([publishing])

    async def _next(self, lane: Lane) -> tuple[list[Record], dict[int, Unreadable]]:
        """The next batch, bounded by records and by bytes, and which of it cannot be read at all."""
        settings = self.intake.settings
        if not self.held:
            try:
                busy = self.publishing is not None or lane.acknowledged > lane.cleared
                fetched = await self._fetch(settings.batch_records, POLL_MS if busy else IDLE_MS)
            except OffsetOutOfRangeError:
                await self._out_of_range(lane)
                return [], {}
            except BROKEN:
                fetched, broken = await self._next_whole(lane)
                if broken is not None:
                    return [broken], {broken.offset: Unreadable(DeadLetterReason.CORRUPT, "Kafka hands it over broken")}
            self.held = [_record(one) for one in fetched if one.offset >= lane.next_offset]
        size = 0
        for count, record in enumerate(self.held):
            size += record.size
            if count and size > settings.batch_bytes:
                break
        else:
            count = len(self.held)
        batch, self.held = self.held[:count], self.held[count:]
        return batch, {}

    async def _next_whole(self, lane: Lane) -> tuple[list[ConsumerRecord], Record | None]:
        """The next record alone, where one further on is broken; the coordinates of the broken one when it is next.

        A fetch that raises drops the good records that it had read, so the partition is sought again.
        """
        self._seek(lane.next_offset)
        try:
            return await self._fetch(1, IDLE_MS), None
        except BROKEN:
            return [], await self._corrupt(lane)

    async def _corrupt(self, lane: Lane) -> Record:
        """The record at the stored offset, whose batch fails its checksum, without its value. Of one whose very
        headers cannot be read, the offset is all that is known."""
        try:
            found = await read_unchecked(self.intake.settings, self.partition, lane.next_offset)
        except KafkaConnectionError:
            raise
        except Exception as error:
            raise LaneStopped(
                f"{self.name}@{lane.next_offset} is corrupt and cannot be passed over by itself ({words(error)}). "
                f"Nothing is taken until `points-reversal lanes reset {self.partition.topic} {self.partition.partition} "
                f"--to OFFSET` says where to go on"
            ) from error
        if found is None:
            self._seek(lane.next_offset + 1)
            return Record(self.partition.topic, self.partition.partition, lane.next_offset, 0, None, None)
        self._seek(found.offset + 1)
        return replace(_record(found), value=None)


def _record(one: ConsumerRecord) -> Record:
    return Record(one.topic, one.partition, one.offset, one.timestamp, one.key, one.value, tuple(one.headers))


def end_of(task: asyncio.Task[Any]) -> str:
    """How a task ended that should not have ended so."""
    if not task.done():
        return "not yet"
    if task.cancelled():
        return "it was cancelled"
    error = task.exception()
    return "of itself" if error is None else words(error)


def _names(partitions: Iterable[Any]) -> list[str]:
    return sorted(f"{one.topic}/{one.partition}" for one in partitions)
