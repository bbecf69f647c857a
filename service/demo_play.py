"""The demo's part on Kafka and Postgres: brings the sample in, sends its records act by act, reads what comes out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from service.audit import Finding, audit
from service.demo_check import PUBLISHED, Came, Place, Sent, place, read
from service.failures import Wrong
from service.kafka import client_options, output_bytes, partitions_of, reader
from service.load import Summary, load
from service.migrate import migrate
from service.records import Record
from service.sample import Sample, build
from service.sample_shop import ORGS, Event
from service.session import session
from service.settings import Settings
from service.store import sql
from service.topics import create

FIRST_ORG = 100_458
POLL_SECONDS = 0.02
POLL_MS = 50
PATIENCE_SECONDS = 30.0  # a service that has said nothing for so long will not say more
BROKEN_ROWS = 20  # named of each invariant

Shown = Callable[[Came], None]


@dataclass(slots=True)
class Played:
    """What was sent, and what must be known to tell the run's own outcomes from those of a run before on the same
    directory. `differences`: records that should have waited and did not."""

    sample: Sample
    starts: dict[TopicPartition, int]
    sent: list[Sent] = field(default_factory=list)
    waited: int = 0
    differences: list[str] = field(default_factory=list)
    stream_seconds: float = 0.0

    def is_own(self, came: Came) -> bool:
        """Whether it comes of a record of this run."""
        if came.body:
            return came.body.get("orgId") in self.sample.orgs
        *_, topic, partition, offset = ["", "", *came.of.split("/")]
        if not (partition.isdigit() and offset.isdigit()):
            return True  # nothing that we know: it must be looked at
        return int(offset) >= self.starts.get(TopicPartition(topic, int(partition)), 0)


async def prepare(settings: Settings, file: Path) -> tuple[Sample, Summary]:
    """Schema, topics and the shop's ledger, through the code of the commands."""
    await migrate(settings.database_url.get_secret_value())
    await create(settings)
    async with session(settings) as connection:
        # On a directory that is kept, each run has orgs of its own.
        latest = await connection.fetchval("select max(org_id) from org")
        first_org = FIRST_ORG if latest is None else latest - latest % ORGS + ORGS + FIRST_ORG % ORGS
        sample = build(datetime.now(UTC).replace(microsecond=0), first_org)
        _write(file, sample)
        summary = await load(connection, file)
        if summary.faults:
            raise Wrong(f"{file}, line {summary.faults[0].line}: {summary.faults[0].message}")
        await connection.execute(sql("demo_spoil"), *sample.contradictory)
    return sample, summary


def _write(file: Path, sample: Sample) -> None:
    file.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in sample.lines))


async def play(settings: Settings, sample: Sample, shown: Shown, alive: Callable[[], bool]) -> Played:
    """Send everything and read along until each record has what it must have, or the service falls silent."""
    outputs = _outputs(settings)
    partitions = await _partitions(settings, [*outputs, *settings.topics.inputs()])
    async with reader(settings, fetch_max_wait_ms=POLL_MS) as consumer, _producer(settings) as producer:
        played = Played(sample, await _ends(consumer, partitions))
        consumer.assign([partition for partition in partitions if partition.topic in outputs])
        watch = Watch(settings, played, consumer, shown, alive)
        watching = asyncio.create_task(watch.run())
        try:
            started = time.monotonic()
            await _perform(settings, producer, played, alive)
            watch.all_sent()
            await watching
            played.stream_seconds = watch.last - started
        finally:
            watching.cancel()
            await asyncio.wait([watching])
    return played


async def _perform(settings: Settings, producer: AIOKafkaProducer, played: Played, alive: Callable[[], bool]) -> None:
    """The acts one after the other; the last when all of the first is taken."""
    first, second, last = played.sample.acts
    opening = await _send(producer, first)
    played.sent += opening
    played.sent += await _send(producer, second)
    async with session(settings) as connection:
        await _taken(connection, opening, alive)
        waiting = await waiting_of(connection, played.sample)
    should = {place(one.record) for one in opening if one.event.waits}
    for topic, partition, offset in sorted(should ^ waiting):
        does = "does not wait for what it is about" if (topic, partition, offset) in should else "waits"
        played.differences.append(f"{topic}/{partition}@{offset}: {does}")
    played.waited = len(should & waiting)
    played.sent += await _send(producer, last)


