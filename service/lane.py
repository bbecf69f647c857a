"""Kafka out: owning a lane, publishing what it decided, and emptying its outbox."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import asyncpg
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import MessageSizeTooLargeError
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.producer.message_accumulator import BatchBuilder

from service.failpoint import reach
from service.headers import Headers, read, sent
from service.kafka import client_options, output_bytes
from service.logs import log, words
from service.outbox import Outgoing
from service.pipeline import Lane
from service.settings import Settings
from service.store import sql

PAGE = 500  # outbox rows read at a time
FROZEN_SECONDS = 4  # no batch takes so long; what it leaves undone is taken again
STOP_SECONDS = 1  # the last one is closed for so long at most: nothing is on its way any more
CLOSE_SECONDS = 5  # a producer that was given up is closed in the background, for so long at most

PARTITIONER = DefaultPartitioner()

Publication = tuple[str, bytes | None, bytes | None, Headers]


class Unpublishable(Exception):
    """Something is larger than its topic takes; a person has to raise that. The message names the topics and the way out."""


class Publisher:
    """The process's producer. One that failed is thrown away: the idempotent producer cannot recover in place."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._making = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self.failed_at = -math.inf  # when a publication failed last, on the monotonic clock

    async def _ready(self) -> AIOKafkaProducer:
        async with self._making:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    **client_options(self.settings.kafka),
                    enable_idempotence=True,
                    acks="all",
                    linger_ms=self.settings.kafka.linger_ms,
                    max_batch_size=256 * 1024,
                    max_request_size=output_bytes(self.settings),
                    metadata_max_age_ms=30_000,
                )
                try:
                    await asyncio.wait_for(producer.start(), self.settings.publish_deadline_seconds)
                except BaseException:
                    self._close(producer)
                    raise
                self._producer = producer
            return self._producer

    async def publish(self, publications: Iterable[Publication]) -> None:
        """Send in order and wait for every acknowledgement; raises where one is missing at the deadline.

        After a failure some may be on Kafka and some not: the caller publishes all of them again. Kafka's batches are
        built here: a record sent by itself costs a future and a turn of the loop.
        """
        producer = await self._ready()
        waiting = list(publications)
        sent: list[asyncio.Future[Any]] = []
        try:
            async with asyncio.timeout(self.settings.publish_deadline_seconds):
                for partition, batch in await self._batches(producer, waiting):
                    future = await producer.send_batch(batch, partition.topic, partition=partition.partition)
                    future.add_done_callback(_hear)
                    sent.append(future)
                if sent:
                    await asyncio.wait(sent)
                    for one in sent:
                        one.result()
        except MessageSizeTooLargeError as error:
            if sent:  # the broker's word: the producer is out of step with it now
                self._give_up(producer, error)
            raise Unpublishable(
                f"an outcome or a dead letter is larger than its topic takes ({words(error)}). Raise max.message.bytes of "
                f"{', '.join(sorted({one[0] for one in waiting}))} to {output_bytes(self.settings)}, as `points-reversal "
                f"topics` makes them; it is published then"
            ) from error
        except BaseException as error:
            error.add_note(f"sending to {', '.join(sorted({one[0] for one in waiting}))}")
            self._give_up(producer, error)
            raise

    async def _batches(
        self, producer: AIOKafkaProducer, publications: Sequence[Publication]
    ) -> list[tuple[TopicPartition, BatchBuilder]]:
        """Full batches, those of one partition in order. Keys find their partition as in Kafka's own clients."""
        most = output_bytes(self.settings)
        partitions = {topic: sorted(await producer.partitions_for(topic)) for topic in {one[0] for one in publications}}
        batches: list[tuple[TopicPartition, BatchBuilder]] = []
        open_ones: dict[TopicPartition, BatchBuilder] = {}
        for topic, key, value, headers in publications:
            known = partitions[topic]
            partition = TopicPartition(topic, PARTITIONER(key, known, known))
            batch = open_ones.get(partition)
            added = batch and batch.append(timestamp=None, key=key, value=value, headers=headers)
            if not added:
                batch = open_ones[partition] = producer.create_batch()
                batches.append((partition, batch))
                added = batch.append(timestamp=None, key=key, value=value, headers=headers)
            if added.size > most:
                raise MessageSizeTooLargeError(f"a record for {topic} has {added.size} bytes, {most} can be sent")
        for _, batch in batches:
            batch.close()  # nothing else is to get in
        return batches

    def _give_up(self, producer: AIOKafkaProducer, error: BaseException) -> None:
        self.failed_at = time.monotonic()
        if self._producer is producer:
            self._producer = None
            log.warning("producer.replaced", error=words(error))
            self._close(producer)

    def _close(self, producer: AIOKafkaProducer) -> None:
        task = asyncio.create_task(_close(producer))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def stop(self) -> None:
        """Close, in bounded time. All lanes are drained before."""
        if self._producer is not None:
            self._close(self._producer)
            self._producer = None
        if self._closing:
            _, late = await asyncio.wait(self._closing, timeout=STOP_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _hear(one: asyncio.Future[Any]) -> None:
    """One that fails after its deadline is asked by nobody else."""
    if not one.cancelled():
        one.exception()


async def _close(producer: AIOKafkaProducer) -> None:
    try:
        await asyncio.wait_for(producer.stop(), CLOSE_SECONDS)
    except Exception as error:
        log.debug("producer.replaced", error=words(error))


async def own(pool: asyncpg.Pool, publisher: Publisher, topic: str, partition: int, owner: str) -> Lane:
    """Become the lane's owner: fence every earlier one, then publish all that the outbox holds of it.

    The epoch is raised and committed first. That waits for an earlier owner's transaction under way, so that what it
    commits is seen here, and nothing can be committed by it afterwards. One that lasts longer than FROZEN_SECONDS is
    of a frozen owner, and is ended.
    """
    try:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("select set_config('lock_timeout', $1, true)", f"{FROZEN_SECONDS}s")
            row = await connection.fetchrow(sql("own_lane"), topic, partition, owner)
    except asyncpg.LockNotAvailableError:
        ended = await pool.fetchval(sql("end_owner"), topic, partition)
        log.warning("lane.freed", lane=f"{topic}/{partition}", sessions=ended)
        row = await pool.fetchrow(sql("own_lane"), topic, partition, owner)
    assert row is not None
    lane = Lane(
        lane_id=row["lane_id"],
        topic=topic,
        partition=partition,
        epoch=row["epoch"],
        next_offset=row["next_offset"],
        high_offset=row["high_offset"],
        last_offset=row["last_offset"],
        last_timestamp_ms=row["last_timestamp_ms"],
        waiting=row["waiting"],
        position=row["epoch"] << 32,  # above every position of an earlier epoch
    )
    reach("owned")
    while rows := await pool.fetch(sql("load_outbox"), lane.lane_id, lane.acknowledged, PAGE):
        await publisher.publish(_stored(row) for row in rows)
        lane.acknowledged = rows[-1]["position"]
        lane.drained += len(rows)
    reach("drained")
    await clear(pool, lane)
    return lane


async def clear(pool: asyncpg.Pool, lane: Lane) -> None:
    """Remove what is acknowledged from the outbox, outside of a batch."""
    acknowledged = lane.acknowledged
    if acknowledged > lane.cleared:
        await pool.execute(sql("clear_outbox"), lane.lane_id, acknowledged, lane.epoch)
        lane.cleared = acknowledged


async def publish(publisher: Publisher, lane: Lane, outbox: Sequence[Outgoing], position: int) -> None:
    """Publish what a committed batch decided; only then is it acknowledged."""
    if outbox:
        await publisher.publish((one.topic, one.key, one.payload, sent(one.headers)) for one in outbox)
        reach("published")
        lane.acknowledged = position + len(outbox) - 1


def _stored(row: Any) -> Publication:
    return row["topic"], row["record_key"], row["payload"], read(row["headers"])
