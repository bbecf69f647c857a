"""The real Kafka and Postgres that the tests use, and the few things that every test does with them."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import time
import uuid
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar, overload
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from service import embedded
from service.embedded_kafka import brokers

CONTAINER_START_SECONDS = 120
CHOICES = ("auto", "embedded", "containers")

# What the tests measure is never whether the disk survives a power cut.
FAST_POSTGRES: Mapping[str, str] = {"fsync": "off", "full_page_writes": "off"}
# A process that is killed is to be missed sooner than the default of 6 s allows.
SHORT_SESSIONS: Mapping[str, str] = {"group.min.session.timeout.ms": "1000"}

Headers = Sequence[tuple[str, bytes]]
T = TypeVar("T")


# What names the role that the service runs as, on the server; its password is the name.
RUN_ROLE = "test_run"


@dataclass(frozen=True, slots=True)
class Stack:
    """Addresses of the servers, as one who may do all; the handles where they are ours to stop and kill."""

    database_url: str
    bootstrap_servers: str
    kafka: embedded.EmbeddedKafka | None = None
    postgres: embedded.EmbeddedPostgres | None = None
    run_role: str = ""  # whom the service runs as; it may log in, and what a migrated database granted it


@dataclass(frozen=True, slots=True)
class Record:
    """A record as read back from a topic; `timestamp` in milliseconds since 1970."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]

    def header(self, name: str) -> str | None:
        """The last header of that name, as text."""
        found = [value for key, value in self.headers if key == name]
        return found[-1].decode() if found else None


@dataclass(frozen=True, slots=True)
class Sending:
    """A record to produce; what is left out the producer or the broker chooses."""

    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()
    partition: int | None = None
    timestamp: int | None = None


@contextlib.contextmanager
def running_stack(choice: str) -> Iterator[Stack]:
    """The servers named by the environment, else containers where asked for, else the embedded pair; with a role that the
    service runs as."""
    with _running_servers(choice) as stack:
        role = run(create_role(stack.database_url))
        try:
            yield replace(stack, run_role=role)
        finally:
            if stack.postgres is None:  # ours forgets all by itself
                run(drop_role(stack.database_url, role))


@contextlib.contextmanager
def _running_servers(choice: str) -> Iterator[Stack]:
    assert choice in CHOICES, choice
    database_url = os.environ.get("TEST_DATABASE_URL")
    bootstrap_servers = os.environ.get("TEST_KAFKA_BOOTSTRAP_SERVERS")
    if choice == "auto" and database_url and bootstrap_servers:
        yield Stack(database_url, bootstrap_servers)
    elif choice == "auto" and (database_url or bootstrap_servers):
        raise RuntimeError("TEST_DATABASE_URL and TEST_KAFKA_BOOTSTRAP_SERVERS go together: set both, or neither")
    elif choice == "containers":
        with _containers() as stack:
            yield stack
    else:
        with embedded.pair(kafka_properties=SHORT_SESSIONS, postgres_settings=FAST_POSTGRES) as pair:
            yield Stack(pair.database_url, pair.bootstrap_servers, pair.kafka, pair.postgres)


@contextlib.contextmanager
def _containers() -> Iterator[Stack]:
    from tests import containers

    settings = {**FAST_POSTGRES, "max_connections": "200"}
    with containers.pair(settings, SHORT_SESSIONS) as (database_url, bootstrap_servers):
        host, _, port = bootstrap_servers.rpartition(":")
        run(eventually(lambda: _postgres_answers(database_url), CONTAINER_START_SECONDS))
        run(eventually(lambda: int(port) in brokers(int(port), host), CONTAINER_START_SECONDS))
        yield Stack(database_url, bootstrap_servers)


async def _postgres_answers(url: str) -> bool:
    try:
        connection = await asyncpg.connect(url, timeout=2)
    except (OSError, asyncpg.PostgresError):
        return False
    await connection.close()
    return True


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end from plain code, whatever loops the calling thread has."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