async def _taken(connection: asyncpg.Connection, sent: Iterable[Sent], alive: Callable[[], bool]) -> None:
    """Wait until the service has moved its stored offsets past all of them."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        rows = await connection.fetch(sql("demo_lanes"))
        lanes = {(row["topic"], row["partition"]): row["next_offset"] for row in rows}
        late = [
            one.record for one in sent if lanes.get((one.record.topic, one.record.partition), 0) <= one.record.offset
        ]
        if not late:
            return
        if not alive() or time.monotonic() > deadline:
            raise Wrong(f"the service did not take {late[0].place}, which it should have within {PATIENCE_SECONDS:g} s")
        await asyncio.sleep(POLL_SECONDS)


async def _send(producer: AIOKafkaProducer, events: list[Event]) -> list[Sent]:
    now_ms = int(time.time() * 1000)
    futures = [
        await producer.send(event.topic, event.value, key=event.key, headers=list(event.headers), timestamp_ms=now_ms)
        for event in events
    ]
    return [
        Sent(event, Record(done.topic, done.partition, done.offset, now_ms, event.key, event.value, event.headers))
        for event, done in zip(events, await asyncio.gather(*futures), strict=True)
    ]


class Watch:
    """Reads the outputs while the records are sent."""

    def __init__(
        self,
        settings: Settings,
        played: Played,
        consumer: AIOKafkaConsumer,
        shown: Shown,
        alive: Callable[[], bool],
    ) -> None:
        self.settings = settings
        self.played = played
        self.consumer = consumer
        self.shown = shown
        self.alive = alive
        self.last = time.monotonic()  # when the latest outcome was read
        self.seen: set[str] = set()
        self.wanted: list[tuple[str, str]] | None = None  # of each record, one of its two names

    def all_sent(self) -> None:
        """From here on it may end."""
        self.wanted = [one.names for one in self.played.sent if one.event.expected.end in PUBLISHED]

    async def run(self) -> None:
        """Until every record that must have an outcome or a dead letter has one."""
        while self.wanted is None or not all(self.seen & set(names) for names in self.wanted):
            for came in _own(await self.consumer.getmany(timeout_ms=POLL_MS), self.played, self.settings):
                self.last = time.monotonic()
                self.seen.add(came.of)
                self.shown(came)
            if not self.alive() or time.monotonic() - self.last > PATIENCE_SECONDS:
                return  # what is missing will be named


async def look(settings: Settings, played: Played) -> tuple[list[Came], set[Place], list[Finding]]:
    """After the service has ended: all that it published, what still waits, and what the audit finds."""
    came: list[Came] = []
    partitions = await _partitions(settings, _outputs(settings))
    async with reader(settings, fetch_max_wait_ms=POLL_MS) as consumer:
        ends = await _ends(consumer, partitions)
        for partition in partitions:
            while await consumer.position(partition) < ends[partition]:
                came += _own(await consumer.getmany(partition, timeout_ms=POLL_MS), played, settings)
    async with session(settings) as connection:
        waiting = await waiting_of(connection, played.sample)
        findings = [finding async for finding in audit(connection, None, BROKEN_ROWS)]
    return came, waiting, findings


async def waiting_of(connection: asyncpg.Connection, sample: Sample) -> set[Place]:
    """The places of the sample's records that wait."""
    rows = await connection.fetch(sql("demo_waiting"), sample.orgs[0], sample.orgs[-1])
    return {(row["topic"], row["partition"], row["record_offset"]) for row in rows}


def _own(batches: dict[TopicPartition, list[ConsumerRecord]], played: Played, settings: Settings) -> Iterator[Came]:
    """What comes of this run's records, about in the order in which it was published."""
    found = [
        record
        for partition, records in batches.items()
        for record in records
        if record.offset >= played.starts[partition]
    ]
    for one in sorted(found, key=lambda record: (record.timestamp, record.offset)):
        record = Record(one.topic, one.partition, one.offset, one.timestamp, one.key, one.value, one.headers)
        came = read(record, settings.topics)
        if played.is_own(came):
            yield came


def _outputs(settings: Settings) -> list[str]:
    topics = settings.topics
    letters = [topics.dead_letters(topic) for topic in topics.inputs()]
    return [topics.reversal_completed, topics.reversal_failed, *letters]


async def _ends(consumer: AIOKafkaConsumer, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
    """The offset that each partition's next record will have; leaves the consumer with all of them."""
    consumer.assign(partitions)  # before: of a partition that is not its own it has to find out everything anew
    ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions)
    return ends


async def _partitions(settings: Settings, topics: Iterable[str]) -> list[TopicPartition]:
    return [partition for several in (await partitions_of(settings, topics)).values() for partition in several]


@asynccontextmanager
async def _producer(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(
        **client_options(settings.kafka),
        acks="all",
        enable_idempotence=True,  # so that a retry does not put a record behind those that depend on it
        linger_ms=2,
        max_request_size=output_bytes(settings),
    )
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()
