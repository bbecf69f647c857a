"""Where the contestants meet: one embedded pair, one loaded database that each run gets a copy of, one prepared stream."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from service import embedded
from service.audit import audit
from service.kafka import administrator
from service.load import load
from service.migrate import migrate
from service.session import session
from service.settings import Settings
from service.topics import create

ORG = 100458
PARTITIONS = 4
TOPICS = (
    "order_returned", "customer_updated", "points_issued", "points_redeemed", "reversal_completed", "reversal_failed",
)  # fmt: skip
SERVICE = (sys.executable, "-m", "service", "run")


def say(message: str) -> None:
    """Progress, on the error output."""
    print(message, file=sys.stderr, flush=True)


def lines(redemptions: int, *, customers: int | None = None, per_lot: int = 1) -> Iterable[dict[str, Any]]:
    """What is loaded: redemptions of two lots each, one for each customer (or over `customers` of them), `per_lot` of
    them from the same two lots."""
    yield {"kind": "org", "orgId": ORG}
    yield {"kind": "program", "orgId": ORG, "programId": "main"}
    owners = customers or redemptions
    for number in range(1, owners + 1):
        identifiers = [{"type": "PHONE", "value": f"+65{number:08d}"}]
        yield {"kind": "customer", "orgId": ORG, "customerId": number, "identifiers": identifiers}
    for number in range(1, redemptions + 1):
        owner = {"orgId": ORG, "customerId": (number - 1) % owners + 1}
        group = (number - 1) // (owners * per_lot) * owners + (number - 1) % owners
        lots = [f"L-{group}-{part}" for part in (1, 2)]
        if (number - 1) // owners % per_lot == 0:
            for lot in lots:
                yield {
                    "kind": "lot", **owner, "lotId": lot, "points": str(100 * per_lot), "remaining": "0",
                    "expiresAt": "2035-01-31T00:00:00Z",
                }  # fmt: skip
        yield {
            "kind": "redemption", **owner, "redemptionId": f"R-{number}", "orderId": f"SO-{number}", "points": "200",
            "lots": [{"lotId": lot, "points": "100"} for lot in lots], "redeemedAt": "2026-11-01T00:00:00Z",
        }  # fmt: skip


def returns(events: int, *, customers: int | None = None) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a stream: one in ten repeats a return of the last few hundred."""
    chance = random.Random(5)
    owners = customers or events
    latest: deque[tuple[bytes, bytes]] = deque(maxlen=400)
    for number in range(1, events + 1):
        if number > 1 and chance.random() < 0.1:
            latest.append(latest[chance.randrange(len(latest))])
            yield latest[-1]
            continue
        customer = (number - 1) % owners + 1
        value = {
            "orgId": ORG, "orderId": f"SO-{number}", "returnId": f"RMA-{number}", "redemptionId": f"R-{number}",
            "pointsToBeReversed": "150.5", "identifier": {"type": "PHONE", "value": f"+65 {customer:08d}"},
            "idempotencyKey": f"RMA-{number}/1", "reason": "size does not fit", "programId": "main",
            "returnedAt": "2026-11-20T09:30:00+08:00",
        }  # fmt: skip
        latest.append((str(customer).encode(), json.dumps(value).encode()))
        yield latest[-1]


def batched(records: Iterable[tuple[bytes, bytes]], most: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """The records, so many at a time."""
    source = iter(records)
    while piece := list(itertools.islice(source, most)):
        yield piece


async def produce(settings: Settings, topic: str, records: Iterable[tuple[bytes, bytes]]) -> None:
    """Append a stream to a topic."""
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.kafka.bootstrap_servers, linger_ms=5, max_batch_size=256 * 1024
    )
    await producer.start()
    try:
        for piece in batched(records, 10_000):
            await asyncio.gather(*[await producer.send(topic, value, key=key) for key, value in piece])
    finally:
        await producer.stop()


@dataclass
class Site:
    """What one run has for itself: a database, topics, a consumer group."""

    database: str
    environment: dict[str, str]
    settings: Settings
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The database's address."""
        return self.settings.database_url.get_secret_value()