@overload
async def eventually(
    condition: Callable[[], Coroutine[Any, Any, T]], timeout_seconds: float = ..., *, poll_seconds: float = ...
) -> T: ...
@overload
async def eventually(condition: Callable[[], T], timeout_seconds: float = ..., *, poll_seconds: float = ...) -> T: ...
async def eventually(condition: Callable[[], Any], timeout_seconds: float = 10.0, *, poll_seconds: float = 0.02) -> Any:
    """Polls a condition, plain or awaitable, and returns its first true value; fails when the time is up."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"still {value!r} after {timeout_seconds:g} s")
        await asyncio.sleep(poll_seconds)


def unique(prefix: str) -> str:
    """A name that no other test, run or process uses; good for a database, a topic and a group."""
    return f"{prefix}_{uuid.uuid4().hex[:12]}"


def database_address(server_url: str, database: str) -> str:
    """The same server, another database."""
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{database}"))


async def create_database(server_url: str, template: str | None = None) -> str:
    """Makes a database with a name of its own, a clone where a template is named; returns its address."""
    name = unique("test")
    await _administer(server_url, f'create database "{name}"' + (f' template "{template}"' if template else ""))
    return database_address(server_url, name)


async def drop_database(url: str) -> None:
    """Drops the database and ends the sessions that still use it."""
    await _administer(database_address(url, "postgres"), f'drop database "{database_name(url)}" with (force)')


def database_name(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")


def as_role(url: str, role: str) -> str:
    """The same database, as another role, whose password is its name."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{role}:{role}@{parts.netloc.rpartition('@')[2]}"))


async def create_role(server_url: str) -> str:
    """Makes a role that may log in and no more; returns its name, which is also its password."""
    role = unique(RUN_ROLE)
    await _administer(server_url, f"create role {role} login password '{role}'")
    return role


async def run_address(url: str) -> str:
    """The same migrated database, as the role that the service runs as."""
    connection = await asyncpg.connect(url)
    try:
        role = await connection.fetchval(
            "select rolname from pg_roles where starts_with(rolname, $1) and has_table_privilege(oid, 'lane', 'insert')",
            RUN_ROLE + "_",
        )
    finally:
        await connection.close()
    assert role, "the database was migrated without a grant to a role of the tests"
    return as_role(url, role)


async def drop_role(server_url: str, role: str) -> None:
    """Drops a role that has nothing granted any more."""
    await _administer(server_url, f"drop role {role}")


async def _administer(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def create_topics(
    bootstrap_servers: str, partitions: Mapping[str, int], config: Mapping[str, str] | None = None
) -> None:
    """Creates topics of so many partitions each, and returns when every partition has its leader."""
    async with _admin(bootstrap_servers) as admin:
        topics = [NewTopic(name, count, 1, topic_configs=dict(config or {})) for name, count in partitions.items()]
        answer = await admin.create_topics(topics)
        # Of an error the broker also gives a message, from a later version of its answer on.
        failed = {topic: rest for topic, code, *rest in answer.topic_errors if code}
        assert not failed, f"topics not created: {failed}"
        await eventually(lambda: _led_partitions(admin, list(partitions)))


async def _led_partitions(admin: AIOKafkaAdminClient, topics: list[str]) -> list[TopicPartition]:
    """Every partition of the topics, or none while one of the topics or leaders is missing."""
    found = []
    for topic in await admin.describe_topics(topics):
        for partition in topic["partitions"]:
            if partition["error_code"] or partition["leader"] < 0:
                return []
            found.append(TopicPartition(topic["topic"], partition["partition"]))
        if topic["error_code"] or not topic["partitions"]:
            return []
    return sorted(found)


@contextlib.asynccontextmanager
async def _admin(bootstrap_servers: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def produce(
    bootstrap_servers: str, topic: str, records: Iterable[Sending], **settings: Any
) -> list[tuple[int, int]]:
    """Produces the records in their order; returns the partition and offset of each."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, **settings)
    try:  # a producer that could not start is to be stopped, too
        await producer.start()
        sent = [
            await producer.send(
                topic,
                record.value,
                key=record.key,
                partition=record.partition,
                timestamp_ms=record.timestamp,
                headers=list(record.headers),
            )
            for record in records
        ]
        return [(done.partition, done.offset) for done in await asyncio.gather(*sent)]
    finally:
        await producer.stop()


async def read_all(bootstrap_servers: str, topic: str) -> list[Record]:
    """Every record that the topic holds at the time of the call, by partition and offset."""
    async with _admin(bootstrap_servers) as admin:
        partitions = await eventually(lambda: _led_partitions(admin, [topic]))
    found: list[Record] = []
    async with AIOKafkaConsumer(
        bootstrap_servers=bootstrap_servers,
        enable_auto_commit=False,
        # Not by a seek afterwards: that races with the reset to the end that an assignment begins.
        auto_offset_reset="earliest",
        fetch_max_wait_ms=50,
    ) as consumer:
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        # One partition after the other: what a getmany over several had already taken is lost when one raises.
        for partition in partitions:
            while await consumer.position(partition) < ends[partition]:
                taken = await consumer.getmany(partition, timeout_ms=200)
                found.extend(
                    Record(r.partition, r.offset, r.timestamp, r.key, r.value, tuple(r.headers))
                    for r in taken.get(partition, ())
                    if r.offset < ends[partition]
                )
    return found