class Arena:
    """An embedded pair, running."""

    def __init__(self, pair: embedded.Pair, folder: Path) -> None:
        self.pair = pair
        self.folder = folder
        self._numbers = itertools.count(1)

    def url(self, database: str) -> str:
        """The address of a database of the server."""
        return urlunsplit(urlsplit(self.pair.database_url)._replace(path=f"/{database}"))

    async def template(self, name: str, content: Iterable[dict[str, Any]]) -> float:
        """A database with the content loaded, to be copied for each run; returns lines of `load` per second."""
        await self.administrate(f'create database "{name}"')
        settings = self.settings_of({"REVERSAL_DATABASE_URL": self.url(name)})
        await migrate(self.url(name))
        path = self.folder / f"{name}.jsonl"
        with path.open("w") as file:
            count = sum(1 for line in content if file.write(json.dumps(line) + "\n"))
        started = time.monotonic()
        async with session(settings) as connection:
            summary = await load(connection, path)
        if not summary.booked:
            raise SystemExit(f"the bench's own file was refused: {summary.faults}")
        rate = count / (time.monotonic() - started)
        path.unlink()
        connection = await asyncpg.connect(self.url(name))
        try:
            await connection.execute("vacuum analyze")
            await connection.execute("checkpoint")
        finally:
            await connection.close()
        return rate

    async def administrate(self, statement: str) -> None:
        """On the server itself."""
        connection = await asyncpg.connect(self.pair.database_url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def settings_of(self, environment: dict[str, str]) -> Settings:
        """The service's settings as a process with this environment has them."""
        before = dict(os.environ)
        os.environ.update(environment)
        try:
            return Settings()
        finally:
            os.environ.clear()
            os.environ.update(before)

    @asynccontextmanager
    async def site(self, template: str, inputs: dict[str, str]) -> AsyncIterator[Site]:
        """A copy of a template, new output topics, and the input topics that are given (new ones for the others)."""
        number = next(self._numbers)
        database = f"run_{number}"
        await self.administrate(f'create database "{database}" template "{template}"')
        names = {name: f"{number}.{name}" for name in TOPICS if name not in inputs}
        environment = {
            "REVERSAL_DATABASE_URL": self.url(database),
            "REVERSAL_KAFKA__BOOTSTRAP_SERVERS": self.pair.bootstrap_servers,
            "REVERSAL_KAFKA__GROUP_ID": f"bench-{number}",
            "REVERSAL_HTTP_PORT": "0",
            "REVERSAL_LOG_FORMAT": "json",
            **{f"REVERSAL_TOPICS__{name.upper()}": topic for name, topic in (names | inputs).items()},
        }
        settings = self.settings_of(environment)
        await create(settings)
        site = Site(database, environment, settings)
        try:
            yield site
        finally:
            for process in site.processes:
                await stop(process)
            await self.administrate(f'drop database "{database}" with (force)')
            async with administrator(settings) as admin:
                await admin.delete_topics([topic for name, topic in names.items() if name.startswith("reversal_")])

    def start(self, site: Site, command: tuple[str, ...]) -> tuple[subprocess.Popen[bytes], Path]:
        """A contestant, as a process of its own; its output goes to a file."""
        log = self.folder / f"{site.database}-{len(site.processes)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(command, env={**os.environ, **site.environment}, stdout=file, stderr=file)
        site.processes.append(process)
        return process, log

    async def topic(self, name: str, records: Iterable[tuple[bytes, bytes]]) -> str:
        """An input topic with a stream in it."""
        settings = self.settings_of(
            {
                "REVERSAL_KAFKA__BOOTSTRAP_SERVERS": self.pair.bootstrap_servers,
                "REVERSAL_DATABASE_URL": self.pair.database_url,
                "REVERSAL_TOPICS__ORDER_RETURNED": name,
            }
        )
        await create(settings)
        await produce(settings, name, records)
        return name


async def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL for one that does not end within 20 s."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, 20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@asynccontextmanager
async def outcomes(site: Site) -> AsyncIterator[Any]:
    """A function that tells how many outcomes can be read by now."""
    topics = (site.settings.topics.reversal_completed, site.settings.topics.reversal_failed)
    partitions = [TopicPartition(topic, number) for topic in topics for number in range(PARTITIONS)]
    consumer = AIOKafkaConsumer(bootstrap_servers=site.settings.kafka.bootstrap_servers)
    await consumer.start()

    async def count() -> int:
        return sum((await consumer.end_offsets(partitions)).values())

    try:
        yield count
    finally:
        await consumer.stop()


async def measure(site: Site, expected: int, seconds: float, *, settle: float = 0.0) -> tuple[float, float]:
    """Outcomes per second, from the first that can be read (and `settle` seconds later) until all are there or so many
    seconds are over; and when the first could be read (monotonic)."""
    deadline = time.monotonic() + 120
    samples: list[tuple[float, int]] = []
    async with outcomes(site) as count:
        while True:
            done, now = await count(), time.monotonic()
            if done:
                samples.append((now, done))
            if done >= expected or (samples and now - samples[0][0] >= seconds + settle):
                break
            if any(process.poll() is not None for process in site.processes):
                raise SystemExit(f"a contestant ended by itself, see {site.database}")
            if not samples and now > deadline:
                raise SystemExit("no outcome came within 120 s")
            await asyncio.sleep(0.05)
    first, last = samples[0][0], samples[-1]
    settled = [one for one in samples if one[0] - first >= settle and one[1] < last[1]]
    start = settled[0] if settled else (first - 0.05, 0)
    return (last[1] - start[1]) / (last[0] - start[0]), first


async def broken(url: str, *, lanes: bool = True) -> list[str]:
    """The names of the invariants that do not hold. Peers keep their offsets in Kafka: `lanes` is not theirs."""
    connection = await asyncpg.connect(url)
    try:
        found = [finding.check.name async for finding in audit(connection, None, 5) if finding.count]
    finally:
        await connection.close()
    return [name for name in found if lanes or name != "lanes"]


def resident_mb(process: subprocess.Popen[bytes], kind: str = "VmHWM") -> float:
    """Resident memory of a process: its peak (VmHWM) or as it is (VmRSS)."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) / 1024
    return 0.0
